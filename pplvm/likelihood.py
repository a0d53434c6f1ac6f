r"""The log marginal likelihood by importance sampling, and how far to trust it.

.. math:: \log p(x) \approx \log \tfrac{1}{P} \sum_p \frac{p(x, z_p)}{q(z_p \mid x)},
    \qquad z_p \sim q(z \mid x).

References:
    | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
    | https://arxiv.org/abs/1507.02646
"""

__all__ = ["LogMarginal", "log_marginal"]

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from pplvm import traces
from pplvm.batches import as_tensors, check_count, check_data
from pplvm.contract import bind
from pplvm.likelihood_states import SoleStates, log_marginal_by_listing

_NEGLIGIBLE = 0.05  # nats; arbitrary


class LogMarginal(NamedTuple):
    """An estimate for each of N data; for N = 1 data set where latents are shared by the data."""

    value: Tensor  # (N,): log p(x_n), in nats; low rather than high on average
    error: Tensor  # (N,): its standard error
    ess: Tensor  # (N,): effective sample size of the weights, between 1 and P
    khat: Tensor  # (N,): Pareto k̂ of the weights; above 0.7 none of this is to be trusted
    sole: Tensor  # (N,), bool: whether nothing is known of the states that were never drawn


def log_marginal(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int = 1000, seed: int = 0
) -> LogMarginal:
    """Estimates the log marginal likelihood with the guide as proposal.

    Where the P draws of a datum's discrete latents are one and the same state, k̂ is NaN and
    ``sole`` is true: their weights say nothing of what the guide never draws. Not so where the
    model's states can be listed, events of up to P of them, and this one has 95 % of the posterior.

    Args:
        model: The model.
        guide: The guide.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P for each datum.
        seed: Of the draws.

    Raises:
        ValueError: if the data are empty, not finite or differ in length, or if the two programs
            break the contract of a story.
    """
    check_count("num_particles", num_particles, least=2)
    check_data(data)
    data = as_tensors(data, model, guide)
    model, guide = bind(model, guide, *data)
    per_datum = traces.factorises(model, guide, data=data)
    rows = max(1, 20_000_000 // sum(x.numel() for x in data))  # particles in bounded memory
    try:
        traces.check_particles(model, guide, *data)
    except ValueError:
        rows = 1  # slow, but right
    weights, states = [], SoleStates()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, num_particles, rows):
            P = min(rows, num_particles - start)
            z = traces.draw(model, guide, *data, num_particles=P, moving=False)
            states.see(traces.discrete_values(z, per_datum))
            log_p, log_q = traces.weigh(model, guide, z, *data, per_datum=per_datum)
            weights.append((log_p - log_q).double().cpu())  # (P, N)
        log_w = torch.cat(weights)
        sole = states.found().expand(log_w.shape[1])  # (N,)
        if sole.any():
            truth = log_marginal_by_listing(model, *data, most=num_particles)
            if truth is not None:
                sole = sole & (truth.double().cpu() - log_w.mean(0) > _NEGLIGIBLE)
    return summarise(log_w, sole)


def summarise(log_w: Tensor, sole: Tensor | None = None) -> LogMarginal:
    """Maps log-weights (P, N) to the estimate and its diagnostics, given whose draws are one state."""
    P = len(log_w)
    sole = torch.zeros(log_w.shape[1], dtype=torch.bool) if sole is None else sole
    w = torch.softmax(log_w, dim=0)  # (P, N), sums to 1
    return LogMarginal(
        value=torch.logsumexp(log_w, dim=0) - math.log(P),
        error=(w * P).std(0) / math.sqrt(P),
        ess=1 / (w**2).sum(0),
        khat=torch.where(sole, math.nan, pareto_khat(log_w)),
        sole=sole,
    )


def pareto_khat(log_w: Tensor) -> Tensor:
    """Returns the Pareto shape (N,) of the right tails of log-weights (P, N).

    It is NaN for fewer than 25 particles, which are too few to tell, or for infinite weights.
    """
    return torch.tensor([_khat(column) for column in log_w.T], dtype=log_w.dtype)


def _khat(log_w: Tensor) -> float:
    if len(log_w) < 25 or not torch.isfinite(log_w.amax()):
        return math.nan
    if log_w.amax() - log_w.amin() < 1e-9:  # a perfect proposal has no tail to fit
        return -math.inf
    if torch.softmax(log_w, 0).amax() > 0.99:  # one draw is no tail to fit, and all there is
        return math.inf
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # weights that tie at the cut-off
            return float(array_stats.psislw(-log_w.numpy())[1])  # it takes log-likelihoods: 1 / w
    except ValueError:  # the whole tail is one value, as where a latent has few of them
        return -math.inf
