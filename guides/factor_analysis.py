r"""Guides for :mod:`models.factor_analysis`, from the loosest family to one that is exact:

.. math::
    \text{MeanField} &:& q(z_n) = \mathcal N\big(m_n, \mathrm{diag}(s_n^2)\big) \\
    \text{AmortisedMeanField} &:& q(z \mid x) = \mathcal N\big(A x + b, \mathrm{diag}(s^2)\big) \\
    \text{LinearGaussian} &:& q(z \mid x) = \mathcal N\big(A x + b, L L^\top\big).

The posterior of factor analysis is
:math:`\mathcal N(M^{-1} W^\top \Psi^{-1}(x - \mu), M^{-1})` with
:math:`M = I + W^\top \Psi^{-1} W`, a member of the last family. Shapes as in the model.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class MeanField(nn.Module):
    """Creates an independent Gaussian with parameters of its own for each of N data."""

    def __init__(self, num_data: int, latent_dim: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(num_data, latent_dim))  # (N, L)
        self.log_s = nn.Parameter(torch.zeros(num_data, latent_dim))  # (N, L)

    def forward(self, x: Tensor) -> None:
        """Samples z given x, of shape (N, D): all the data that it has parameters for."""
        if len(x) != len(self.m):
            raise ValueError(
                f"'num_data' of MeanField is {len(self.m)}, got {len(x)} data: it has parameters "
                "for each datum, so give it all of them at once, or use an amortised guide."
            )
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m, self.log_s.exp()).to_event(1))  # (*, L)


class AmortisedMeanField(nn.Module):
    """Creates an independent Gaussian whose mean is linear in x and whose scale is shared."""

    def __init__(self, obs_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(obs_dim, latent_dim)
        self.log_s = nn.Parameter(torch.zeros(latent_dim))  # (L,)

    def forward(self, x: Tensor) -> None:
        """Samples z given x, of shape (N, D)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.mean(x), self.log_s.exp()).to_event(1))  # (*, L)


class LinearGaussian(nn.Module):
    """Creates a Gaussian whose mean is linear in x and whose full covariance is shared."""

    def __init__(self, obs_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(obs_dim, latent_dim)
        self.L = nn.Parameter(torch.zeros(latent_dim, latent_dim))  # (L, L): log of the diagonal

    def forward(self, x: Tensor) -> None:
        """Samples z given x, of shape (N, D)."""
        L = self.L.tril(-1) + self.L.diagonal().exp().diag()  # (L, L), lower triangular
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(self.mean(x), scale_tril=L))  # (*, L)
