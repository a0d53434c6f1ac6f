r"""Factor analysis, and probabilistic PCA as its isotropic case:

.. math:: z \sim \mathcal N(0, I), \qquad x \mid z \sim \mathcal N(W z + \mu, \Psi),
    \qquad \Psi = \mathrm{diag}(\psi_1, \dots, \psi_D),

with :math:`\psi_d = \sigma^2` for every feature in the isotropic case.

References:
    | EM algorithms for ML factor analysis (Rubin & Thayer, 1982)
    | https://doi.org/10.1007/BF02293851

    | Probabilistic principal component analysis (Tipping & Bishop, 1999)
    | https://doi.org/10.1111/1467-9868.00196

Shapes: N data, D features, L latent dimensions; * is (N,) or (P, N).
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class FactorAnalysis(nn.Module):
    """Creates a model of D features with L factors; isotropic noise makes it PPCA."""

    def __init__(self, obs_dim: int, latent_dim: int, isotropic: bool = False) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(obs_dim, latent_dim) / latent_dim**0.5)  # (D, L)
        self.mu = nn.Parameter(torch.zeros(obs_dim))  # (D,)
        self.log_psi = nn.Parameter(torch.zeros(1 if isotropic else obs_dim))  # (D,) or (1,)

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it; unconditioned, returns a dream."""
        prior = dist.Normal(x.new_zeros(self.W.shape[1]), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)  # (*, L)
            loc = z @ self.W.T + self.mu  # (*, D)
            return pyro.sample("x", dist.Normal(loc, (0.5 * self.log_psi).exp()).to_event(1), obs=x)
