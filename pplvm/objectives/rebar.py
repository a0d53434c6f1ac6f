r"""REBAR and RELAX: the score function with a control variate of soft values, trained.

With :math:`\zeta = \alpha + \epsilon`, the draw :math:`b = \mathrm{hard}(\zeta)`, and
:math:`\tilde\zeta` drawn from :math:`\zeta` given b, both by way of uniform numbers,

.. math:: \nabla_\alpha \mathbb{E} f = \mathbb{E}\, \big(f(b) - c(\tilde\zeta)\big)
    \nabla_\alpha \log q(b) + \nabla_\alpha c(\zeta) - \nabla_\alpha c(\tilde\zeta)

for any c. REBAR takes :math:`c(\zeta) = \eta f(\mathrm{soft}(\zeta / \lambda))`; RELAX adds a network
:math:`r_\rho(\zeta)`. What c consists of is trained to minimise the variance of this gradient, by the
gradient of its square: in the logits of each datum, where the papers have all parameters of the guide.
For one layer among several, the layers after it are soft in c, by the same noise at both.

References:
    | REBAR: Low-variance, unbiased gradient estimates for discrete latent variable models
      (Tucker et al., 2017)
    | https://arxiv.org/abs/1703.07370

    | Backpropagation through the Void (Grathwohl et al., 2018), with the conditional draws of one-hot
      latents in appendix B
    | https://arxiv.org/abs/1711.00123

Shapes: N data, P particles; * is that of the logits of a layer.
"""

