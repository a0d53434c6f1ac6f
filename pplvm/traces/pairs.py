r"""Discrete latents taken apart: what each is worth alone, and what each pair of them adds.

.. math:: \log p(x \mid z_1, \dots, z_M) = c + \sum_m u_m(z_m) + \sum_{m < l} h_{ml}(z_m, z_l),

as it is for a Gaussian whose mean is a sum over blocks. The tables are read off M runs of the story,
one for each block: its own states are listed, and all others are in their first states, or one of them
in another. That no three of them meet is held against configurations at random.

Shapes: C configurations of the other blocks, T steps (1 outside loops), B rows, K states.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.chains import Chain, collapse
from pplvm.traces.elimination import Factor, align, check_size, multiply
from pplvm.traces.enumeration import Variable, placed
from pplvm.traces.factors import factors_of, time_of
from pplvm.traces.placements import NO_LOOPS, device_of, enumerated, plan
from pplvm.traces.rows import check_rows
from pplvm.traces.series import Loop, Series
from pplvm.traces.sites import PARTICLES

_CHECKED = 8  # configurations at random

Key = frozenset[int]  # the blocks that touch the same sites


class Pair(NamedTuple):
    """What one state of another block adds to the log-density of each of a block's own."""

    table: Tensor  # (K', K), or (T, B, K', K)
    rows: Tensor | None  # (T, B): 1 where the one table holds and 0 where nothing is seen

    def expected(self, q: Tensor) -> Tensor:
        """Returns the sum over the other's states, weighed by their probabilities (T, B, K')."""
        if self.rows is None:
            return (q[..., None, :] @ self.table).squeeze(-2)
        return (q @ self.table) * self.rows[..., None]


class Block(NamedTuple):
    """One factor of the mean field."""

    name: str
    variable: Variable
    chain: Chain  # of its own: transitions, and what no other block touches
    alone: dict[Key, Tensor]  # (T, B, K): what others touch too, at their first states
    pairs: dict[Key, dict[int, Pair]]  # what each other block adds to that
    trace: poutine.Trace

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns (T, B, K)."""
        return len(self.chain.later) + 1, *self.chain.first.shape

    def placed(self, x: Tensor) -> Tensor:
        """Brings (T, B, …) into the order of the latent's plates, (plates…, [T,] …)."""
        term = x.reshape(len(x), *self.chain.sizes, x.shape[-1])
        time = time_of(0) if len(self.variable.sites) > 1 else ""
        factor = Factor(self.name, term if time else term[0], time + self.chain.dims + "?")
        variable = self.variable._replace(states=x.new_empty(x.shape[-1]))
        return placed(self.trace, variable, factor)

    def values(self, paths: Tensor) -> dict[str, Tensor]:
        """Returns the states of paths (T, B, S) site by site, (S, plates…, event…)."""
        index, sites = self.placed(paths).movedim(-1, 0), self.variable.sites  # (S, plates…, [T])
        states = self.variable.states
        if len(sites) == 1:
            return {sites[0]: states[index]}
        return {site: states[index[..., t]] for t, site in enumerate(sites)}


class _Run(NamedTuple):
    """A story with one block listed."""

    trace: poutine.Trace
    factors: list[Factor]
    homes: dict[str, frozenset[str]]  # of the block's own symbols
    loops: list[Loop]
    particles: str  # the symbol of the configurations

    def homes_alone(self) -> frozenset[str]:
        """Returns the plates of the block, but that of the configurations."""
        return frozenset().union(*self.homes.values()) - {self.particles}

    def one(self, f: Factor) -> Factor:
        """Takes a factor in the first configuration."""
        if self.particles not in f.dims:
            return f
        term = f.term.select(f.dims.index(self.particles), 0)
        return Factor(f.site, term, f.dims.replace(self.particles, ""))


class VaryingError(Exception):
    """Pairs whose tables are not the same for all data."""


