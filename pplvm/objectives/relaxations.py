r"""The concrete relaxation and straight-through gradients: biased, and of little variance.

Discrete latents are replaced by soft values :math:`s = \mathrm{soft}((\alpha + \epsilon) / \lambda)`,
which have a pathwise gradient. "concrete" puts s into both programs: its gradient is that of
:math:`\mathbb{E}_\epsilon f(s)`, another function than the ELBO, to which it tends as :math:`\lambda`
goes to 0, while its variance grows without bound. "straight_through" puts in the draws and takes the
gradient as if they had been s, or the mean if there is no temperature: it is that of no function, and
exact where f is linear in each latent and there is one layer.

Divergences are between the discrete distributions, in closed form where Pyro has one.

References:
    | The Concrete Distribution (Maddison et al., 2017)
    | https://arxiv.org/abs/1611.00712

    | Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017)
    | https://arxiv.org/abs/1611.01144

    | Estimating or Propagating Gradients Through Stochastic Neurons (Bengio et al., 2013)
    | https://arxiv.org/abs/1308.3432
"""

__all__ = ["concrete", "straight_through"]

from collections.abc import Callable

import torch
from torch import Tensor

from pplvm.objectives.layers import hard, mean, noise, soft, uniform
from pplvm.traces import Layer, play
from pplvm.types import Estimate


def concrete(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    temperature: float = 0.5,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Maddison et al. and Jang et al., whose name for it is Gumbel-softmax. Biased.

    The bound is the ELBO at the draws that the soft values stand for, not that of the relaxation,
    which may lie above log p(x).

    Args:
        model: The model :math:`p_\theta(x, z)`, whose latents may take any value of [0, 1].
        guide: The guide :math:`q_\phi(z \mid x)`, discrete latents Bernoulli or OneHotCategorical.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P averaged for each datum.
        temperature: :math:`\lambda`; an arbitrary default.
        kl_weight: The weight of the divergence in the loss, as ``elbo`` has it.
    """
    _check_temperature(temperature)
    drawn: list[Tensor] = []

    def relaxed(_: int, layer: Layer) -> Tensor:
        drawn.append(uniform(layer))
        return soft(layer, layer.logits + noise(layer, drawn[-1]), temperature)

    def discrete(i: int, layer: Layer) -> Tensor:
        return hard(layer, layer.logits + noise(layer, drawn[i]))

    at_soft = play(model, guide, relaxed, *data, num_particles=num_particles)
    with torch.no_grad():
        at_draws = play(model, guide, discrete, *data, num_particles=num_particles)
    bound = (at_draws.log_lik - at_draws.kl).mean(0)
    loss = (kl_weight * at_soft.kl - at_soft.log_lik).mean()
    return Estimate(loss=loss, bound=bound.detach())


def straight_through(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    temperature: float | None = None,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Bengio et al., or with a temperature Jang et al. Biased.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`, discrete latents Bernoulli or OneHotCategorical.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P averaged for each datum.
        temperature: :math:`\lambda` of the soft values whose gradient is taken, None for the mean.
        kl_weight: The weight of the divergence in the loss, as ``elbo`` has it.
    """
    if temperature is not None:
        _check_temperature(temperature)

    def drawn(_: int, layer: Layer) -> Tensor:
        z = layer.logits + noise(layer, uniform(layer))
        stand_in = mean(layer) if temperature is None else soft(layer, z, temperature)
        return hard(layer, z) + stand_in - stand_in.detach()

    found = play(model, guide, drawn, *data, num_particles=num_particles)
    loss = (kl_weight * found.kl - found.log_lik).mean()
    return Estimate(loss=loss, bound=(found.log_lik - found.kl).mean(0).detach())


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"'temperature' should be above 0, got {temperature}.")
