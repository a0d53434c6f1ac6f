r"""Mixture of Gaussians whose components come from one network:

.. math:: z \sim \mathrm{Cat}(\pi), \qquad
    x \mid z \sim \mathcal N\Big(\mu_\theta(z), \mathrm{diag}\big(\sigma_\theta(z)^2\big)\Big), \qquad
    \big(\mu_\theta(z), \log \sigma_\theta(z)\big) = f_\theta(e_z),

with a multi-layer perceptron :math:`f_\theta` of one hidden layer and the unit vector
:math:`e_z` of the state. It is the smallest deep generative model whose latent is discrete, so
that gradients through the sampling of z, which reparameterisation lacks, can be had by
enumeration and estimators be held against them.

References:
    | Neural variational inference and learning in belief networks (Mnih & Gregor, 2014)
    | https://arxiv.org/abs/1402.0030

    | Variational inference and deep generative models, a tutorial (Aziz & Schulz, 2018)
    | https://github.com/vitutorial/VITutorial

Shapes: N data, D features, K states, H hidden units; * is (N,), (P, N), or (K, 1) where z is
enumerated.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class NeuralMixture(nn.Module):
    """Creates a mixture of K states over D features; H is an arbitrary default."""

    def __init__(self, obs_dim: int, num_states: int, hidden_dim: int = 32) -> None:
        super().__init__()
        self.num_states = num_states
        self.log_pi = nn.Parameter(torch.zeros(num_states))  # (K,), up to a constant
        self.decoder = nn.Sequential(
            nn.Linear(num_states, hidden_dim),
            nn.Tanh(),
            nn.Linear(hidden_dim, 2 * obs_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it; unconditioned, returns a dream."""
        units = torch.eye(self.num_states, dtype=x.dtype, device=x.device)  # (K, K)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=self.log_pi))  # (*,)
            mu, log_s = self.decoder(units[z]).chunk(2, dim=-1)  # (*, D) each
            return pyro.sample("x", dist.Normal(mu, log_s.exp()).to_event(1), obs=x)
