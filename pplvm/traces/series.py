"""Loops over time run twice instead of T times: at their first step, and at all later ones at once.

``for t in pyro.markov(range(T))`` says that a step depends on the one before alone. If its body does
the same at each of the steps 1, 2, …, T - 1, only with another t, it need be run for one of them:
under ``vmap``, with t the vector of all. Inside, shapes are those of one step.

Whether the body does the same is not taken for granted. What asks for the number t itself (an if on
it, an index of a list) raises :class:`UnevenError`; what a step passes to the next other than by its
latents, as the state of a recurrent network would be, is found by :mod:`pplvm.traces.judging`. Such
loops are run step by step.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.markov_messenger import MarkovMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._C import _functorch as functorch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pplvm.traces.sites import SupportError, check_support, site_log_prob


class UnevenError(Exception):
    """Why a loop cannot be run for all its later steps at once."""


class Term(NamedTuple):
    """A tensor of the later steps: (T - 1, …), or (…) if it is the same at each."""

    tensor: Tensor
    timed: bool


class Loop:
    """One loop over time: what its first step sampled and what its later ones did, in order."""

    def __init__(self, steps: range) -> None:
        self.steps = steps
        self.first: list[str] = []
        self.later: list[str] = []
        self.terms: dict[str, Term] = {}  # log-densities of later sites
        self.seen: dict[str, tuple[Term, Term]] = {}  # what later sites observe, and where
        self.masks: dict[str, Term] = {}  # of later latents, whose log-density is without

    def name_at(self, later: str, t: int) -> str:
        """Returns the name that a later site has at step t."""
        return later.replace(_token(self.steps[1:]), str(t))

    def common_name(self, later: str) -> str:
        """Returns what the names of a site at all steps have in common: "z" of "z_0", "z_1", …"""
        return later.replace(_token(self.steps[1:]), "").strip("_[]().-: ")


class Steps:
    """The number t of all later steps at once, as far as it is needed: an index, and sums."""

    def __init__(self, index: Tensor, steps: range, level: int) -> None:
        self.index, self.steps, self.level = index, steps, level  # () under vmap

    def __format__(self, spec: str) -> str:
        return format(_token(self.steps), spec)

    def __str__(self) -> str:
        return _token(self.steps)

    __repr__ = __str__

    def __add__(self, n: Any) -> Any:
        if not isinstance(n, int):
            return self.index + n
        steps = range(self.steps.start + n, self.steps.stop + n)
        return Steps(self.index + n, steps, self.level)

    __radd__ = __add__

    def __sub__(self, n: Any) -> Any:
        return self + -n

    def of(self, x: Tensor, dim: int) -> Tensor:
        """Returns the rows of a tensor at these steps, which costs nothing."""
        if self.steps.start < 0 or self.steps.stop > x.shape[dim]:
            raise UnevenError("its steps are not all there")
        if functorch.maybe_get_level(x) == self.level:
            return x.index_select(dim, self.index[None]).squeeze(dim)
        rows = x.narrow(dim, self.steps.start, len(self.steps))
        return functorch._add_batch_dim(rows, dim, self.level)

    def __bool__(self) -> bool:
        return self._all([t != 0 for t in self._ends(0)])

    def __eq__(self, n: Any) -> Any:
        return self._all([t == n for t in self._ends(n)]) if _is_int(n) else self.index == n

    def __ne__(self, n: Any) -> Any:
        return self._all([t != n for t in self._ends(n)]) if _is_int(n) else self.index != n

    def __lt__(self, n: Any) -> Any:
        return self._all([t < n for t in self._ends(n)]) if _is_int(n) else self.index < n

    def __le__(self, n: Any) -> Any:
        return self._all([t <= n for t in self._ends(n)]) if _is_int(n) else self.index <= n

    def __gt__(self, n: Any) -> Any:
        return self._all([t > n for t in self._ends(n)]) if _is_int(n) else self.index > n

    def __ge__(self, n: Any) -> Any:
        return self._all([t >= n for t in self._ends(n)]) if _is_int(n) else self.index >= n

    __hash__ = None

    def _ends(self, n: int) -> list[int]:
        """Returns steps that stand for all in a comparison with n."""
        return [self.steps[0], self.steps[-1], *([n] if n in self.steps else [])]

    @staticmethod
    def _all(answers: list[bool]) -> bool:
        if len(set(answers)) > 1:
            raise UnevenError("it asks which step it is at")
        return answers[0]

    def __index__(self) -> int:
        raise UnevenError("it needs the step as a number")

    __int__ = __float__ = __index__

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(Steps, lambda t: t.index, (args, kwargs or {}))
        return function(*args, **kwargs)


class _Stepwise(TorchFunctionMode):
    """Lets tensors be indexed by :class:`Steps`, and Pyro ask batched ones for their data."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(item, Steps) for item in index):
                return _take(args[0], index)
        if function == Tensor.data.__get__:
            return args[0].detach()
        return function(*args, **(kwargs or {}))


def _is_int(n: Any) -> bool:
    return isinstance(n, int)


def _token(steps: range) -> str:
    return f"{steps.start}:{steps.stop}"


