r"""Mean field over discrete latents: blocks that are independent of each other, each of them exact.

A block is a chain along time of a loop, or, not structured, each of its states; outside loops it is a
latent of each datum. A sweep over M blocks takes a forward–backward pass each, O(T M K^2), and a
product with a K × K table for each pair of blocks, as :mod:`pplvm.traces.pairs` read them.

References:
    | Factorial hidden Markov models, section 3.5 and appendices C, D (Ghahramani & Jordan, 1997)
    | https://doi.org/10.1023/A:1007425814087

Shapes: T steps (1 outside loops), B rows, K states.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import one_hot

from pplvm.traces import recursions
from pplvm.traces.chains import Chain
from pplvm.traces.pairs import Block, Reader, VaryingError
from pplvm.traces.placements import at
from pplvm.traces.series import UnevenError
from pplvm.traces.sites import samples, site_log_prob

_UNEVEN = UnevenError, IndexError, NotImplementedError, RuntimeError, TypeError
_FEW = 4  # data that tables of pairs are read from; arbitrary
_LEAST = -1e30  # of logarithms, where they are weighed by probabilities that may be zero


def taken_apart(model: Callable, *data: Tensor, even: bool) -> tuple[list[Block], Tensor]:
    """Returns the blocks of a story, and the log-density, (), of what no block touches.

    Tables of pairs are read from a few data, and hold for all if these are told by them, too.
    """
    if len(data[0]) > _FEW:
        try:
            few = Reader(model, tuple(x[:_FEW] for x in data), even)
            whole = Reader(model, data, even, few)
            return whole.blocks, whole.constant()
        except (VaryingError, RuntimeError):  # or it has parameters of its own for each datum
            pass
    whole = Reader(model, data, even)
    return whole.blocks, whole.constant()


class Blocks:
    """A mean field over the discrete latents of a story that has no others.

    Args:
        model: The story.
        data: Its arguments.
        structured: Whether the states of a chain are one block, rather than each of them its own.
    """

    def __init__(self, model: Callable, *data: Tensor, structured: bool) -> None:
        self.structured = structured
        try:
            self.blocks, self.constant = taken_apart(model, *data, even=True)
        except _UNEVEN:  # then each step has latents of its own, which are no chain here
            self.blocks, self.constant = taken_apart(model, *data, even=False)
            self.structured = False
        self.variables = {block.name: block.variable for block in self.blocks}
        self.q: list[Tensor] = []  # (T, B, K) of each block
        self._judge(model, *data)

    def start(self, random: torch.Generator) -> None:
        """Breaks the symmetry between blocks."""
        dtype = self.blocks[0].chain.first.dtype
        self.q = [
            torch.randn(b.shape, generator=random, dtype=dtype).softmax(-1) for b in self.blocks
        ]

    def sweep(self) -> Tensor:
        """Updates every block in turn, and returns the ELBO in nats, ()."""
        total = self.constant
        for m, block in enumerate(self.blocks):
            seen = self._seen(m)
            first, later = block.chain.first + seen[0], block.chain.later + seen[1:]
            if self.structured or not len(later):
                q, worth = recursions.marginals(first, block.chain.moves, later, block.chain.known)
                self.q[m] = q.exp()
            else:
                self.q[m], worth = _apart(self.q[m], first, later, block.chain)
            total = total + worth.sum() - (self.q[m] * seen).sum()
        return total + self._expected()

    def marginals(self) -> dict[str, Tensor]:
        """Returns the probability of each state: (plates…, K), in loops (plates…, T, K)."""
        return {b.name: b.placed(q) for b, q in zip(self.blocks, self.q, strict=True)}

    def draws(self, num_draws: int) -> dict[str, Tensor]:
        """Draws from the mean field, site by site: (S, plates…, event…)."""
        found = {}
        for m, block in enumerate(self.blocks):
            every = vmap(lambda _, m=m: self._path(m), out_dims=-1, randomness="different")
            paths = every(torch.zeros(num_draws))  # (T, B, S)
            found |= block.values(paths)
        return found

    def _judge(self, model: Callable, *data: Tensor) -> None:
        """Raises a ``ValueError`` unless it is worth at one path what the story is worth there."""
        self.start(torch.Generator().manual_seed(0))
        paths, values = [q.argmax(-1) for q in self.q], {}
        for m, (path, block) in enumerate(zip(paths, self.blocks, strict=True)):
            values |= {name: x[0] for name, x in block.values(path[..., None]).items()}
            self.q[m] = one_hot(path, block.shape[-1]).to(self.q[m].dtype)
        worth = self.constant + self._expected()
        worth = worth + sum(_worth(b.chain, p) for b, p in zip(self.blocks, paths, strict=True))
        sites = dict(samples(at(model, values, *data)))
        plain = sum(site_log_prob(name, site).sum() for name, site in sites.items())
        for block in self.blocks:  # where a first state is masked, it is uniform here
            first = sites[block.variable.sites[0]]
            if first["mask"] is not None:
                hidden = ~torch.as_tensor(first["mask"]).expand(first["fn"].batch_shape)
                plain = plain - hidden.sum() * log(block.shape[-1])
        near = 1e-3 if plain.dtype == torch.float32 else 1e-6
        if not (worth - plain).abs() <= near * (1 + plain.abs()):
            raise ValueError(
                f"the log-density of the story is {plain:.6g} at states where its parts make "
                f"{worth:.6g}: a step of its loop over time does not do the same as the others, or a "
                "site does not broadcast over states in dims on the left of all plates."
            )

    def _seen(self, m: int) -> Tensor:
        """Returns what a block's states are worth, on average, to what others touch too: (T, B, K)."""
        block = self.blocks[m]
        total = block.chain.first.new_zeros(block.shape)
        for key, alone in block.alone.items():
            total = total + alone
            for other, pair in block.pairs[key].items():
                total = total + pair.expected(self.q[other])
        return total

    def _expected(self) -> Tensor:
        """Returns the expected log-density, (), of what several blocks touch."""
        total = self.constant.new_zeros(())
        for m, block in enumerate(self.blocks):
            for key, alone in block.alone.items():
                if m == min(key):
                    total = total + alone[..., 0].sum()
                seen = alone + sum(
                    pair.expected(self.q[other])
                    for other, pair in block.pairs[key].items()
                    if other < m
                )
                total = total + (self.q[m] * (seen - seen[..., :1])).sum()
        return total

    def _path(self, m: int) -> Tensor:
        chain = self.blocks[m].chain
        if self.structured or not len(chain.later):
            seen = self._seen(m)
            first, later = chain.first + seen[0], chain.later + seen[1:]
            return recursions.sample(first, chain.moves, later, chain.known)[..., 0]
        noise = torch.rand_like(self.q[m])
        return (self.q[m].log() - noise.log().neg().log()).argmax(-1)


