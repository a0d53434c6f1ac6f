r"""Wake-sleep and reweighted wake-sleep.

For particles :math:`z_p \sim q_\phi(z \mid x)`, weights
:math:`w_p = p_\theta(x, z_p) / q_\phi(z_p \mid x)` and :math:`\bar w_p = w_p / \sum_j w_j`,

.. math::
    \ell_\mathrm{wake}(\theta) &= -\log \tfrac{1}{P} \textstyle\sum_p w_p \\
    \ell_\mathrm{wake}(\phi) &= -\textstyle\sum_p \bar w_p \log q_\phi(z_p \mid x) \\
    \ell_\mathrm{sleep}(\phi) &= -\log q_\phi(z \mid x), \qquad (x, z) \sim p_\theta.

No gradient crosses between :math:`\theta` and :math:`\phi` or flows through :math:`z_p`, so
one backward pass of the sum serves both, and the latents may be discrete. The weights of
:math:`\ell_\mathrm{wake}(\phi)` are normalised by their own sum, so its gradient is that of
:math:`\mathrm{KL}(p \,\|\, q)` only as P grows; the other two are unbiased.

References:
    | The wake-sleep algorithm for unsupervised neural networks (Hinton et al., 1995)
    | https://doi.org/10.1126/science.7761831

    | Reweighted Wake-Sleep (Bornschein & Bengio, 2015)
    | https://arxiv.org/abs/1406.2751
"""

__all__ = ["reweighted_wake_sleep", "wake_phi", "wake_sleep", "wake_theta"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.traces import draw, dream, weigh
from pplvm.types import Estimate


def wake_sleep(model: Callable, guide: Callable, *data: Tensor) -> Estimate:
    r"""Hinton et al.: :math:`\ell_\mathrm{wake}(\theta)` at P = 1, and the sleep phase.

    Args:
        model: The model :math:`p_\theta(x, z)`, which returns what it observes.
        guide: The guide :math:`q_\phi(z \mid x)`.
        data: The arguments of both, first axis N.
    """
    z = draw(model, guide, *data, moving=False)
    theta = wake_theta(*weigh(model, guide, z, *data))
    phi = -dream(model, guide, *data)
    return Estimate(loss=(theta + phi).mean(), bound=-theta.detach())


def reweighted_wake_sleep(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 8,
    phi: str = "wake",
) -> Estimate:
    r"""Bornschein & Bengio: :math:`\ell_\mathrm{wake}(\theta)` and a phase for the guide.

    Args:
        model: The model :math:`p_\theta(x, z)`, which returns what it observes.
        guide: The guide :math:`q_\phi(z \mid x)`.
        data: The arguments of both, first axis N.
        num_particles: The number of particles P, at least 2.
        phi: "wake" for :math:`\ell_\mathrm{wake}(\phi)`, "sleep" for
            :math:`\ell_\mathrm{sleep}(\phi)`, "both" for their mean.
    """
    if num_particles < 2:
        raise ValueError(
            f"'num_particles' should be at least 2, got {num_particles}: a lone weight "
            "normalises to 1 and tells the guide nothing. Did you mean 'wake_sleep'?"
        )
    if phi not in ("wake", "sleep", "both"):
        raise ValueError(f"'phi' should be 'wake', 'sleep' or 'both', got '{phi}'.")
    z = draw(model, guide, *data, num_particles=num_particles, moving=False)
    scores = weigh(model, guide, z, *data)
    theta, phases = wake_theta(*scores), []
    if phi != "sleep":
        phases.append(wake_phi(*scores))
    if phi != "wake":
        phases.append(-dream(model, guide, *data))
    return Estimate(loss=(theta + sum(phases) / len(phases)).mean(), bound=-theta.detach())


def wake_theta(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Maps scores (P, N) to the negative importance-weighted bound (N,)."""
    return math.log(len(log_p)) - torch.logsumexp(log_p - log_q.detach(), dim=0)


def wake_phi(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Maps scores (P, N) to the reweighted negative log-density of the guide (N,)."""
    w = torch.softmax((log_p - log_q).detach(), dim=0)
    return -(w * log_q).sum(0)
