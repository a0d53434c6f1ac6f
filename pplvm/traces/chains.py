r"""Loops over time as factors of a graph: each is summed out along its time axis.

A loop's later factors mention the states of the step before, i, and of their own, j. Those that
mention an i are the matrices A_t(i, j) of :mod:`pplvm.traces.recursions`; latents that such factors
have in common move together, as one latent whose states are all of their combinations.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces import recursions
from pplvm.traces.elimination import Factor, align, check_homes, check_size, multiply, union
from pplvm.traces.factors import named, time_of
from pplvm.traces.series import Loop, UnevenError


class Chain(NamedTuple):
    """A loop ready for the recursions, with a batch dim for the rows of all other dims."""

    names: list[str]  # of the loop's latents, at its first step
    time: str
    dims: str  # the other dims: plates, and discrete latents outside the loop
    plates: frozenset[str]  # those of them that are plates
    sizes: tuple[int, ...]  # theirs
    first: Tensor  # (B, *K)
    moves: list[Tensor]  # (T - 1 or 1, B or 1, K, K) each
    later: Tensor  # (T - 1, B, *K)
    known: Tensor | None  # (T - 1, B)
    groups: list[list[int]]  # which of the latents each of the M states is made of
    states: list[int]  # how many states each of the latents has

    def total(self, best: bool = False) -> Factor:
        """Returns the sum over all paths, or the largest summand."""
        sums = recursions.log_maximum if best else recursions.log_normaliser
        term = sums(self.first, self.moves, self.later, self.known)
        return Factor(self.names[0], term.reshape(self.sizes), self.dims)

    def paths(self, drawn: dict[str, Factor], best: bool = False) -> dict[str, Factor]:
        """Draws a path, or returns the most probable one, given the latents outside the loop.

        Args:
            drawn: Their indices.
            best: Whether the most probable path is wanted.

        Returns:
            The index of each latent's state at each step, time being its first dim.
        """
        plates = "".join(d for d in self.dims if d not in drawn)
        rows = torch.zeros((), dtype=torch.long, device=self.first.device)
        for dim, size in zip(self.dims, self.sizes, strict=True):
            every = torch.arange(size, device=rows.device)
            index = drawn[dim] if dim in drawn else Factor("", every, dim)
            rows = rows * size + align(index, plates)
        chosen = rows.flatten()

        def of(x: Tensor) -> Tensor:  # (T, B or 1, …)
            return x[:, chosen] if x.shape[1] > 1 else x

        parts = self.first[chosen], [of(A) for A in self.moves], of(self.later)
        known = None if self.known is None else of(self.known)
        walk = recursions.most_probable if best else recursions.sample
        path, found = walk(*parts, known), {}  # (T, B, M)
        for m, group in enumerate(self.groups):
            apart = torch.unravel_index(path[..., m], [self.states[i] for i in group])
            for i, index in zip(group, apart, strict=True):
                term = index.reshape(len(index), *rows.shape)
                found[self.names[i]] = Factor(self.names[i], term, self.time + plates)
        return found


def collapse(
    loops: Sequence[Loop],
    trace: poutine.Trace,
    factors: list[Factor],
    homes: dict[str, frozenset[str]],
) -> tuple[list[Chain], list[Factor], dict[str, frozenset[str]]]:
    """Takes loops out of a graph: returns them, and the factors and latents that are left."""
    chains = []
    for number, loop in enumerate(loops):
        if loop.later:
            chain, factors = _chain_of(loop, time_of(number), trace, factors, homes)
            mine = {_symbol(trace, name) for name in (*loop.first, *loop.later)}
            homes = {s: home for s, home in homes.items() if s not in mine}
            chains += [chain] if chain is not None else []
    return chains, factors, homes


def _chain_of(
    loop: Loop,
    time: str,
    trace: poutine.Trace,
    factors: list[Factor],
    homes: dict[str, frozenset[str]],
) -> tuple[Chain | None, list[Factor]]:
    """Lays out a loop, and returns what is left of the factors: those without its latents."""
    T = len(loop.steps) - 1
    before, now = ([_symbol(trace, n) for n in names] for names in (loop.first, loop.later))
    before, now = ([s for s in symbols if s in homes] for symbols in (before, now))
    if len(before) != len(now):
        raise UnevenError("its first step has other latents than later ones")
    if not before:
        return None, [over_time(f, time, T) if f.site in loop.terms else f for f in factors]
    home = homes[before[0]]
    if any(homes[s] != home for s in (*before, *now)):
        raise UnevenError("its latents are in different plates")
    mine = set(before + now)
    kept = home | {time}
    check_homes({s: [f for f in factors if s in f.dims] for s in mine}, homes)
    touched = [f for f in factors if mine & set(f.dims)]
    later = [multiply(f, kept, homes) for f in touched if f.site in loop.terms]
    first = [multiply(f, home, homes) for f in touched if f.site not in loop.terms]
    rest = [
        over_time(f, time, T) if f.site in loop.terms else f
        for f in factors
        if not mine & set(f.dims)
    ]
    names = [name for name in loop.first if _symbol(trace, name) in before]
    seen = [f for f in later if _symbol(trace, f.site) is None and set(f.dims) & set(before)]
    if loop.masks and seen:
        raise UnevenError("what is seen depends on the state before, which a mask would hide")
    chain = _laid_out(names, before, now, first, later, T, time)
    known = _known(loop, trace, chain.dims, chain.sizes)
    return chain._replace(plates=frozenset(chain.dims) - homes.keys(), known=known), rest


def _laid_out(
    names: list[str],
    before: list[str],
    now: list[str],
    first: list[Factor],
    later: list[Factor],
    T: int,
    time: str,
) -> Chain:
    """Sums the factors of a loop to the tensors of the recursions.

    Args:
        names: The loop's latents.
        before: The symbols of its latents at the step before.
        now: Their symbols at a later step.
        first: The factors of the first step.
        later: Those of the later ones.
        T: The number of later steps.
        time: The symbol of their axis.
    """
    mine = {*before, *now}
    sizes = {d: n for f in (*first, *later) for d, n in zip(f.dims, f.term.shape, strict=True)}
    dims = "".join(d for d in union([*first, *later]) if d not in mine and d != time)
    groups = _groups(before, now, later)
    states, rows = [sizes[s] for s in before], prod(sizes[d] for d in dims)
    squares = [prod(states[i] ** 2 for i in group) for group in groups]
    check_size(rows * max(*squares, prod(states) * (T + 1)), names)

    def laid(terms: list[Factor], lead: str, *parts: str) -> Tensor:
        terms = [_once(f, dims) for f in terms]
        return _summed(terms, lead, dims, parts, sizes, first[0].term)

    def symbols(names: list[str]) -> list[str]:
        return ["".join(names[i] for i in group) for group in groups]

    moves = [
        laid([f for f in later if set(f.dims) & set(i)], time, i, j)
        for i, j in zip(symbols(before), symbols(now), strict=True)
    ]
    emitted = [f for f in later if not set(f.dims) & set(before)]
    here, there = laid(first, "", *symbols(before)), laid(emitted, time, *symbols(now))
    dtype = max((x.dtype for x in (here, there, *moves)), key=lambda dtype: dtype.itemsize)
    shape = (rows, *(A.shape[-1] for A in moves))
    return Chain(
        names=names,
        time=time,
        dims=dims,
        plates=frozenset(),
        sizes=tuple(sizes[d] for d in dims),
        first=here.to(dtype).expand(shape),
        moves=[A.to(dtype) for A in moves],
        later=there.to(dtype).expand(T, *shape),
        known=None,
        groups=groups,
        states=states,
    )


def _summed(
    terms: list[Factor],
    lead: str,
    dims: str,
    parts: tuple[str, ...],
    sizes: dict[str, int],
    like: Tensor,
) -> Tensor:
    """Sums factors to (T - 1 or 1, B or 1, K, …), one K for each part, a string of symbols."""
    rows = dims if set(union(terms)) & set(dims) else ""
    order = lead + rows + "".join(parts)
    shape = [prod(sizes[d] for d in part) for part in (rows, *parts)]
    if not terms:
        return like.new_zeros([1] * len(lead) + shape)
    total = sum(align(f, order) for f in terms)
    steps = total.shape[: len(lead)]
    return total.expand(*steps, *(sizes[d] for d in order[len(lead) :])).reshape(*steps, *shape)


def _once(factor: Factor, rows: str) -> Factor:
    """Takes one row of those that are all the same, being repeated by a plate."""
    term, dims = factor.term, factor.dims
    for d in [d for d in dims if d in rows and term.stride(dims.index(d)) == 0]:
        term, dims = term.select(dims.index(d), 0), dims.replace(d, "")
    return Factor(factor.site, term, dims)


def over_time(factor: Factor, time: str, T: int) -> Factor:
    """Sums a factor of a loop's T later steps, in which no latent of the loop is, over them."""
    if time not in factor.dims:
        return factor._replace(term=T * factor.term)
    return Factor(factor.site, factor.term.sum(0), factor.dims.replace(time, ""))


