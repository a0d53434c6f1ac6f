r"""The likelihood of each datum at draws of the continuous latents, discrete ones summed out.

.. math:: \log p(x_n \mid z) = \log \sum_k p(x_n, z, k) - \log \sum_k p(z, k)

What a datum's discrete latents make of several observed sites cannot be told apart: such sites have
one likelihood together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplvm.traces.chains import collapse
from pplvm.traces.decoding import over_draws
from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, eliminate
from pplvm.traces.factors import factors_of
from pplvm.traces.sites import DATA, look

_BATCH = 10_000_000  # numbers in the factors of the draws that are scored at once; arbitrary


class _Parts(NamedTuple):
    """Observed sites that discrete latents tie together, by a common name, and those they do not."""

    tied: str | None
    free: list[str]


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
        latents tie together have one name, that of the first of them; in a loop over time, what
        their names have in common.
    """
    even, num_draws = loops_are_even(model, *data), len(next(iter(values.values())))
    values = {n: v for n, v in values.items() if n not in discrete_latents(model, *data)}
    parts: list[_Parts] = []

    def log_probs(row: dict[str, Tensor]) -> list[Tensor]:
        latents = place(model, *data, even=even, values=row)
        graph = graph_of(model, latents, *data, even=even)
        part, terms = _terms(graph, latents.depth)
        parts[:] = [part]
        return terms

    with torch.no_grad():
        if values:
            each, size = over_draws(log_probs, values), max(1, _BATCH // _width(data))
            starts = range(0, num_draws, size)
            rows = [each({n: v[s : s + size] for n, v in values.items()}) for s in starts]
            terms = [torch.cat(columns) for columns in zip(*rows, strict=True)]
        else:
            terms = [t.expand(num_draws, *t.shape) for t in log_probs({})]
    names = ([parts[0].tied] if parts[0].tied else []) + parts[0].free
    return dict(zip(names, terms, strict=True))


def _width(data: tuple[Tensor, ...]) -> int:
    return sum(x.numel() for x in data)


def _terms(graph: Graph, depth: int) -> tuple[_Parts, list[Tensor]]:
    trace = graph.trace
    factors, homes = factors_of(trace, depth, graph.loops)
    later = {name for loop in graph.loops for name in loop.later}
    observed = {name for name, site in trace.nodes.items() if site.get("is_observed")}
    data = trace.plate_to_symbol.get(DATA, "")
    tied = [f for f in factors if homes.keys() & set(f.dims) or f.site in later]
    names = {f.site for f in tied}
    terms, common = [], None
    seen = [f.site for f in tied if f.site in observed]
    if seen:
        local = bool(data) and all(data in home for home in homes.values())
        kept = data * local
        alone = [f for f in tied if f.site not in observed]
        with_data, without = (_total(graph, some, homes, kept) for some in (tied, alone))
        terms.append(with_data - without)
        common = _common_name(graph, seen)
    free = [f for f in factors if f.site in observed and f.site not in names]
    for f in free:
        keep = data if data in f.dims else ""
        others = [i for i, d in enumerate(f.dims) if d not in keep]
        terms.append(f.term.sum(others) if others else f.term)
    return _Parts(common, [f.site for f in free]), terms


def _total(
    graph: Graph, factors: list[Factor], homes: dict[str, frozenset[str]], kept: str
) -> Tensor:
    chains, others, left = collapse(graph.loops, graph.trace, factors, homes)
    return eliminate([*others, *(c.total() for c in chains)], left, kept=kept)[0]


def _common_name(graph: Graph, seen: list[str]) -> str:
    for loop in graph.loops:
        for name in loop.later:
            if name in seen:
                return loop.common_name(name)
    return seen[0]
