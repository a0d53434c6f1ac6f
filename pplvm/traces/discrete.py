"""A story at given continuous latents, as a graph of its discrete ones."""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.chains import Chain, collapse
from pplvm.traces.elimination import Factor, Step, eliminate
from pplvm.traces.factors import factors_of
from pplvm.traces.placements import MANY, NO_LOOPS, Plan, device_of, enumerated, plan
from pplvm.traces.series import Beginning, Loop, Series, UnevenError

# Steps by which a loop is judged: the third is the first to see what the one before passed on.
_JUDGED = 4


class Graph(NamedTuple):
    """Factors whose dims are plates and discrete latents, and chains along a time axis."""

    factors: list[Factor]
    homes: dict[str, frozenset[str]]  # the plates of each discrete latent outside the chains
    chains: list[Chain]
    loops: list[Loop]
    trace: poutine.Trace

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


def _graph(model: Callable, latents: Plan, loops: object, *data: Tensor) -> Graph:
    values = {name: z.value for name, z in latents.continuous.items()}
    bounded = list(latents.discrete) if latents.num_joint_states > MANY else []
    trace = enumerated(model, values, latents.depth, *data, loops=loops, bounded=bounded)
    found = loops.loops if isinstance(loops, Series) else []
    factors, homes = factors_of(trace, latents.depth, found)
    chains, factors, homes = collapse(found, trace, factors, homes)
    return Graph(factors, homes, chains, found, trace)


def loops_are_even(model: Callable, *data: Tensor) -> bool:
    """Whether a story has loops over time that may be run for all their later steps at once.

    Their first steps are run both ways, at continuous latents drawn at random, and must agree.
    """
    device, limit = device_of(data), _JUDGED
    try:
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            whole = Series(device)
            latents = plan(model, *data, loops=whole)
            if not latents.discrete or not any(loop.later for loop in whole.loops):
                return False
            _graph(model, latents, Series(device, worth=True), *data)
            torch.manual_seed(0)
            u = {name: torch.randn_like(z.u) for name, z in latents.continuous.items()}
            ways = [
                (Beginning(limit), Beginning(limit)),
                (Series(device, limit=limit), Series(device, worth=True, limit=limit)),
            ]
            want, got = (
                _graph(model, plan(model, *data, u=u, loops=first), second, *data).total()[0]
                for first, second in ways
            )
    except (UnevenError, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError,
            ValueError):  # fmt: skip
        return False
    # A story may hold tensors of float32 where its data are of float64; what is wrong is far off.
    return bool(want.isfinite()) and torch.allclose(got.to(want), want, rtol=1e-4)