__all__ = ["REBAR", "RELAX"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pplvm.objectives.layers import hard, layerwise, noise, score, soft, uniform
from pplvm.objectives.nvil import check_positive
from pplvm.traces import Layer, play
from pplvm.types import Estimate


class REBAR(nn.Module):
    r"""Creates the objective of Tucker et al. Unbiased; layers Bernoulli or OneHotCategorical.

    Args:
        num_particles: The number of draws P averaged for each datum.
        temperature: The first :math:`\lambda` of every layer; an arbitrary default.
        scale: The first :math:`\eta`.
        lr: The learning rate of the control variate, None for that of the fit.
    """

    def __init__(
        self,
        *,
        num_particles: int = 1,
        temperature: float = 0.5,
        scale: float = 1.0,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"'temperature' should be above 0, got {temperature}.")
        check_positive(num_particles=num_particles, lr=lr)
        if not math.isfinite(scale):
            raise ValueError(f"'scale' should be finite, got {scale}.")
        self.num_particles, self.temperature, self.scale = num_particles, temperature, scale
        self.lr = lr
        self.log_temperature: nn.Parameter | None = None  # (layers,)
        self.eta: nn.Parameter | None = None  # (layers,)

    def prepare(self, model: Callable, guide: Callable, *data: Tensor) -> None:
        """Makes what is trained, for the layers of these programs."""
        with torch.no_grad(), torch.random.fork_rng():
            sizes = _sizes(model, guide, *data)
        ones = sizes[0][1].new_ones(len(sizes))
        self.log_temperature = nn.Parameter(ones * torch.tensor(self.temperature).log().item())
        self.eta = nn.Parameter(ones * self.scale)

    def extra(self, i: int, layer: Layer, z: Tensor) -> Tensor | float:
        """Returns what the control variate has beyond REBAR's, (P, N)."""
        return 0.0

    def forward(
        self, model: Callable, guide: Callable, *data: Tensor, kl_weight: float = 1.0
    ) -> Estimate:
        """Returns the estimate; its loss also has the variance to be minimised."""
        if self.log_temperature is None:
            self.prepare(model, guide, *data)
        own = [p for p in self.parameters() if p.requires_grad]
        trained = torch.is_grad_enabled() and bool(own)
        squares: list[Tensor] = []

        def gradient(i: int, layer: Layer, u: Tensor, f_b: Tensor, f: Callable) -> Tensor:
            temperature, noises = self.log_temperature[i].exp(), {}

            def later(j: int, other: Layer) -> Tensor:
                if j not in noises:
                    noises[j] = noise(other, uniform(other))
                return soft(other, other.logits + noises[j], self.log_temperature[j].exp())

            def c(z: Tensor) -> Tensor:
                relaxed = f(soft(layer, z, temperature), later)
                return self.eta[i] * relaxed + self.extra(i, layer, z)  # (P, N)

            with torch.enable_grad():
                alpha = layer.logits.detach().requires_grad_()
                here = layer._replace(logits=alpha)
                c_z = c(alpha + noise(here, u))
                c_given = c(_given(here, layer.value, uniform(here)))
                slope = torch.autograd.grad((c_z - c_given).sum(), alpha, create_graph=trained)[0]
                g = layer.spread(f_b - c_given) * score(layer, layer.value) + slope
            squares.append(layer.counted(g).square().sum() / f_b.numel())
            return g

        found = layerwise(
            gradient, model, guide, *data, num_particles=self.num_particles, kl_weight=kl_weight
        )
        if not trained:
            return found
        grads = torch.autograd.grad(sum(squares), own, retain_graph=True, allow_unused=True)
        loss = found.loss + sum(
            (p * g).sum() for p, g in zip(own, grads, strict=True) if g is not None
        )
        return Estimate(loss=loss, bound=found.bound)


class RELAX(REBAR):
    r"""Creates the objective of Grathwohl et al.: REBAR with a network in its control variate.

    Args:
        num_particles: The number of draws P averaged for each datum.
        temperature: The first :math:`\lambda` of every layer.
        scale: The first :math:`\eta`.
        hidden_dim: The units of the one hidden layer of each :math:`r_\rho`; an arbitrary default.
        lr: The learning rate of the control variate, None for that of the fit.
    """

    def __init__(
        self,
        *,
        num_particles: int = 1,
        temperature: float = 0.5,
        scale: float = 1.0,
        hidden_dim: int = 50,
        lr: float | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, temperature=temperature, scale=scale, lr=lr)
        check_positive(hidden_dim=hidden_dim)
        self.hidden_dim, self.networks = hidden_dim, nn.ModuleList()

    def prepare(self, model: Callable, guide: Callable, *data: Tensor) -> None:
        """Makes what is trained, for the layers of these programs."""
        super().prepare(model, guide, *data)
        with torch.no_grad(), torch.random.fork_rng():
            sizes = _sizes(model, guide, *data)
        for size, like in sizes:
            network = nn.Sequential(
                nn.Linear(size, self.hidden_dim), nn.Tanh(), nn.Linear(self.hidden_dim, 1)
            )
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)
            self.networks.append(network.to(like))

    def extra(self, i: int, layer: Layer, z: Tensor) -> Tensor:
        """Returns the network's part of the control variate, (P, N)."""
        return self.networks[i](layer.gather(z)).squeeze(-1)


def _given(layer: Layer, b: Tensor, u: Tensor) -> Tensor:
    """Draws logits with noise given the state that they mean, differentiable in the logits."""
    if layer.binary:
        theta = layer.logits.sigmoid()
        eps = torch.finfo(u.dtype).eps
        v = torch.where(b > 0, 1 - theta + u * theta, u * (1 - theta)).clamp(eps, 1 - eps)
        return layer.logits + v.logit()
    theta = layer.logits.softmax(-1)
    times = -u.log()  # exponential: the first of all is that of the state that won, at rate 1
    won = (times * b).sum(-1, keepdim=True)
    z = torch.where(b > 0, -won.log(), -(times / theta + won).log())
    return z + layer.logits.logsumexp(-1, keepdim=True)


def _sizes(model: Callable, guide: Callable, *data: Tensor) -> list[tuple[int, Tensor]]:
    """Returns for each layer how many numbers a datum has, and a tensor of its kind."""

    def rule(_: int, layer: Layer) -> Tensor:
        return hard(layer, layer.logits)

    layers = play(model, guide, rule, *data).layers
    return [(layer.gather(layer.logits).shape[-1], layer.logits) for layer in layers]
