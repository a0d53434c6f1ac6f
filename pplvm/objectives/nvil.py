r"""Neural variational inference and learning: the score function with baselines that are learned.

The signal :math:`f_i` of each latent is predicted by a network :math:`C_\psi` of the data and of the
latents before it, centred by a moving average c and, where its standard deviation exceeds 1, divided by
a moving average of that:

.. math:: \nabla_\phi \leftarrow \frac{f_i - C_\psi - c}{\max(1, \sqrt v)}
    \nabla_\phi \log q_\phi(z_i \mid \cdot), \qquad
    \nabla_\psi \leftarrow \frac{f_i - C_\psi - c}{\max(1, \sqrt v)} \nabla_\psi C_\psi.

Both averages are those of the batches before, so that the gradient is unbiased but for this division,
which makes the steps of :math:`\phi` shorter where there is more noise. It shortens all of it alike:
where it is asked for, divergences are part of the signal, and in closed form otherwise. Signals are
local: they leave out what does not depend on a latent, as
:func:`~pplvm.objectives.score_function` has it.

References:
    | Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014)
    | https://arxiv.org/abs/1402.0030

Shapes: S particles, those of listed states included; C latents.
"""

__all__ = ["NVIL"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pplvm.objectives.score_function import elbo_of, steer, weighted
from pplvm.traces import Choice, Integrand, draw_choices, integrand, listed_states
from pplvm.types import Estimate

BASELINES = ("moving_average", "network")


class NVIL(nn.Module):
    r"""Creates the objective of Mnih & Gregor; what it learns is learned beside model and guide.

    Args:
        baselines: Which of "moving_average" and "network" to subtract.
        normalise: Whether to divide by :math:`\max(1, \sqrt v)`.
        num_particles: The number of draws P averaged for each datum.
        rao_blackwell: As in ``score_function``.
        network: Maps the data to a prediction for each datum, (N,), or one for each latent, (N, C);
            None for a network of one hidden layer that sees the data and, for each latent, those
            before it.
        hidden_dim: The units of that layer; like the next one, the paper's.
        decay: Of the moving averages.
        lr: The learning rate of the baselines, None for that of the fit.
    """

    def __init__(
        self,
        baselines: Sequence[str] = BASELINES,
        *,
        normalise: bool = True,
        num_particles: int = 1,
        rao_blackwell: bool = False,
        network: nn.Module | None = None,
        hidden_dim: int = 100,
        decay: float = 0.8,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        baselines = (baselines,) if isinstance(baselines, str) else tuple(baselines)
        unknown = [name for name in baselines if name not in BASELINES]
        if unknown:
            raise ValueError(
                f"'baselines' should be some of {BASELINES}, got '{unknown[0]}': a constant is the "
                "'baseline' of score_function, and so is 'leave_one_out'."
            )
        if not 0 <= decay < 1:
            raise ValueError(f"'decay' should be from 0 to below 1, got {decay}.")
        check_positive(num_particles=num_particles, hidden_dim=hidden_dim, lr=lr)
        self.baselines, self.normalise, self.num_particles = baselines, normalise, num_particles
        self.rao_blackwell, self.hidden_dim, self.decay, self.lr = (
            rao_blackwell, hidden_dim, decay, lr,
        )  # fmt: skip
        self.network = network
        self.networks: nn.ModuleList | None = None  # one for each latent, made for the data

    def prepare(self, model: Callable, guide: Callable, *data: Tensor) -> None:
        """Makes the networks and averages that these programs and data need."""
        with torch.no_grad(), torch.random.fork_rng():
            choices = self._choices(model, guide, *data).choices
        like = next(
            (x for x in data if x.is_floating_point()), torch.empty(0, device=data[0].device)
        )
        for name in ("mean", "variance", "taken"):
            self.register_buffer(name, like.new_zeros(len(choices)))
        if "network" in self.baselines and self.network is None:
            sizes = [choice.value.shape[-1] for choice in choices]
            first = _features(data).shape[-1]
            self.networks = nn.ModuleList(
                _network(first + sum(sizes[:i]), self.hidden_dim, like) for i in range(len(sizes))
            )

    def forward(
        self, model: Callable, guide: Callable, *data: Tensor, kl_weight: float = 1.0
    ) -> Estimate:
        """Returns the estimate; in training mode, the averages take in this batch afterwards."""
        if not hasattr(self, "mean"):
            self.prepare(model, guide, *data)
        P, parts = self.num_particles, self._choices(model, guide, *data, kl_weight=kl_weight)
        loss, residuals = -elbo_of(parts, P, kl_weight).mean(), []
        mean, scale = self._statistics()
        for i, choice in enumerate(parts.choices):
            predicted = self._predicted(i, parts.choices, data)
            b = weighted(predicted, choice, parts.weight)
            residual = choice.signal - b.detach()
            centre = weighted(mean[i], choice, parts.weight)
            loss = loss - steer(choice, (residual - centre) / scale[i], P, parts.kl.shape[1])
            if predicted.requires_grad:
                error = (choice.signal - b - centre).square() / (2 * scale[i])
                loss = loss + error.sum(0).mean() / P
            residuals.append(residual.unflatten(0, (P, -1)).sum(1))
        if self.training and torch.is_grad_enabled():
            self._take_in(residuals)
        return Estimate(loss=loss, bound=elbo_of(parts, P).detach())

    def _choices(
        self, model: Callable, guide: Callable, *data: Tensor, kl_weight: float = 1.0
    ) -> Integrand:
        listed = listed_states(guide, *data) if self.rao_blackwell else None
        z = draw_choices(model, guide, *data, num_particles=self.num_particles, listed=listed)
        closed = not self.normalise  # else divergences would weigh more than the rest
        return integrand(model, guide, z, *data, kl_weight=kl_weight, closed=closed)

    def _predicted(self, i: int, choices: Sequence[Choice], data: Sequence[Tensor]) -> Tensor:
        """Returns what is predicted of the signal of latent i before it is drawn, (S, N) or ()."""
        shape = choices[i].signal.shape
        if "network" not in self.baselines or shape[1] == 1 != len(data[0]):
            return choices[i].signal.new_zeros(())
        if self.network is not None:
            return self._of_users(i, len(choices), data).expand(shape)
        x = _features(data).expand(shape[0], -1, -1)  # (S, N, features)
        before = [choice.value.expand(*shape, -1) for choice in choices[:i]]
        return self.networks[i](torch.cat([x, *before], -1)).squeeze(-1)

    def _of_users(self, i: int, num_choices: int, data: Sequence[Tensor]) -> Tensor:
        found, N = self.network(*data), len(data[0])
        if found.shape not in ((N,), (N, num_choices)):
            raise ValueError(
                f"'network' returned shape {tuple(found.shape)} for {N} data and {num_choices} latents: "
                f"return one prediction for each datum, ({N},), or each latent, ({N}, {num_choices})."
            )
        return found if found.ndim == 1 else found[:, i]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Returns c and max(1, sqrt(v)) of each latent; averages that start at 0 are corrected."""
        seen = 1 - self.decay**self.taken
        mean, variance = (
            torch.where(self.taken > 0, total / seen.clamp(min=1e-12), 0.0)
            for total in (self.mean, self.variance)
        )
        mean = mean if "moving_average" in self.baselines else torch.zeros_like(mean)
        return mean, variance.sqrt().clamp(min=1.0) if self.normalise else torch.ones_like(mean)

    def _take_in(self, residuals: Sequence[Tensor]) -> None:
        if not residuals:
            return
        found = [torch.stack([r.mean(), r.var(correction=0)]) for r in residuals]
        mean, variance = torch.stack(found, 1).to(self.mean)
        self.mean = self.decay * self.mean + (1 - self.decay) * mean
        self.variance = self.decay * self.variance + (1 - self.decay) * variance
        self.taken = self.taken + 1


def check_positive(**options: float | None) -> None:
    """Raises a ``ValueError`` for an option that is not above 0 and, unless it is a rate, whole."""
    for name, value in options.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name == "lr" and value is not None and not 0 < value < math.inf:
            raise ValueError(f"'lr' should be above 0 and finite, got {value}.")
        if name != "lr" and (not whole or value < 1):
            raise ValueError(f"'{name}' should be at least 1 and whole, got {value}.")


def _network(num_inputs: int, hidden_dim: int, like: Tensor) -> nn.Module:
    """Returns a network that predicts 0 at first."""
    network = nn.Sequential(nn.Linear(num_inputs, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 1))
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    return network.to(like)


def _features(data: Sequence[Tensor]) -> Tensor:
    """Returns all that is known of each datum as numbers, (N, features)."""
    dtype = next((x.dtype for x in data if x.is_floating_point()), torch.get_default_dtype())
    return torch.cat([x.reshape(len(x), -1).to(dtype) for x in data], -1)
