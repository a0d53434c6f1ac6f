r"""ARM and DisARM: the ELBO of binary latents, by pairs of draws that mirror each other.

From uniform u, :math:`b = [u > \sigma(-\alpha)]` and its mirror image
:math:`\tilde b = [1 - u > \sigma(-\alpha)]` both are draws, and in the logits :math:`\alpha`

.. math::
    \text{arm} &:& \big(f(b) - f(\tilde b)\big) \big(u - \tfrac12\big) \\
    \text{disarm} &:& \tfrac12 \big(f(b) - f(\tilde b)\big) (-1)^{\tilde b}\,
        [b \ne \tilde b]\, \sigma(|\alpha|)

are unbiased. The second is the mean of the first given both draws, and so has less variance. Layers
after the one in question are drawn anew for the mirror image.

References:
    | ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks (Yin & Zhou, 2019)
    | https://arxiv.org/abs/1807.11143

    | DisARM: An Antithetic Gradient Estimator for Binary Latent Variables (Dong et al., 2020)
    | https://arxiv.org/abs/2006.10680

    | Probabilistic Best Subset Selection via Gradient-Based Optimization (Yin et al., 2020), on U2G
    | https://arxiv.org/abs/2006.06448
"""

__all__ = ["arm", "disarm"]

from collections.abc import Callable
from functools import partial

from torch import Tensor

from pplvm.objectives.layers import hard, layerwise, noise, uniform
from pplvm.traces import Layer
from pplvm.types import Estimate


def arm(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Yin & Zhou. Unbiased.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`, discrete latents Bernoulli.
        data: The arguments of both, first axis N.
        num_particles: The number of pairs averaged for each datum.
        kl_weight: The weight of the divergence in the loss, as ``elbo`` has it.
    """

    def gradient(i: int, layer: Layer, u: Tensor, f_b: Tensor, f: Callable) -> Tensor:
        return layer.spread(f_b - f(_mirrored(layer, u), _anew)) * (u - 0.5)

    return _paired(gradient, model, guide, *data, num_particles=num_particles, kl_weight=kl_weight)


def disarm(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    kl_weight: float = 1.0,
) -> Estimate:
    """Dong et al., and Yin et al. Unbiased; the arguments are those of :func:`arm`."""

    def gradient(i: int, layer: Layer, u: Tensor, f_b: Tensor, f: Callable) -> Tensor:
        other = _mirrored(layer, u)
        difference = layer.spread(f_b - f(other, _anew))
        # (-1)^b~ where the two differ is b - b~.
        return 0.5 * difference * (layer.value - other) * layer.logits.abs().sigmoid()

    return _paired(gradient, model, guide, *data, num_particles=num_particles, kl_weight=kl_weight)


_paired = partial(layerwise, kinds=["Bernoulli"])


def _mirrored(layer: Layer, u: Tensor) -> Tensor:
    return hard(layer, layer.logits.detach() + noise(layer, 1 - u))


def _anew(i: int, layer: Layer) -> Tensor:
    return hard(layer, layer.logits.detach() + noise(layer, uniform(layer)))
