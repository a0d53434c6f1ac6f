r"""The importance-weighted bound for discrete latents, each draw with the others as its baseline.

With weights :math:`w_p = p_\theta(x, z_p) / q_\phi(z_p \mid x)`, normalised ones
:math:`\bar w_p`, and :math:`\hat L = \log \tfrac{1}{P} \sum_p w_p`,

.. math:: \nabla \mathbb{E} \hat L = \mathbb{E} \textstyle\sum_p \big(\hat L - \hat L_{-p}\big)
    \nabla \log q_\phi(z_p \mid x) + \mathbb{E} \sum_p \bar w_p \nabla \log w_p,

where :math:`\hat L_{-p}` has, in the place of :math:`w_p`, the geometric mean of the other weights
(or the arithmetic one), which does not depend on :math:`z_p`: both are unbiased.

References:
    | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016)
    | https://arxiv.org/abs/1602.06725
"""

__all__ = ["vimco"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.traces import draw, own_log_q, pathwise_site, weigh
from pplvm.types import Estimate


def vimco(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 8,
    mean: str = "geometric",
) -> Estimate:
    r"""Mnih & Rezende, with one weight for each datum and particle.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`, none of whose latents is reparameterisable.
        data: The arguments of both, first axis N.
        num_particles: The number of particles P, at least 2.
        mean: "geometric" or "arithmetic", of the other weights.
    """
    if num_particles < 2:
        raise ValueError(
            f"'num_particles' should be at least 2, got {num_particles}: a lone draw has no others as "
            "its baseline. Did you mean 'score_function'?"
        )
    if mean not in ("geometric", "arithmetic"):
        raise ValueError(f"'mean' should be 'geometric' or 'arithmetic', got '{mean}'.")
    z = draw(model, guide, *data, num_particles=num_particles, scored=True)
    smooth = pathwise_site(z)
    if smooth is not None:
        raise ValueError(
            f"site '{smooth}' is reparameterisable, and the score function would waste that: use "
            "'iwae', or 'score_function' where other sites are discrete."
        )
    log_p, log_q = weigh(model, guide, z, *data)  # (P, N)
    log_w = log_p - log_q
    bound = torch.logsumexp(log_w, dim=0) - math.log(num_particles)  # (N,)
    signal = (bound - without_each(log_w, mean)).detach()
    w = torch.softmax(log_w.detach(), dim=0)
    surrogate = (signal * own_log_q(z) + w * log_w).sum(0)
    return Estimate(loss=-surrogate.mean(), bound=bound.detach())


def without_each(log_w: Tensor, mean: str) -> Tensor:
    """Returns the bound with each weight replaced by the mean of the others, (P, N)."""
    P = len(log_w)
    own = torch.eye(P, dtype=torch.bool, device=log_w.device)[..., None]  # (P, P, 1)
    others = log_w.expand(P, *log_w.shape).masked_fill(own, -math.inf)  # (P, P, N)
    if mean == "geometric":
        replaced = (log_w.sum(0) - log_w) / (P - 1)
    else:
        replaced = others.logsumexp(1) - math.log(P - 1)
    others = torch.where(own, replaced[:, None], others)
    return others.logsumexp(1) - math.log(P)