class Reader:
    """Runs a story with one block listed and the others in configurations, and takes it apart."""

    def __init__(
        self, model: Callable, data: tuple[Tensor, ...], even: bool, few: "Reader | None" = None
    ) -> None:
        self.model, self.data, self.even, self.few = model, data, even, few
        loops = self._loops()
        self.latents = plan(model, *data, loops=loops)
        self.then = self._twins(loops.loops) if even else {}
        self.names = [n for n in self.latents.discrete if n not in self.then.values()]
        apart = [n for n in self.names if n not in self.then]
        if self.then and apart:
            raise ValueError(
                f"site '{apart[0]}' is outside the loop over time that other discrete latents are in: "
                "cavi takes chains or latents of each datum, not both, so use exact."
            )
        self.states = [_states(self.latents.discrete[name].fn) for name in self.names]
        random = torch.Generator().manual_seed(0)
        self.random = [torch.randint(len(x), (_CHECKED,), generator=random) for x in self.states]
        self.runs = [self._run(m) for m in range(len(self.names))]
        for m in range(len(self.names)):
            check_rows(lambda m=m: self._listing(m))
        homes = [run.homes_alone() for run in self.runs]
        other = next((m for m, home in enumerate(homes) if home != homes[0]), None)
        if other is not None:
            raise ValueError(
                f"the discrete latents '{self.names[0]}' and '{self.names[other]}' are in different "
                "plates, which cavi does not tie together: use exact."
            )
        self.touching: dict[str, Key] = {}
        for m, run in enumerate(self.runs):
            for f in run.factors:
                if run.homes.keys() & set(f.dims):
                    self.touching[f.site] = self.touching.get(f.site, Key()) | {m}

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, laid out."""
        return [self.block(m) for m in range(len(self.names))]

    def constant(self) -> Tensor:
        """Returns the log-density, (), of what is observed and touched by no block."""
        run = self.runs[0]
        total = run.factors[0].term.new_zeros(())
        for f in map(run.one, run.factors):
            if f.site not in self.touching and run.trace.nodes[f.site]["is_observed"]:
                again = [x for x in run.loops if f.site in x.terms and time_of(0) not in f.dims]
                total = total + f.term.sum() * (len(again[0].steps) - 1 if again else 1)
        return total

    def block(self, m: int) -> Block:
        """Lays out one block."""
        run, name, z = self.runs[m], self.names[m], self.latents.discrete[self.names[m]]
        chain = self._chain(m)
        alone, pairs = {}, {}
        for key in dict.fromkeys(self.touching.values()):
            if m in key and len(key) > 1:
                alone[key], pairs[key] = self._taken_apart(m, key, self._table(m, key, chain))
        title, sites = name, [name]
        if self.then:
            loop, then = run.loops[0], self.then[name]
            title = loop.common_name(then) or name
            sites += [loop.name_at(then, t) for t in loop.steps[1:]]
        variable = Variable(sites, self.states[m], z.plates)
        return Block(title, variable, chain, alone, pairs, run.trace)

    def _loops(self) -> Series:
        return Series(device_of(self.data), worth=True) if self.even else NO_LOOPS

    def _twins(self, loops: list[Loop]) -> dict[str, str]:
        """Returns the name at later steps of each latent of a loop."""
        found = {}
        for loop in loops:
            sides = [[n for n in x if n in self.latents.discrete] for x in (loop.first, loop.later)]
            found |= dict(zip(*sides, strict=True)) if loop.later else {}
        if len({loop for loop in loops if set(loop.first) & found.keys()}) > 1:
            raise ValueError("the discrete latents are in several loops over time: use exact.")
        return found

    def _configurations(self, m: int) -> list[Tensor]:
        """Returns the index (C,) of each block's state: all first, one other, and at random."""
        sizes = [len(x) for x in self.states]
        others = [] if self.few else [o for o in range(len(sizes)) if o != m]
        singles = [(o, k) for o in others for k in range(1, sizes[o])]
        return [
            torch.cat(
                (torch.tensor([0, *(k if o == i else 0 for o, k in singles)]), self.random[i])
            )
            for i in range(len(sizes))
        ]

    def _run(self, m: int) -> _Run:
        depth, values = self.latents.depth, {}
        configurations = self._configurations(m)
        C = len(configurations[0])
        for i, (name, states) in enumerate(zip(self.names, self.states, strict=True)):
            if i != m:
                value = states[configurations[i]].reshape(C, *[1] * depth, *states.shape[1:])
                values |= dict.fromkeys((name, self.then.get(name, name)), value)
        loops, plate = self._loops(), pyro.plate(PARTICLES, C, dim=-1 - depth)
        trace = enumerated(self.model, values, depth + 1, *self.data, loops=loops, plate=plate)
        found = loops.loops if self.even else []
        factors, homes = factors_of(trace, depth + 1, found)
        return _Run(trace, factors, homes, found, trace.plate_to_symbol[PARTICLES])

    def _listing(self, m: int) -> tuple[poutine.Trace, list[Factor], list[Loop]]:
        run = self._run(m)
        return run.trace, run.factors, run.loops

    def _chain(self, m: int) -> Chain:
        """Returns a block by itself, with what it alone touches."""
        run, name = self.runs[m], self.names[m]
        own = [run.one(f) for f in run.factors if self.touching.get(f.site) == {m}]
        homes = {symbol: home - {run.particles} for symbol, home in run.homes.items()}
        if self.then:
            together = self.touching[name] | self.touching[self.then[name]]
            if together != {m}:
                names = ", ".join(f"'{self.names[i]}'" for i in sorted(together))
                raise ValueError(
                    f"the latents {names} move together, not each by itself: use exact."
                )
            (chain,), _, _ = collapse(run.loops, run.trace, own, homes)
            return chain
        ((symbol, home),) = homes.items()
        every = [f for f in map(run.one, run.factors) if symbol in f.dims]
        sizes = {d: n for f in every for d, n in zip(f.dims, f.term.shape, strict=True)}
        dims = "".join(sorted(home))
        first = every[0].term.new_zeros([sizes[d] for d in dims + symbol])
        for f in own:
            first = first + align(multiply(f, home, homes), dims + symbol)
        K, shape = first.shape[-1], tuple(sizes[d] for d in dims)
        first = first.reshape(-1, K)
        moves, later = [first.new_zeros(1, 1, K, K)], first.new_zeros(0, *first.shape)
        return Chain([name], "", dims, home, shape, first, moves, later, None, [[0]], [K])

    def _table(self, m: int, key: Key, chain: Chain) -> Tensor:
        """Returns what all sites touched by the same blocks are worth, (C, T, B, K)."""
        run, name, T = self.runs[m], self.names[m], len(chain.later) + 1
        C, K = len(self._configurations(m)[0]), len(self.states[m])
        check_size(C * T * chain.first.numel(), self.names)
        table = chain.first.new_zeros(C, T, *chain.first.shape)
        own = run.trace.nodes[name]["infer"]["_enumerate_symbol"]
        for f in run.factors:
            if self.touching.get(f.site) != key:
                continue
            later = bool(run.loops) and f.site in run.loops[0].terms
            now = run.trace.nodes[self.then[name]]["infer"]["_enumerate_symbol"] if later else own
            if later and own in f.dims:
                raise ValueError(
                    f"site '{f.site}' depends on states of the step before, which chains that are "
                    "independent of each other do not tie together: use exact."
                )
            time = time_of(0) * later
            kept = frozenset(chain.dims + run.particles + time)
            term = align(multiply(f, kept, run.homes), run.particles + time + chain.dims + now)
            term = term.expand(C, *term.shape[1 : 1 + later], *chain.sizes, K)
            if later:
                table[:, 1:] += term.reshape(C, -1, *chain.first.shape)
            else:
                table[:, 0] += term.reshape(C, *chain.first.shape)
        return table

    def _taken_apart(self, m: int, key: Key, table: Tensor) -> tuple[Tensor, dict[int, Pair]]:
        """Returns what a block's states are worth alone, and what those of each other add."""
        site = next(site for site, blocks in self.touching.items() if blocks == key)
        if not table.isfinite().all():
            raise ValueError(
                f"site '{site}' is impossible in some joint states, of which a mean field has no "
                "expectation: use exact."
            )
        alone, tested = table[0], table[-_CHECKED:]
        added = self._added(m, key, table) if self.few is None else self.few.blocks[m].pairs[key]
        if self.few is not None:
            return alone, self._for_all(added, alone, tested)
        told = alone + sum(x[self.random[other]] for other, x in added.items())
        if not _close(told, tested).all():
            names = ", ".join(f"'{self.names[i]}'" for i in sorted(key))
            raise ValueError(
                f"site '{site}' depends on {names} other than by a sum over pairs of them, so that "
                "their mean field has no closed form: use exact, or fit with a guide."
            )
        return alone, {other: _thin(x) for other, x in added.items()}

    def _added(self, m: int, key: Key, table: Tensor) -> dict[int, Tensor]:
        """Returns what each state of each other block adds to those of a block, (K', T, B, K)."""
        found, at = {}, 1
        for other, states in enumerate(self.states):
            if other == m:
                continue
            if other in key:
                added = table[at : at + len(states) - 1] - table[0]
                added = added - added[..., :1]  # beside what is the same for all of a block's own
                found[other] = torch.cat((torch.zeros_like(table[:1]), added))
            at += len(states) - 1
        return found

    def _for_all(self, pairs: dict[int, Pair], alone: Tensor, tested: Tensor) -> dict[int, Pair]:
        """Returns the tables of a few data with the rows of all in which they hold."""
        if any(pair.rows is None for pair in pairs.values()):
            raise VaryingError
        added = [pair.table[self.random[other]][:, None, None] for other, pair in pairs.items()]
        same, blind = _close(alone + sum(added), tested), _close(alone.expand_as(tested), tested)
        if not (same | blind).all():
            raise VaryingError
        return {other: Pair(pair.table, same.to(alone.dtype)) for other, pair in pairs.items()}


