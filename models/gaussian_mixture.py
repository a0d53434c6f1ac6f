r"""Mixture of Gaussians with diagonal covariances, by maximum likelihood:

.. math:: k \sim \mathrm{Cat}(\pi), \qquad
    x \mid k \sim \mathcal N\big(\mu_k, \mathrm{diag}(\sigma_k^2)\big),

and with priors that are conditionally conjugate, Dirichlet and Normal-Gamma:

.. math::
    \pi \sim \mathrm{Dir}(\alpha, \dots, \alpha), \qquad \tau_{kd} \sim \mathrm{Gamma}(a, b), \qquad
    \mu_{kd} \mid \tau_{kd} \sim \mathcal N\big(m, (\kappa\,\tau_{kd})^{-1}\big), \qquad
    \sigma_{kd}^2 = \tau_{kd}^{-1}.

References:
    | Pattern Recognition and Machine Learning, sections 9.2 and 10.2 (Bishop, 2006)
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/

    | Conjugate Bayesian analysis of the Gaussian distribution (Murphy, 2007)
    | https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf

Shapes: N data, D features, K components; * is (N,), (P, N), or (K, 1) where k is enumerated.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class GaussianMixture(nn.Module):
    """Creates a mixture of K Gaussians of D features, all of whose parameters are learned."""

    def __init__(self, obs_dim: int, num_components: int) -> None:
        super().__init__()
        self.log_pi = nn.Parameter(torch.zeros(num_components))  # (K,), up to a constant
        self.mu = nn.Parameter(torch.randn(num_components, obs_dim))  # (K, D)
        self.log_s = nn.Parameter(torch.zeros(num_components, obs_dim))  # (K, D)

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it; unconditioned, returns a dream."""
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.log_pi))  # (*,)
            component = dist.Normal(self.mu[k], self.log_s[k].exp())  # (*, D)
            return pyro.sample("x", component.to_event(1), obs=x)


class BayesianGaussianMixture(nn.Module):
    """Creates a mixture of K Gaussians of D features, all of whose parameters have priors.

    Args:
        obs_dim: D.
        num_components: K.
        concentration: α. It and the next four are arbitrary defaults, for features of scale 1.
        mean: m.
        mean_precision: κ, in units of the precision of a component.
        shape: a.
        rate: b.
    """

    def __init__(
        self,
        obs_dim: int,
        num_components: int,
        *,
        concentration: float = 1.0,
        mean: float = 0.0,
        mean_precision: float = 0.1,
        shape: float = 2.0,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.obs_dim, self.num_components = obs_dim, num_components
        self.concentration, self.mean, self.mean_precision = concentration, mean, mean_precision
        self.shape, self.rate = shape, rate

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it; unconditioned, returns a dream."""
        K, one = self.num_components, x.new_ones(self.obs_dim)
        pi = pyro.sample(
            "pi", dist.Dirichlet(self.concentration * x.new_ones(K))
        )  # (K,), (P, 1, K)
        with pyro.plate("components", K, dim=-1):
            tau = pyro.sample("tau", dist.Gamma(self.shape * one, self.rate).to_event(1))
            spread = (self.mean_precision * tau).rsqrt()
            mu = pyro.sample("mu", dist.Normal(self.mean, spread).to_event(1))  # (K, D), (P, K, D)
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(pi))  # (*,)
            # A product where mu[k] would do, were there not a mu for each particle.
            own = torch.eye(K, dtype=x.dtype, device=x.device)[k]  # (*, K)
            component = dist.Normal(own @ mu, (own @ tau).rsqrt())  # (*, D)
            return pyro.sample("x", component.to_event(1), obs=x)
