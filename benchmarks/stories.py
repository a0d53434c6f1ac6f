r"""The stories that steps of SVI are timed on, with their guides and data, in float32.

Eight schools, non-centred (Rubin, 1981); a regression,

.. math:: w \sim \mathcal N(0, I), \quad \sigma \sim \mathrm{HalfNormal}(1), \quad
    y_n \sim \mathcal N(x_n^\top w, \sigma^2),

both with mean-field guides, log-normal where the site is positive; and the factor analysis and the
variational autoencoder that pplvm ships. ``peers_numpyro.py`` has them with parameters of the same
names.

Shapes: N data, D features, * nothing or particles.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pplvm.batches import Batches
from pplvm.datasets import digits
from pplvm.guides.factor_analysis import LinearGaussian
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE
from pplvm.objectives import elbo
from pplvm.training import Run

Story = tuple[Callable, Callable, tuple[Tensor, ...]]  # model, guide, data


def schools(y: Tensor, sigma: Tensor) -> Tensor:
    """Eight schools, non-centred (Gelman et al., Bayesian Data Analysis)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def schools_guide(y: Tensor, sigma: Tensor) -> None:
    """Mean field with a log-normal scale."""
    m, s = pyro.param("m", torch.zeros(2)), pyro.param("s", torch.zeros(2))
    mz, sz = pyro.param("mz", torch.zeros(8)), pyro.param("sz", torch.zeros(8))
    pyro.sample("mu", dist.Normal(m[0], s[0].exp()))
    pyro.sample("tau", dist.LogNormal(m[1], s[1].exp()))
    with pyro.plate("school", len(y), dim=-1):
        pyro.sample("z", dist.Normal(mz, sz.exp()))


def regression(X: Tensor, y: Tensor) -> Tensor:
    """Bayesian linear regression; X is (N, D)."""
    w = pyro.sample("w", dist.Normal(X.new_zeros(X.shape[1]), 1.0).to_event(1))  # (*, D)
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal((X * w).sum(-1), sigma), obs=y)


def regression_guide(X: Tensor, y: Tensor) -> None:
    """Mean field with a log-normal scale of the noise."""
    m, s = pyro.param("m", X.new_zeros(X.shape[1])), pyro.param("s", X.new_zeros(X.shape[1]))
    m_sigma, s_sigma = (
        pyro.param("m_sigma", X.new_zeros(())),
        pyro.param("s_sigma", X.new_zeros(())),
    )
    pyro.sample("w", dist.Normal(m, s.exp()).to_event(1))
    pyro.sample("sigma", dist.LogNormal(m_sigma, s_sigma.exp()))


def _schools() -> Story:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return schools, schools_guide, (y, sigma)


def _regression() -> Story:
    generator = torch.Generator().manual_seed(0)
    X, w = torch.randn(1000, 10, generator=generator), torch.randn(10, generator=generator)
    return regression, regression_guide, (X, X @ w + 0.5 * torch.randn(1000, generator=generator))


def _factor_analysis() -> Story:
    return FactorAnalysis(61, 10), LinearGaussian(61, 10), (digits(),)


def _vae() -> Story:
    """Noise of MNIST's size, a fifth of it white: the time does not depend on what is drawn."""
    images = (torch.rand(128, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    return VAE((28, 28)), VAEGuide((28, 28)), (images,)


STORIES: dict[str, Callable[[], Story]] = {
    "eight schools": _schools,
    "regression, 1000 × 10": _regression,
    "factor analysis, 1797 × 61": _factor_analysis,
    "VAE 784-400-20, 128 images": _vae,
}


def registered(program: Callable, name: str) -> Callable:
    """Returns the program with its module, if it is one, in Pyro's parameter store."""
    if not isinstance(program, torch.nn.Module):
        return program

    def named(*data: Tensor) -> Tensor:
        pyro.module(name, program)
        return program(*data)

    return named


def run(name: str, compile: str) -> Run:
    """Returns pplvm's run of a story, as ``pplvm.fit`` would have it."""
    torch.manual_seed(0)
    model, guide, data = STORIES[name]()
    return Run(
        model, guide, objective=elbo, batches=Batches(data, None, 0, lambda x: x),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, fused=True), scheduler=None,
        clip_norm=None, kl_schedule=None, device=torch.device("cpu"), seed=0, compile=compile,
    )  # fmt: skip