def _close(told: Tensor, tested: Tensor) -> Tensor:
    """Returns in which rows, (T, B), two tables (C, T, B, K) differ by the same for all states."""
    left = (told - told[..., :1]) - (tested - tested[..., :1])
    return left.abs().amax((0, 3)) <= _tolerance(tested) * (1 + tested.abs().amax())


def _states(fn: torch.distributions.Distribution) -> Tensor:
    """Returns the states (K, event…) of a discrete latent."""
    states = fn.enumerate_support(expand=False)
    return states.reshape(len(states), *fn.event_shape)


def _thin(added: Tensor) -> Pair:
    """Keeps one table for all rows, if those that differ see nothing: (K', T, B, K)."""
    sizes = added.abs().amax((0, 3))  # (T, B)
    t, b = divmod(int(sizes.argmax()), sizes.shape[1])
    table = added[:, t, b]
    near = _tolerance(added) * (1 + table.abs().amax())
    same = (added - table[:, None, None]).abs().amax((0, 3)) <= near
    if (same | (sizes <= near)).all():
        return Pair(table.clone(), same.to(added.dtype))
    return Pair(added.permute(1, 2, 0, 3).contiguous(), None)


def _tolerance(x: Tensor) -> float:
    return 1e-9 if x.dtype == torch.float64 else 1e-4
