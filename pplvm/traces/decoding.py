r"""Discrete latents drawn from their posterior given the continuous ones.

.. math:: k \sim p(k \mid x, z)

Forward, each is summed out; backward, each is drawn given those that were summed out after it, as
a hidden Markov model is filtered and then sampled. Shapes: S draws, K states.
"""

from collections.abc import Callable

import pyro
import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, align, backtrack
from pplvm.traces.placements import Plan

_BATCH = 10_000_000  # numbers in the factors of the draws that are decoded at once; arbitrary


def decode(
    model: Callable, values: dict[str, Tensor], *data: Tensor, most_probable: bool = False
) -> dict[str, Tensor]:
    """Draws the discrete latents from their joint posterior given the continuous ones.

    Args:
        model: The story.
        values: Draws of each continuous latent on its own scale, (S, plates…, event…).
        data: The arguments of the story.
        most_probable: Whether to return the jointly most probable states instead.

    Returns:
        The states of each discrete latent, (S, plates…, event…), one for each draw.
    """
    if not values:
        raise ValueError("'values' is empty: give draws of the continuous latents, (S, …).")

    even = loops_are_even(model, *data)

    def log_probs(row: dict[str, Tensor]) -> list[Tensor]:
        latents = place(model, *data, even=even, values=row)
        return graph_of(model, latents, *data, even=even).tensors()

    with torch.no_grad():
        first = place(model, *data, even=even, values=_row(values, 0))
        if not first.discrete:
            return {}
        graph = graph_of(model, first, *data, even=even)

        def backward(tensors: list[Tensor]) -> dict[str, Tensor]:
            return decoded(graph.filled(tensors), first, most_probable)

        forward, backward = over_draws(log_probs, values), vmap(backward, randomness="different")
        size = max(1, _BATCH // sum(x.numel() for x in graph.tensors()))
        starts = range(0, len(next(iter(values.values()))), size)
        draws = [backward(forward(_row(values, slice(s, s + size)))) for s in starts]
    return {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}


def over_draws(log_probs: Callable, values: dict[str, Tensor]) -> Callable:
    """Returns the function over many draws: traced, or where it cannot be, one by one.

    A traced story is tensor operations alone, so that it need not broadcast to be vectorised.
    """

    def each(rows: dict[str, Tensor]) -> list[Tensor]:
        num_draws = len(next(iter(rows.values())))
        parts = [log_probs(_row(rows, s)) for s in range(num_draws)]
        return [torch.stack(terms) for terms in zip(*parts, strict=True)]

    ends = _row(values, [0, -1])
    exact = each(ends)
    try:
        with pyro.validation_enabled(False):  # which reads values
            together = vmap(make_fx(log_probs)(_row(values, 0)))
        found = together(ends)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return each  # slow, but right
    # A value that left for numpy would have been frozen.
    same = all(torch.allclose(a, b, equal_nan=True) for a, b in zip(found, exact, strict=True))
    return together if same else each


def decoded(graph: Graph, first: Plan, most_probable: bool) -> dict[str, Tensor]:
    """Returns the states (plates…, event…) of the discrete latents, drawn or the most probable."""
    drawn = backtrack(graph.total(most_probable)[1], most_probable)
    paths = {}  # by the name of a chain's latent at its first step
    for chain in graph.chains:
        paths |= chain.paths(drawn, most_probable)
    later = {name for loop in graph.loops for name in loop.later}
    out = {}
    for name in [n for n in first.discrete if n not in later and n not in paths]:
        symbol = graph.trace.nodes[name]["infer"]["_enumerate_symbol"]
        out[name] = _states(graph, first, name, drawn.get(symbol))
    for loop in graph.loops:
        listed = [[n for n in names if n in first.discrete] for names in (loop.first, loop.later)]
        for name, then in zip(*listed, strict=True):
            path = paths.get(name)
            for i, t in enumerate(loop.steps):
                index = None if path is None else Factor(name, path.term[i], path.dims[1:])
                out[loop.name_at(then, t) if i else name] = _states(graph, first, name, index)
    return out


def _states(graph: Graph, first: Plan, name: str, index: Factor | None) -> Tensor:
    """Returns the states (plates…, event…) of a discrete latent by their indices."""
    z, site = first.discrete[name], graph.trace.nodes[name]
    states = site["value"].reshape(-1, *z.fn.event_shape)  # (K, event…)
    if index is None:  # there is one state alone
        at = torch.zeros(z.plates, dtype=torch.long, device=states.device)
    else:
        dims = [symbol for _, symbol in sorted(site["infer"]["_dim_to_symbol"].items())]
        at = align(index, "".join(dims)).reshape(z.plates)
    return states[at.flatten()].reshape(z.plates + z.fn.event_shape)


def _row(values: dict[str, Tensor], at: int | slice | list[int]) -> dict[str, Tensor]:
    return {name: value[at] for name, value in values.items()}
