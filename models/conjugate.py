r"""Conjugate pairs, each in a few lines: a prior that keeps its family when data come in.

=====================  ==================================  ============================
beta_bernoulli         p ~ Beta(1, 1)                      x_n ~ Bernoulli(p)
beta_binomial          p_n ~ Beta(a, b)                    x_n ~ Binomial(total_n, p_n)
gamma_poisson          λ ~ Gamma(a, b)                     x_n ~ Poisson(λ)
normal_normal          μ ~ N(0, s²)                        x_n ~ N(μ, σ²), σ known
normal_inverse_gamma   σ² ~ InverseGamma(a, b),            x_n ~ N(μ, σ²)
                       μ | σ² ~ N(m, σ²/κ)
dirichlet_categorical  π ~ Dirichlet(α)                    x_n ~ Categorical(π)
=====================  ==================================  ============================

Reference:
    | Bayesian Data Analysis, 3rd ed., chapters 2 and 3 (Gelman et al., 2013)
    | http://www.stat.columbia.edu/~gelman/book/

Shapes: N data, K categories. The numbers of each prior are arbitrary defaults: bind others with
``functools.partial``.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def beta_bernoulli(x: Tensor, a: float = 1.0, b: float = 1.0) -> Tensor:
    """One coin for all tosses: x is 0 or 1, of shape (N,)."""
    p = pyro.sample("p", dist.Beta(torch.tensor(a), torch.tensor(b)))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Bernoulli(p), obs=x)


def beta_binomial(x: Tensor, total: Tensor, a: float = 1.0, b: float = 1.0) -> Tensor:
    """A coin for each datum: x heads out of total tosses, both (N,)."""
    with pyro.plate("data", len(x), dim=-1):
        p = pyro.sample("p", dist.Beta(torch.tensor(a), torch.tensor(b)))
        return pyro.sample("x", dist.Binomial(total, p), obs=x)


def gamma_poisson(x: Tensor, a: float = 1.0, b: float = 1.0) -> Tensor:
    """One rate for all counts, (N,): their marginal is negative binomial."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(a), torch.tensor(b)))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def normal_normal(x: Tensor, prior_sd: float = 10.0, sd: float = 1.0) -> Tensor:
    """One mean for all data, (N,), whose sd is known."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), prior_sd))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, sd), obs=x)


def normal_inverse_gamma(
    x: Tensor, m: float = 0.0, kappa: float = 1.0, a: float = 2.0, b: float = 1.0
) -> Tensor:
    """Mean and variance of the data, (N,): their marginal is Student's t."""
    variance = pyro.sample("variance", dist.InverseGamma(torch.tensor(a), torch.tensor(b)))
    mu = pyro.sample("mu", dist.Normal(m, (variance / kappa).sqrt()))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, variance.sqrt()), obs=x)


def dirichlet_categorical(x: Tensor, alpha: Tensor) -> Tensor:
    """One die for all throws: x is 0, 1, … K - 1, of shape (N,), and alpha is (K,)."""
    pi = pyro.sample("pi", dist.Dirichlet(alpha))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Categorical(pi), obs=x)