def _symbol(trace: poutine.Trace, name: str) -> str | None:
    return trace.nodes[name]["infer"].get("_enumerate_symbol")


def _groups(before: list[str], now: list[str], later: list[Factor]) -> list[list[int]]:
    """Returns the latents that move together, by their numbers."""
    groups = [{i} for i in range(len(before))]
    for factor in later:
        if not set(factor.dims) & set(before):
            continue
        number = {s: i for symbols in (before, now) for i, s in enumerate(symbols)}
        joined = {number[d] for d in factor.dims if d in number}
        touched = [g for g in groups if g & joined]
        groups = [g for g in groups if not g & joined] + [set().union(*touched)]
    return sorted(sorted(g) for g in groups)


def _known(loop: Loop, trace: poutine.Trace, dims: str, sizes: tuple[int, ...]) -> Tensor | None:
    """Returns at which later steps the latents are not masked, (T - 1, B)."""
    if not loop.masks:
        return None
    if len(loop.masks) != sum(_symbol(trace, name) is not None for name in loop.later):
        raise UnevenError("some of its latents are masked and some are not")
    name, mask = next(iter(loop.masks.items()))
    factor, T = named(name, trace.nodes[name], mask, time_of(0), 0), len(loop.steps) - 1
    wide = align(factor, time_of(0) + dims)
    return wide.expand(T, *sizes).reshape(T, -1)