def _take(x: Tensor, index: tuple) -> Tensor:
    """Indexes with t as with an int, which a batched tensor is not to torch."""
    places = [i for i, item in enumerate(index) if isinstance(item, Steps)]
    if any(isinstance(item, Tensor) and item.ndim for item in index):
        return x[tuple(item.index[None] if isinstance(item, Steps) else item for item in index)]
    if len(places) > 1:
        raise UnevenError("it indexes twice by the step")
    (place,) = places
    rest = x[tuple(slice(None) if i == place else item for i, item in enumerate(index))]
    before, after = (
        sum(item is None or isinstance(item, slice) for item in part)
        for part in (index[:place], index[place + 1 :])
    )
    hidden = any(item is Ellipsis for item in index[:place])  # dims that it stands for
    dim = rest.ndim - 1 - after if hidden else before
    return index[place].of(rest, dim)


class _Loops(Messenger):
    """Takes over how loops over time are run."""

    def __enter__(self) -> "_Loops":
        self._former = MarkovMessenger.__iter__
        MarkovMessenger.__iter__ = lambda markov: self._iterate(markov)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        MarkovMessenger.__iter__ = self._former
        return super().__exit__(*error)


class Series(_Loops):
    """Runs loops over time twice, and keeps what their later steps are worth.

    Args:
        device: Of the data.
        worth: Whether the log-densities of later sites are wanted.
    """

    def __init__(self, device: Any, worth: bool = False) -> None:
        super().__init__()
        self.device, self.worth = device, worth
        self.loops: list[Loop] = []
        self._sites: list[tuple[str, dict]] | None = None  # of the step that is running
        self._later = ExitStack()  # what is open while later steps run

    def __exit__(self, *error: Any) -> Any:
        self._later.close()  # an error left a loop before its end
        return super().__exit__(*error)

    def _pyro_sample(self, msg: dict) -> None:
        latent = not (msg["is_observed"] or msg["done"] or poutine.util.site_is_subsample(msg))
        if self._sites is not None and latent and not msg["fn"].support.is_discrete:
            raise UnevenError("it has latents that are not discrete")

    def _pyro_post_sample(self, msg: dict) -> None:
        if self._sites is not None and not poutine.util.site_is_subsample(msg):
            self._sites.append((msg["name"], msg))

    def _iterate(self, markov: MarkovMessenger) -> Iterator[Any]:
        steps = markov._iterable
        if not isinstance(steps, range) or steps.step != 1 or not steps:
            raise UnevenError("it is not over a range of steps")
        if markov.history != 1 or markov.keep:
            raise UnevenError("a step sees more than the one before")
        if self._sites is not None:
            raise UnevenError("it is inside another loop")
        loop = Loop(steps)
        with markov:
            self._sites = []
            yield loop.steps[0]
            loop.first = [name for name, _ in self._sites]
            if len(loop.steps) > 1:
                yield from self._run_later(markov, loop)
        self._sites = None
        self.loops.append(loop)

    def _run_later(self, markov: MarkovMessenger, loop: Loop) -> Iterator[Steps]:
        steps = loop.steps[1:]
        index = torch.arange(steps.start, steps.stop, device=self.device)
        level = functorch._vmap_increment_nesting(len(steps), "error")
        self._later.callback(functorch._vmap_decrement_nesting)
        self._later.enter_context(_Stepwise())
        checked = is_validation_enabled()
        self._later.enter_context(pyro.validation_enabled(False))  # which reads values
        self._sites = []
        with markov:
            yield Steps(functorch._add_batch_dim(index, 0, level), steps, level)
        for name, site in self._sites:
            loop.later.append(name)
            if _token(steps) not in name:
                raise UnevenError(f"the name '{name}' is not that of its step")
            if not self.worth:
                continue
            if checked and site["is_observed"]:
                value = _leave(site["value"], level, len(steps))
                _check_supports(loop, name, site["fn"], value)
            listed = site["infer"].get("_enumerate_dim") is not None
            if listed and getattr(site["fn"], "_mask", None) is not None:
                raise UnevenError("a latent has a mask of its own")
            if site["is_observed"]:
                known = torch.as_tensor(True if site["mask"] is None else site["mask"])
                pair = (_leave(x, level, len(steps)) for x in (site["value"], known))
                loop.seen[name] = tuple(pair)
            term = site_log_prob(name, site, masked=not listed)
            loop.terms[name] = _leave(term, level, len(steps))
            if listed and site["mask"] is not None:
                loop.masks[name] = _leave(torch.as_tensor(site["mask"]), level, len(steps))
        self._later.close()


def _check_supports(loop: Loop, name: str, fn: Any, value: Term) -> None:
    """Raises a ``ValueError`` for later data outside their support, which names the first step."""
    try:
        check_support(name, fn, value.tensor)
    except SupportError:
        for t, x in zip(loop.steps[1:], value.tensor, strict=value.timed):
            check_support(loop.name_at(name, t), fn, x)
        raise


def _leave(x: Tensor, level: int, size: int) -> Term:
    """Returns what a tensor is outside the vmap."""
    timed = functorch.maybe_get_level(x) == level
    return Term(functorch._remove_batch_dim(x, level, size, 0), timed) if timed else Term(x, False)
