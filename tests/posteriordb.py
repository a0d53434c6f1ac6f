r"""Stories of posteriordb, written so that NUTS is fast, beside their reference draws.

Regressions are sampled as :math:`\beta = \hat\beta + A w`, with :math:`\hat\beta` the least
squares and :math:`A A^\top` its covariance: w is then nearly standard normal a posteriori. A
Gaussian prior on beta stays what it was, written in terms of w. Flat priors are the Gaussian
of scale 10⁶, and the half-Gaussian of scale 10³ for a noise near 1: they move no posterior mean
by 10⁻⁵ of its sd.

Hidden states are summed out as a product of T - 1 matrices, neighbours first: seven steps for
T = 100, each of which vectorises, where the forward algorithm has T.

References:
    | posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms
    | (Magnusson et al., 2025) https://arxiv.org/abs/2407.04967

Shapes: N data, D coefficients, K components or states, T steps, * nothing or particles.
"""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class Posterior(NamedTuple):
    model: Callable
    data: tuple[Tensor, ...]
    sites: tuple[str, ...]  # in the order of the columns of the reference draws


# ---- stories ----


def eight_schools(y: Tensor, sigma: Tensor) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z, event_dim=0)
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def mixture(y: Tensor) -> Tensor:
    """Means in order: a rotation of two N(0, 2), with their difference folded to be positive."""
    total = pyro.sample("total", dist.Normal(0.0, 2.0))
    gap = pyro.sample("gap", dist.HalfNormal(2.0))
    mu = pyro.deterministic("mu", torch.stack((total - gap, total + gap), -1) / 2**0.5)  # (K,)
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))  # (K,)
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=torch.stack((theta, 1.0 - theta), -1))
    with pyro.plate("data", len(y), dim=-1):
        return pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def markov(y: Tensor) -> Tensor:
    """Two hidden states, the first with the lower mean; y is (T,)."""
    # What is folded over keeps the order: less than 10⁻⁷ of the density, where the posterior is.
    low = pyro.sample("low", dist.FoldedDistribution(dist.Normal(3.0, 1.0)))
    gap = pyro.sample("gap", dist.FoldedDistribution(dist.Normal(10.0 - low, 1.0)))
    mu = pyro.deterministic("mu", torch.stack((low, low + gap), -1))  # (*, K)
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2, 2)).to_event(1))  # (*, K, K)
    log_lik = dist.Normal(mu[..., None, :], 1.0).log_prob(y[:, None])  # (*, T, K)
    moves = theta.log()[..., None, :, :] + log_lik[..., 1:, None, :]  # (*, T - 1, K, K)
    chain = log_lik[..., 0, :, None] + log_product(moves)  # (*, K, K): the first state has no prior
    pyro.factor("y", chain.logsumexp((-2, -1)))
    return y


def log_product(moves: Tensor) -> Tensor:
    """Multiplies the matrices (*, T, K, K), of logarithms, in their order: (*, K, K)."""
    while moves.shape[-3] > 1:
        pairs, odd = moves.tensor_split((moves.shape[-3] // 2 * 2,), -3)
        # Sums, where K is small, compile to one loop; a product of matrices would be a call each.
        product = (pairs[..., ::2, :, :, None] + pairs[..., 1::2, None, :, :]).logsumexp(-2)
        moves = torch.cat((product, odd), -3)
    return moves[..., 0, :, :]


def regression(X: Tensor, y: Tensor, noise: dist.Distribution, scale: float = 1e6) -> Posterior:
    """y ~ N(X beta, sigma) with beta ~ N(0, scale); X is (N, D)."""
    R = torch.linalg.qr(X).R
    centre = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    A = (y - X @ centre).std() * R.inverse()
    prior = dist.MultivariateNormal(-A.inverse() @ centre, precision_matrix=A.T @ A / scale**2)

    def model(X: Tensor, y: Tensor) -> Tensor:
        w = pyro.sample("w", prior)  # (D,)
        beta = pyro.deterministic("beta", centre + (A * w[..., None, :]).sum(-1))  # (D,)
        sigma = pyro.sample("sigma", noise)
        with pyro.plate("data", len(X), dim=-1):
            return pyro.sample("y", dist.Normal((X * beta).sum(-1), sigma), obs=y)

    return Posterior(model, (X, y), ("beta", "sigma"))


# ---- with their data, D being what the file says ----


def _schools(y: Tensor, sigma: Tensor, **_: Tensor) -> Posterior:
    return Posterior(eight_schools, (y, sigma), ("theta", "mu", "tau"))


def _mixture(y: Tensor, **_: Tensor) -> Posterior:
    return Posterior(mixture, (y,), ("mu", "sigma", "theta"))


def _markov(y: Tensor, **_: Tensor) -> Posterior:
    return Posterior(markov, (y,), ("theta", "mu"))


def _kidiq(kid_score: Tensor, mom_hs: Tensor, mom_iq: Tensor, **_: Tensor) -> Posterior:
    X = torch.stack((torch.ones_like(mom_iq), mom_hs, mom_iq, mom_hs * mom_iq), 1)
    return regression(X, kid_score, dist.HalfCauchy(2.5))


def _earnings(earn: Tensor, height: Tensor, **_: Tensor) -> Posterior:
    X = torch.stack((torch.ones_like(height), height), 1)
    return regression(X, earn.log(), dist.HalfNormal(1e3))


def _autoregression(y: Tensor, K: Tensor, **_: Tensor) -> Posterior:
    K = int(K)
    lags = y.unfold(0, K, 1)[:-1].flip(1)  # (T - K, K): the last value first
    X = torch.cat((torch.ones(len(lags), 1), lags), 1)
    return regression(X, y[K:], dist.HalfCauchy(2.5), scale=10.0)


def _sblri(X: Tensor, y: Tensor, **_: Tensor) -> Posterior:
    return regression(X, y, dist.HalfNormal(10.0), scale=10.0)


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": _schools,
    "low_dim_gauss_mix-low_dim_gauss_mix": _mixture,
    "hmm_example-hmm_example": _markov,
    "kidiq-kidscore_interaction": _kidiq,
    "earnings-logearn_height": _earnings,
    "arK-arK": _autoregression,
    "sblri-blr": _sblri,
}


def posterior(folder: Path, name: str) -> Posterior:
    """Returns a story of posteriordb with its data."""
    with gzip.open(folder / "data" / f"{name.split('-')[0]}.json.gz", "rt") as file:
        read = json.load(file)
    tensor = partial(torch.tensor, dtype=torch.get_default_dtype())
    return POSTERIORS[name](**{key: tensor(value) for key, value in read.items()})


def reference(folder: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """Returns the reference draws (C, S, columns), and what the columns are."""
    with np.load(folder / "draws" / f"{name}.npz", allow_pickle=False) as file:
        return file["draws"].astype(np.float64), file["names"].tolist()
