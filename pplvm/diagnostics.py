"""How far draws and fits are to be trusted, in numbers and in words.

References:
    | Rank-normalization, folding, and localization: an improved R̂ (Vehtari et al., 2021)
    | https://doi.org/10.1214/20-BA1221
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from arviz_base import dict_to_dataset
from arviz_stats import loo
from arviz_stats.base import array_stats
from torch import Tensor
from xarray import DataTree

from pplvm import traces
from pplvm.draws import Draws

# The thresholds of Vehtari et al. (2021; 2024) and of Burda et al. (2016, appendix C).
MOST_RHAT, LEAST_ESS, MOST_KHAT, LEAST_ACTIVITY = 1.01, 400, 0.7, 0.01


class Mixing(NamedTuple):
    """The worst of a set of chains."""

    rhat: float
    rhat_at: str  # the scalar that has it
    ess_bulk: float
    ess_tail: float
    divergences: int


def mixing(draws: Draws) -> Mixing:
    """Computes rank-normalised split-R̂ and effective sample sizes over all scalars.

    Discrete latents, which are drawn given the others, tell nothing of how these mix.
    """
    decoded = traces.discrete_latents(draws.model, *draws.data)
    draws = replace(draws, values={n: v for n, v in draws.values.items() if n not in decoded})
    names = scalar_names(draws)
    flat = flatten(draws).movedim(-1, 0).double().numpy()  # (D, C, S)
    rhat = torch.as_tensor(array_stats.rhat(flat))
    bulk = array_stats.ess(flat, method="bulk")
    tail = array_stats.ess(flat, method="tail", prob=(0.05, 0.95))
    worst = int(rhat.nan_to_num(0.0).argmax())
    diverging = draws.stats.get("diverging", torch.zeros(1))
    return Mixing(
        float(rhat[worst]), names[worst], float(bulk.min()), float(tail.min()), int(diverging.sum())
    )


def flatten(draws: Draws, names: Sequence[str] | None = None) -> Tensor:
    """Returns the draws of these sites side by side, (C, S, scalars)."""
    parts = [draws[name].cpu() for name in names or draws.values]
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in parts], dim=-1)


class Loo(NamedTuple):
    """Leave-one-out predictive density."""

    elpd: float  # summed over the data, in nats
    error: float
    khat: Tensor  # (data,)


def psis_loo(draws: Draws) -> Loo | None:
    """Estimates the expected log predictive density by PSIS-LOO, where that has a meaning.

    It has none where a datum has latents of its own, which leaving it out would leave unknown
    (discrete ones are summed out),
    nor for several observed sites, whose shares of a datum Pyro does not tell, nor for a story
    without anything that the data share.
    """
    sites = traces.look(draws.model, *draws.data)
    left = draws.values.keys() - traces.discrete_latents(draws.model, *draws.data)
    if not left or any(traces.in_data_plate(sites[name]) for name in left):
        return None
    likelihood = draws.log_likelihood()
    if len(likelihood) != 1 or next(iter(likelihood.values())).ndim < 3:
        return None
    tree = DataTree.from_dict(
        {
            "posterior": dict_to_dataset({n: v.numpy() for n, v in draws.values.items()}),
            "log_likelihood": dict_to_dataset({n: v.numpy() for n, v in likelihood.items()}),
        }
    )
    with warnings.catch_warnings():
        # The k̂ that ArviZ warns of is returned, and the table says in words which are too high.
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution")
        result = loo(tree, pointwise=True)
    khat = torch.as_tensor(result.pareto_k.values).flatten()
    return Loo(float(result.elpd), float(result.se), khat)


def collapsed(draws: Draws) -> tuple[int, int]:
    """Returns how many dims of the data's own latents have collapsed, and of how many.

    A dim has collapsed if its posterior mean hardly differs from datum to datum: if the variance
    of that mean is below 1 % of the variance of the draws.
    """
    sites = traces.look(draws.model, *draws.data)
    dead = total = 0
    for name, value in draws.values.items():
        if not traces.in_data_plate(sites[name]) or len(draws.data[0]) < 10:
            continue
        axis = [n for n, _, _ in sites[name].plates].index(traces.DATA)
        value = value if value.is_floating_point() else value.float()  # discrete latents
        value = value.flatten(0, 1).movedim(1 + axis, 1)[..., None].flatten(2)  # (S, N, L)
        activity = value.mean(0).var(0) / value.flatten(0, 1).var(0).clamp(min=1e-30)
        dead += int((activity < LEAST_ACTIVITY).sum())
        total += activity.numel()
    return dead, total


def still_rising(bound: Sequence[float]) -> float:
    """Returns by how many nats a datum the bound rose over the last tenth of the steps, or 0.

    That is from the middle of its first half to that of its second, along a line fitted to it.
    A rise counts if it is over 0.05 nats and over four standard errors, for which consecutive
    steps are averaged in fives.
    """
    tail = torch.tensor(bound[-max(len(bound) // 10, 1) :], dtype=torch.float64)
    if len(tail) < 40:
        return 0.0
    blocks = tail[len(tail) % 5 :].unflatten(0, (-1, 5)).mean(1)
    B, time = len(blocks), torch.arange(len(blocks), dtype=torch.float64)
    time = time - time.mean()
    slope = float(time @ blocks / (time @ time))
    noise = float((blocks - blocks.mean() - slope * time).square().sum()) / (B - 2)
    rise, error = slope * B / 2, math.sqrt(noise / float(time @ time)) * B / 2
    return rise if rise > max(0.05, 4 * error) else 0.0


def scalar_names(draws: Draws) -> list[str]:
    """Returns the name of each scalar that :func:`flatten` lays out, such as ``z[22, 5]``."""
    return [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name, value in draws.values.items()
        for index in itertools.product(*map(range, value.shape[2:]))
    ]
