"""A story at given continuous latents, as a graph of its discrete ones."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.chains import Chain, collapse
from pplvm.traces.elimination import Factor, Step, eliminate
from pplvm.traces.factors import factors_of
from pplvm.traces.judging import disagreement
from pplvm.traces.placements import MANY, NO_LOOPS, Plan, at, device_of, enumerated, plan
from pplvm.traces.rows import RowError, check_rows
from pplvm.traces.series import Loop, Series, UnevenError

# Plain runs by which a story is judged: states that one of them draws may hide what is wrong.
_PLAIN_RUNS = 6


class Graph(NamedTuple):
    """Factors whose dims are plates and discrete latents, and chains along a time axis."""

    factors: list[Factor]
    homes: dict[str, frozenset[str]]  # the plates of each discrete latent outside the chains
    chains: list[Chain]
    loops: list[Loop]
    trace: poutine.Trace
    dims: dict[str, str]  # of each site's own factor, before loops were taken out

    def total(self, best: bool = False, kept: str = "") -> tuple[Tensor, list[Step]]:
        """Sums all discrete latents out: the total, and the steps of those in no chain."""
        ends = [chain.total(best) for chain in self.chains]
        return eliminate([*self.factors, *ends], self.homes, best, kept)

    def tensors(self) -> list[Tensor]:
        """Returns all that depends on the continuous latents."""
        chained = [x for c in self.chains for x in (c.first, *c.moves, c.later)]
        return [*(f.term for f in self.factors), *chained]

    def filled(self, tensors: list[Tensor]) -> "Graph":
        """Returns the graph with other :meth:`tensors`."""
        given = iter(tensors)
        factors = [f._replace(term=next(given)) for f in self.factors]
        chains = [
            c._replace(first=next(given), moves=[next(given) for _ in c.moves], later=next(given))
            for c in self.chains
        ]
        return self._replace(factors=factors, chains=chains)


def place(model: Callable, *data: Tensor, even: bool = False, **given: Tensor) -> Plan:
    """Runs a model at continuous latents: see :func:`pplvm.traces.placements.plan`."""
    return plan(model, *data, loops=Series(device_of(data)) if even else NO_LOOPS, **given)


def graph_of(model: Callable, latents: Plan, *data: Tensor, even: bool = False) -> Graph:
    """Lists the states of discrete latents, at given continuous ones.

    Args:
        model: The story.
        latents: What :func:`place` returned.
        data: The arguments of the story.
        even: Whether its loops over time do the same at each step but the first.
    """
    loops = Series(device_of(data), worth=True) if even else NO_LOOPS
    return _graph(model, latents, loops, *data)


def _graph(model: Callable, latents: Plan, loops: Any, *data: Tensor) -> Graph:
    trace, factors, homes, found = _listed(model, latents, loops, *data)
    dims = {f.site: f.dims for f in factors}
    chains, factors, homes = collapse(found, trace, factors, homes)
    return Graph(factors, homes, chains, found, trace, dims)


def _listed(
    model: Callable, latents: Plan, loops: Any, *data: Tensor
) -> tuple[poutine.Trace, list[Factor], dict[str, frozenset[str]], list[Loop]]:
    values = {name: z.value for name, z in latents.continuous.items()}
    bounded = list(latents.discrete) if latents.num_joint_states > MANY else []
    trace = enumerated(model, values, latents.depth, *data, loops=loops, bounded=bounded)
    found = loops.loops if isinstance(loops, Series) else []
    return trace, *factors_of(trace, latents.depth, found), found


def _rows(
    model: Callable, latents: Plan, even: bool, *data: Tensor
) -> tuple[poutine.Trace, list[Factor], list[Loop]]:
    loops = Series(device_of(data), worth=True) if even else NO_LOOPS
    trace, factors, _, found = _listed(model, latents, loops, *data)
    return trace, factors, found


def loops_are_even(model: Callable, *data: Tensor) -> bool:
    """Whether a story has loops over time that may be run for all their later steps at once.

    Either way its densities at listed states are held against a plain run of it, at continuous
    latents drawn at random. Where they differ step by step too, a ``ValueError`` names the site.
    """
    device, wrong = device_of(data), None
    with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        for even in (True, False):
            try:
                loops = [Series(device, worth=worth) if even else NO_LOOPS for worth in (0, 0, 1)]
                latents = plan(model, *data, loops=loops[0])
                if not latents.discrete:
                    return False
                if even and not any(loop.later for loop in loops[0].loops):
                    continue
                u = {name: torch.randn_like(z.u) for name, z in latents.continuous.items()}
                latents = plan(model, *data, u=u, loops=loops[1])
                wrong = _wrong(model, latents, loops[2], *data)
                if wrong is None:
                    check_rows(partial(_rows, model, latents, even, *data))
            except RowError:
                raise
            except _FAILURES:  # which say what they mean when it is run in earnest
                wrong = None if not even else "a loop"
            if even and wrong is None:
                return True
    if wrong is not None:
        raise ValueError(
            f"site '{wrong}' has another log-density where the states of discrete latents are listed, "
            "in dims on the left of all plates, than at each of them alone: let it broadcast over "
            "these, reduce no dim but those of its events, and use a state of a pyro.markov loop at "
            "its own step and the next alone."
        )
    return False


_FAILURES = (
    UnevenError, ArithmeticError, AssertionError, LookupError, NotImplementedError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def _wrong(model: Callable, latents: Plan, loops: Any, *data: Tensor) -> str | None:
    trace, factors, homes, found = _listed(model, latents, loops, *data)
    for loop in found:
        masks = [term.tensor for term in loop.masks.values()]
        if any(not torch.equal(masks[0], mask) for mask in masks[1:]):
            raise UnevenError("its latents have different masks")
    collapse(found, trace, factors, homes)
    values = {name: z.value for name, z in latents.continuous.items()}
    for _ in range(1 if found else _PLAIN_RUNS):  # a loop's many steps are runs enough
        wrong = disagreement(trace, at(model, values, *data), factors, found, latents.depth)
        if wrong is not None:
            return wrong
    return None
