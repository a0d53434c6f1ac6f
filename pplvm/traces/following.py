r"""Which log-densities depend on which latents: found by following tensors through one run.

A score-function gradient of a latent may leave out every log-density that does not depend on it,
neither by itself nor by way of later latents. Every tensor that torch makes is known by the latents
among its ancestors; so is what is written into, which subclasses of tensors (as in
``pyro.ops.provenance``) lose as soon as one is an index of a plain tensor.

References:
    | Gradient Estimation Using Stochastic Computation Graphs (Schulman et al., 2015)
    | https://arxiv.org/abs/1506.05254

    | Nonstandard Interpretations of Probabilistic Programs (Wingate et al., 2011), on provenance
    | https://papers.neurips.cc/paper/4309-nonstandard-interpretations-of-probabilistic-programs-for-efficient-inference
"""

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# By these, Python sees numbers, and whatever it makes of them is not followed.
_SEEN = {
    "item",
    "tolist",
    "numpy",
    "__array__",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__complex__",
    "__contains__",
    "__dlpack__",
    "is_nonzero",
    "equal",
    "allclose",
}


class Following(TorchFunctionMode):
    """Follows what tensors are made of, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        # By id, with the tensor itself, lest another take its id.
        self._known: dict[int, tuple[Tensor, frozenset[str]]] = {}
        self._stores: dict[int, tuple[Any, frozenset[str]]] = {}  # what was written into
        self.seen: frozenset[str] = frozenset()  # what Python has seen the numbers of

    def of(self, x: Tensor) -> frozenset[str]:
        """Returns the names that a tensor depends on."""
        names = self._known.get(id(x), (x, frozenset()))[1]
        return names | self._stores.get(_store(x), (None, frozenset()))[1]

    def mark(self, x: Tensor, names: frozenset[str]) -> None:
        """Says that a tensor depends on these names too."""
        if names:
            self._known[id(x)] = (x, self.of(x) | names)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Runs an operation, and marks what comes out of it."""
        out = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        names = frozenset().union(*map(self.of, given)) if given else frozenset()
        if names:
            if getattr(func, "__name__", "") in _SEEN:
                self.seen |= names
            made = _tensors(out)
            for x in made:
                self.mark(x, names)
            in_place = any(x is given[0] for x in made)
            if in_place or getattr(func, "__name__", "") == "__setitem__":
                self._written(given[0], names)
            for x in _tensors((kwargs or {}).get("out")):
                self._written(x, names)
        return out

    def _written(self, x: Tensor, names: frozenset[str]) -> None:
        """Marks a tensor that was written into, and what it is a view of."""
        key = _store(x)
        held = self._stores.get(key, (x, frozenset()))
        self._stores[key] = (held[0], held[1] | names)
        self.mark(x, names)


class MarkingDraws(Messenger):
    """Marks each latent without a pathwise gradient by its own name."""

    def __init__(self, following: Following) -> None:
        super().__init__()
        self.following = following

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["is_observed"] or poutine.util.site_is_subsample(msg) or msg["fn"].has_rsample:
            return
        # A tensor of its own: the distribution may have handed out one that others share.
        msg["value"] = msg["value"].clone()
        self.following.mark(msg["value"], frozenset({msg["name"]}))


def _store(x: Tensor) -> int:
    """Returns what a tensor has in common with its views; itself where it hides that."""
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return -id(x)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
