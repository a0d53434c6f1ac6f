r"""MuProp: the score function with the first-order Taylor expansion at the mean as its baseline.

With :math:`\mu` the mean of a layer, the layers after it at their means too, and
:math:`\bar f(b) = f(\mu) + f'(\mu)^\top (b - \mu)`,

.. math:: \nabla_\alpha \mathbb{E} f =
    \mathbb{E}\, \big(f(b) - \bar f(b)\big) \nabla_\alpha \log q(b) + f'(\mu)^\top \nabla_\alpha \mu,

unbiased, whatever the layers after it are taken to be in :math:`\bar f`. What the expansion leaves of
the signal is centred by its mean over the other draws and data, on which a draw does not depend.

References:
    | MuProp: Unbiased Backpropagation for Stochastic Neural Networks (Gu et al., 2016)
    | https://arxiv.org/abs/1511.05176
"""

__all__ = ["muprop"]

from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.objectives.layers import layerwise, mean, score
from pplvm.traces import Layer
from pplvm.types import Estimate


def muprop(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Gu et al. Unbiased.

    Args:
        model: The model :math:`p_\theta(x, z)`, whose latents may take any value of [0, 1].
        guide: The guide :math:`q_\phi(z \mid x)`, discrete latents Bernoulli or OneHotCategorical.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P averaged for each datum.
        kl_weight: The weight of the divergence in the loss, as ``elbo`` has it.
    """

    def gradient(i: int, layer: Layer, u: Tensor, f_b: Tensor, f: Callable) -> Tensor:
        with torch.enable_grad():
            alpha = layer.logits.detach().requires_grad_()
            mu = mean(layer._replace(logits=alpha))
            at_mean = f(mu, lambda i, later: mean(later))  # (P, N)
            slope, through = torch.autograd.grad(at_mean.sum(), (mu, alpha))
        off = layer.value - mu.detach()
        linear = _per_datum(layer, slope * off)  # (P, N)
        left = f_b - at_mean.detach() - linear
        return layer.spread(left - _of_others(left)) * score(layer, layer.value) + through

    return layerwise(
        gradient, model, guide, *data, num_particles=num_particles, kl_weight=kl_weight
    )


def _per_datum(layer: Layer, values: Tensor) -> Tensor:
    """Returns the sum over all numbers of a datum, (P, N)."""
    return layer.gather(values).sum(-1)


def _of_others(signal: Tensor) -> Tensor:
    """Returns the mean over all others, (P, N), for each draw and datum; 0 where there are none."""
    return (signal.sum() - signal) / max(1, signal.numel() - 1)
