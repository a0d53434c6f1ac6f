r"""The evidence lower bound, by reparameterised draws.

.. math:: \log p_\theta(x) \ge \mathbb{E}_{q_\phi(z \mid x)} \log p_\theta(x \mid z)
    - \beta\, \mathrm{KL}\big(q_\phi(z \mid x) \,\|\, p_\theta(z)\big), \qquad \beta = 1.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

__all__ = ["elbo"]

from collections.abc import Callable

from torch import Tensor

from pplvm.traces import draw, elbo_terms
from pplvm.types import Estimate


def elbo(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Kingma & Welling, with each site's divergence in closed form where Pyro has one.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`, reparameterisable at every site.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P averaged for each datum.
        kl_weight: The weight :math:`\beta` of the divergence in the loss, for a schedule that
            warms it up. The bound is always that of :math:`\beta = 1`.
    """
    z = draw(model, guide, *data, num_particles=num_particles)
    log_lik, kl = elbo_terms(model, guide, z, *data)  # (P, N)
    return Estimate(loss=(kl_weight * kl - log_lik).mean(), bound=(log_lik - kl).mean(0).detach())
