r"""Marginal probabilities of discrete latents, and how far one answer's are from another's:

.. math:: \mathrm{TV}(q, p) = \tfrac{1}{2} \textstyle\sum_k |q(k) - p(k)|,

half of what moves from one to the other: 0 if they are the same, 1 if they have no state in common.
Labels have no mean, no spread and no intervals that would mean anything.

Shapes: S draws, K states.
"""

__all__ = ["counts", "probabilities", "states", "total_variation"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pplvm import traces
from pplvm.cavi import CAVI
from pplvm.draws import Draws
from pplvm.enumeration import Enumerated


def states(answers: Mapping[str, Any], draws: Mapping[str, Draws]) -> dict[str, Tensor]:
    """Returns the states of each discrete site, (K, event…): all there are, or all that were drawn."""
    first = next(iter(draws.values()))
    sites = traces.look(first.model, *first.data)
    known: dict[str, Tensor] = {}
    for answer in answers.values():
        for name, variable in _variables(answer).items():
            known |= dict.fromkeys(variable.sites, answer.states[name].cpu())
    found = {}
    for name, value in first.values.items():
        if sites[name].fn.support.is_discrete:
            last = value.ndim - sites[name].fn.event_dim - 1  # of chains, draws and plates
            drawn = [d[name].cpu().to(value.dtype).flatten(0, last) for d in draws.values()]
            found[name] = known[name] if name in known else torch.cat(drawn).unique(dim=0)
    return found


def probabilities(answer: Any, draws: Draws, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the probability of each state of each site, (plates…, K).

    They are the answer's own marginals where it has any, otherwise the shares of its draws.
    """
    found = {}
    for name, variable in _variables(answer).items():
        p, steps = answer.marginals[name].double().cpu(), variable.sites  # (plates…, [T,] K)
        found |= dict(zip(steps, p.unbind(-2) if len(steps) > 1 else [p], strict=True))
    for name in states.keys() - found.keys():
        value = draws[name].flatten(0, 1).cpu()  # (S, plates…, event…)
        event = tuple(range(1 - states[name].ndim, 0))
        hits = [value == state for state in states[name]]
        hits = [hit.all(event) for hit in hits] if event else hits
        found[name] = torch.stack([hit.double().mean(0) for hit in hits], -1)
    return {name: found[name] for name in states}


def counts(draws: Draws, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns where each site counts, (plates…) of bool, as ``pyro.poutine.mask`` has it."""
    sites = traces.look(draws.model, *draws.data)
    found = {}
    for name in names:
        shape = [size for _, size, _ in sites[name].plates]
        mask = True if sites[name].mask is None else sites[name].mask
        found[name] = torch.as_tensor(mask).cpu().expand(shape)
    return found


def total_variation(
    q: Mapping[str, Tensor], p: Mapping[str, Tensor], counted: Mapping[str, Tensor]
) -> float:
    """Returns the mean total variation over all sites and plates that count, 0 if none does."""
    apart = [0.5 * (q[name] - p[name]).abs().sum(-1)[counted[name]].flatten() for name in p]
    whole = torch.cat(apart)
    return float(whole.mean()) if len(whole) else 0.0


def _variables(answer: Any) -> Mapping:
    """Returns the discrete latents whose marginals an answer has, those of a loop as one."""
    if isinstance(answer, Enumerated):
        return answer.listed.variables
    if isinstance(answer, CAVI) and answer.marginals:
        return answer.discrete.variables
    return {}
