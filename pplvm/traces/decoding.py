r"""Discrete latents drawn from their posterior given the continuous ones.

.. math:: k \sim p(k \mid x, z)

Forward, each is summed out; backward, each is drawn given those that were summed out after it, as
a hidden Markov model is filtered and then sampled. Shapes: S draws, K states.
"""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pplvm.traces.elimination import Factor, align, backtrack, eliminate
from pplvm.traces.placements import Plan, enumerated, plan
from pplvm.traces.potentials import factors_of

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

    def log_probs(row: dict[str, Tensor]) -> list[Tensor]:
        latents = plan(model, *data, values=row)
        return [f.term for f in factors_of(enumerated(model, latents, *data), latents.depth)[0]]

    with torch.no_grad():
        first = plan(model, *data, values=_row(values, 0))
        if not first.discrete:
            return {}
        trace = enumerated(model, first, *data)
        factors, homes = factors_of(trace, first.depth)

        def backward(terms: list[Tensor]) -> dict[str, Tensor]:
            filled = [f._replace(term=term) for f, term in zip(factors, terms, strict=True)]
            _, steps = eliminate(filled, homes, most_probable)
            return _states(trace, first, backtrack(steps, most_probable))

        forward, backward = _over_draws(log_probs, values), vmap(backward, randomness="different")
        size = max(1, _BATCH // sum(factor.term.numel() for factor in factors))
        starts = range(0, len(next(iter(values.values()))), size)
        draws = [backward(forward(_row(values, slice(s, s + size)))) for s in starts]
    return {name: torch.cat([draw[name] for draw in draws]) for name in first.discrete}


def _over_draws(log_probs: Callable, values: dict[str, Tensor]) -> Callable:
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


def _states(trace: poutine.Trace, first: Plan, drawn: dict[str, Factor]) -> dict[str, Tensor]:
    """Returns the states (plates…, event…) of the discrete latents by the indices drawn."""
    out = {}
    for name, z in first.discrete.items():
        site, event = trace.nodes[name], z.fn.event_shape
        states = site["value"].reshape(-1, *event)  # (K, event…)
        index = torch.zeros(z.plates, dtype=torch.long, device=states.device)
        if len(states) > 1:
            symbols = sorted(site["infer"]["_dim_to_symbol"].items())
            dims = "".join(symbol for _, symbol in symbols)
            index = align(drawn[site["infer"]["_enumerate_symbol"]], dims).reshape(z.plates)
        out[name] = states[index.flatten()].reshape(z.plates + event)
    return out


def _row(values: dict[str, Tensor], at: int | slice | list[int]) -> dict[str, Tensor]:
    return {name: value[at] for name, value in values.items()}
