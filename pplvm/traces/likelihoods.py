r"""The likelihood of each datum at draws of the continuous latents, discrete ones summed out.

.. math:: \log p(x_n \mid z) = \log \sum_k p(x_n, z, k) - \log \sum_k p(z, k)

What a datum's discrete latents make of several observed sites cannot be told apart: such sites have
one likelihood together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.traces.chains import collapse, over_time
from pplvm.traces.decoding import over_draws
from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, eliminate
from pplvm.traces.factors import factors_of, time_of
from pplvm.traces.series import Loop
from pplvm.traces.sites import DATA, look

_BATCH = 10_000_000  # numbers in the factors of the draws that are scored at once; arbitrary


def discrete_latents(model: Callable, *data: Tensor) -> set[str]:
    """Returns the discrete latents of a model whose states can be listed."""
    sites = look(model, *data).values()
    return {
        s.name
        for s in sites
        if s.kind == "latent" and s.fn.support.is_discrete and s.fn.has_enumerate_support
    }


def summed_pointwise(
    model: Callable, values: dict[str, Tensor], *data: Tensor
) -> dict[str, Tensor]:
    """Returns the log-density of what is observed at draws of the continuous latents.

    Args:
        model: The story.
        values: Draws (P, plates…, event…); those of discrete latents are not looked at.
        data: The arguments of the story.

    Returns:
        (P, N) by the name of each site in the data plate, (P,) of others. Sites that discrete
        latents tie together have one name, that of the first of them, and so have those of a loop
        over time: what their names have in common.
    """
    even, num_draws = loops_are_even(model, *data), len(next(iter(values.values())))
    values = {n: v for n, v in values.items() if n not in discrete_latents(model, *data)}
    names: list[str] = []

    def log_probs(row: dict[str, Tensor]) -> list[Tensor]:
        latents = place(model, *data, even=even, values=row)
        found = _terms(graph_of(model, latents, *data, even=even), latents.depth)
        names[:] = found
        return list(found.values())

    with torch.no_grad():
        if values:
            each, size = over_draws(log_probs, values), max(1, _BATCH // _width(data))
            starts = range(0, num_draws, size)
            rows = [each({n: v[s : s + size] for n, v in values.items()}) for s in starts]
            terms = [torch.cat(columns) for columns in zip(*rows, strict=True)]
        else:
            terms = [t.expand(num_draws, *t.shape) for t in log_probs({})]
    return dict(zip(names, terms, strict=True))


def _width(data: tuple[Tensor, ...]) -> int:
    return sum(x.numel() for x in data)


def _terms(graph: Graph, depth: int) -> dict[str, Tensor]:
    """Returns the log-densities (N,) or () by the names that they are to have."""
    trace, loops = graph.trace, graph.loops
    factors, homes = factors_of(trace, depth, loops)
    observed = {name for name, site in trace.nodes.items() if site.get("is_observed")}
    data = trace.plate_to_symbol.get(DATA, "")
    common = {n: loop.common_name(b) for loop in loops for a, b in _pairs(loop) for n in (a, b)}
    steps = {n: (i, loop) for i, loop in enumerate(loops) for n in loop.later}
    tied = [f for f in factors if homes.keys() & set(f.dims)]
    found: dict[str, Tensor] = {}
    for f in factors:
        if f.site not in observed or homes.keys() & set(f.dims):
            continue
        if f.site in steps:
            number, loop = steps[f.site]
            f = over_time(f, time_of(number), len(loop.steps) - 1)
        others = [i for i, d in enumerate(f.dims) if d != data]
        name = common.get(f.site, f.site)
        found[name] = found.get(name, 0.0) + (f.term.sum(others) if others else f.term)
    seen = [f.site for f in tied if f.site in observed]
    if seen:
        kept = data if data and all(data in home for home in homes.values()) else ""
        alone = [f for f in tied if f.site not in observed]
        with_data, without = (_total(graph, some, homes, kept) for some in (tied, alone))
        name = common.get(seen[0], seen[0])
        found[seen[0] if name in found else name] = with_data - without
    return found


def _pairs(loop: Loop) -> list[tuple[str, str]]:
    return list(zip(loop.first, loop.later, strict=len(loop.steps) > 1)) if loop.later else []


def _total(
    graph: Graph, factors: list[Factor], homes: dict[str, frozenset[str]], kept: str
) -> Tensor:
    chains, others, left = collapse(graph.loops, graph.trace, factors, homes)
    return eliminate([*others, *(c.total() for c in chains)], left, kept=kept)[0]