def _worth(chain: Chain, path: Tensor) -> Tensor:
    """Returns the log-density, (), of a path (T, B), where masked states count nothing."""
    own = torch.cat((chain.first[None], chain.later)).gather(-1, path[..., None]).sum()
    if not len(chain.later):
        return own
    T, B = path[1:].shape
    A = chain.moves[0].expand(T, B, -1, -1).flatten(0, 1)
    moved = A[torch.arange(T * B), path[:-1].flatten(), path[1:].flatten()].view(T, B)
    return own + (moved if chain.known is None else moved[chain.known]).sum()


def _apart(q: Tensor, first: Tensor, later: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """Updates the states of even steps, then those of odd ones, given the steps beside them.

    Returns:
        Their probabilities (T, B, K), and the expected log-density of the chain plus the entropy, (B,).
    """
    b = torch.cat((first[None], later)).clamp(min=_LEAST)
    A = chain.moves[0].clamp(min=_LEAST)
    K, known = q.shape[-1], chain.known
    known = torch.ones_like(later[..., 0]) if known is None else known.to(q.dtype)

    def moved(x: Tensor, A: Tensor) -> Tensor:  # (T - 1, B, K): what the step beside expects
        x = x @ A[0, 0] if A[..., 0, 0].numel() == 1 else (x[..., None, :] @ A).squeeze(-2)
        return x * known[..., None]

    q = q.clone()
    for side in (0, 1):
        logits = b.clone()
        logits[1:] += moved(q[:-1], A)
        logits[:-1] += moved(q[1:], A.mT)
        q[side::2] = logits[side::2].softmax(-1)
    worth = (q * b).sum((0, -1)) - torch.xlogy(q, q).sum((0, -1))
    worth = worth + (q[1:] * moved(q[:-1], A)).sum((0, -1))
    return q, worth - (1 - known).sum(0) * log(K)
