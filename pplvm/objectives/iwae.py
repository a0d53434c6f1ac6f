r"""The importance-weighted bound, and three estimators of its gradient.

With draws :math:`z_p \sim q_\phi(z \mid x)`, weights
:math:`w_p = p_\theta(x, z_p) / q_\phi(z_p \mid x)` and :math:`\bar w_p = w_p / \sum_j w_j`,

.. math:: \log p_\theta(x) \ge \mathbb{E} \log \tfrac{1}{P} \textstyle\sum_p w_p,

whose gradient in :math:`\phi` is estimated by

.. math::
    \text{plain} &:& \textstyle\sum_p \bar w_p \nabla_\phi \log w_p \\
    \text{stl} &:& \textstyle\sum_p \bar w_p \, \partial_z \log w_p \nabla_\phi z_p \\
    \text{dreg} &:& \textstyle\sum_p \bar w_p^2 \, \partial_z \log w_p \nabla_\phi z_p.

At P = 1 the last two are the same and all three are unbiased. For P > 1, "stl" is biased
(Tucker et al., section 4), by what the score of the guide would have added; "dreg" is not, and
its signal does not drown as P grows.

References:
    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519

    | Sticking the Landing (Roeder et al., 2017)
    | https://arxiv.org/abs/1703.09194

    | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)
    | https://arxiv.org/abs/1810.04152
"""

__all__ = ["iwae"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.traces import draw, weigh
from pplvm.types import Estimate


def iwae(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 8,
    gradient: str = "plain",
) -> Estimate:
    r"""Burda et al., with one weight for each datum and particle.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`, reparameterisable at every site.
        data: The arguments of both, first axis N.
        num_particles: The number of particles P.
        gradient: "plain", "stl" or "dreg", as above.
    """
    if gradient not in ("plain", "stl", "dreg"):
        raise ValueError(f"'gradient' should be 'plain', 'stl' or 'dreg', got '{gradient}'.")
    z = draw(model, guide, *data, num_particles=num_particles)
    log_p, log_q = weigh(model, guide, z, *data)  # (P, N)
    log_w = log_p - log_q
    bound = torch.logsumexp(log_w, dim=0) - math.log(num_particles)  # (N,)
    if gradient == "plain":
        return Estimate(loss=-bound.mean(), bound=bound.detach())
    # At draws that do not move, only the parameters' own gradients are left: what is to be
    # added to log w to take the score of the guide away, or to part model from guide.
    fixed_p, fixed_q = weigh(model, guide, z.detach(), *data)
    w = torch.softmax(log_w.detach(), dim=0)
    if gradient == "stl":
        surrogate = w * (log_w + fixed_q)
    else:
        surrogate = w**2 * (log_w - fixed_p + fixed_q) + w * fixed_p
    return Estimate(loss=-surrogate.sum(0).mean(), bound=bound.detach())
