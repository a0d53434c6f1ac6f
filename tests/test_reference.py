r"""Answers against posteriordb's reference draws, and against the laws of calibration.

Simulation-based calibration: with z* and x from the story and z_1 … z_R independent draws of
the posterior given x, the rank of f(z*, x) among the f(z_r, x) is uniform on 0 … R, for every f.

References:
    | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
    | (Talts et al., 2018) https://arxiv.org/abs/1804.06788
    | Simulation-Based Calibration Checking: the Choice of Test Quantities (Modrák et al., 2023)
    | https://arxiv.org/abs/2211.02383 — why the log-likelihood is one of the f
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import posteriordb
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from joblib import Parallel, delayed
from pyro import poutine
from scipy.stats import chisquare
from torch import Tensor

import pplvm

pytestmark = pytest.mark.slow

RANKED = 63  # draws that a truth is ranked among: 64 ranks, in
BINS = 8  # equal bins


# ---- posteriordb ----


def moments(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of draws (C, S, D), and their Monte Carlo standard errors: (2, D) each.

    The error of an sd is that of the mean square, which mixes slower than the draws do.
    """
    x = draws.transpose(2, 0, 1)  # (D, C, S)
    mean = x.mean((1, 2))
    squares = (x - mean[:, None, None]) ** 2
    sd = squares.mean((1, 2)) ** 0.5
    error = array_stats.mcse(squares, method="mean") / (2 * sd)
    return np.stack((mean, sd)), np.stack((array_stats.mcse(x, method="mean"), error))


@pytest.mark.parametrize("name", posteriordb.POSTERIORS)
def test_nuts_agrees_with_the_reference_draws(shared_data, name):
    """False alarm: 36 means and 36 sds at 4.5 standard errors of both sides, 5e-4 in all."""
    model, data, sites = posteriordb.posterior(shared_data / "posteriordb", name)
    reference, names = posteriordb.reference(shared_data / "posteriordb", name)
    draws = pplvm.nuts(model, *data, num_chains=4, num_warmup=500, num_samples=1000, seed=1)
    values = draws.values | draws.deterministic()
    got = torch.cat([values[site].reshape(*draws.shape, -1) for site in sites], -1).numpy()
    assert got.shape[2] == len(names)
    rhat = array_stats.rhat(got.transpose(2, 0, 1))
    (want, error), (have, ours) = moments(reference), moments(got)
    z = (have - want) / np.hypot(error, ours)
    report = {n: np.round(row, 1).tolist() for n, row in zip(names, z.T, strict=True)}
    print(f"{name}: z of mean and sd {report}, {draws.seconds:.0f} s, R-hat {rhat.max():.4f}")
    assert rhat.max() < 1.01
    assert draws.stats["diverging"].double().mean() < 0.002
    assert (np.hypot(error, ours) < 0.05 * want[1]).all()  # or the law would say little
    assert (np.abs(z) < 4.5).all(), report


# ---- simulation-based calibration ----


def simulate(model: Callable, *data: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Draws the value of every site from the story alone, and what it returns."""
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*data)
    sites = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    return sites, trace.nodes["_RETURN"]["value"]


def rank(truth: dict[str, Tensor], draws: pplvm.Draws) -> dict[str, int]:
    """Ranks the truth among R of the draws, evenly spread, by each f."""
    kept = draws.thin(RANKED).values
    both = {n: torch.cat((truth[n][None, None], kept[n]), 1) for n in kept}  # (1, 1 + R, …)
    log_lik = replace(draws, values=both).log_likelihood()
    both["log-likelihood"] = sum(v.flatten(2).sum(-1) for v in log_lik.values())
    ranks = {}
    for name, value in both.items():
        below = (value[0, 1:] < value[0, 0]).sum(0).reshape(-1)
        ranks |= {f"{name}[{i}]": int(r) for i, r in enumerate(below)}
    return ranks


def replication(
    infer: Callable, model: Callable, believed: Callable, X: Tensor, seed: int
) -> dict[str, int]:
    torch.set_default_dtype(torch.float64)  # which a worker would not know
    torch.manual_seed(seed)
    truth, y = simulate(model, X, torch.zeros(len(X)))
    return rank(truth, infer(believed, X, y, seed))


def calibrate(
    infer: Callable,
    model: Callable,
    X: Tensor,
    num_replications: int,
    believed: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Counts the ranks in each bin, by each f; ``believed`` is the story that is inferred."""
    found = Parallel(n_jobs=2)(
        delayed(replication)(infer, model, believed or model, X, seed)
        for seed in range(num_replications)
    )
    ranks = {name: np.array([row[name] for row in found]) for name in found[0]}
    return {
        name: np.bincount(r * BINS // (RANKED + 1), minlength=BINS) for name, r in ranks.items()
    }


def p_value(counts: dict[str, np.ndarray]) -> float:
    """How likely ranks less uniform than these are, by any f, were they uniform: at most this."""
    p_values = {name: chisquare(row).pvalue for name, row in counts.items()}
    for name, row in counts.items():
        print(f"{name}: {row.tolist()}, p = {p_values[name]:.2g}")
    return min(p_values.values()) * len(p_values)


def linear(X: Tensor, y: Tensor, scale: float = 0.3) -> Tensor:
    """A regression with a latent that the data share, and one of each datum."""
    m = pyro.sample("m", dist.Normal(0.5, scale))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(X), dim=-1):
        z = pyro.sample("z", dist.Normal(m + (X * w).sum(-1), 0.8))
        return pyro.sample("y", dist.Normal(z, 0.6), obs=y)


def collinear(X: Tensor, y: Tensor) -> Tensor:
    """A regression on one predictor, which its two weights share out between them."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal(X * w.sum(-1, keepdim=w.ndim > 1), 1.0), obs=y)


def overdispersed(X: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """Counts whose logarithmic mean is linear, and whose dispersion is latent."""
    a = pyro.sample("a", dist.Normal(1.0, 0.5))
    b = pyro.sample("b", dist.Normal(0.0, scale))
    r = pyro.sample("r", dist.Gamma(3.0, 1.0))
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.GammaPoisson(r, r * (-a - b * X).exp()), obs=y)


def by_exact(model: Callable, X: Tensor, y: Tensor, seed: int) -> pplvm.Draws:
    return pplvm.exact(model, X, y).draws(RANKED, seed=seed + 1_000_000)


def by_nuts(
    model: Callable, X: Tensor, y: Tensor, seed: int, num_samples: int = 3 * RANKED
) -> pplvm.Draws:
    """Draws a chain that is worth R independent draws, so that thinning leaves about such."""
    draws = pplvm.nuts(
        model, X, y, num_chains=1, num_warmup=200, num_samples=num_samples, seed=seed
    )
    worth = min(array_stats.ess(v.numpy()) for v in draws.values.values())  # all of them scalars
    return draws if worth >= RANKED else by_nuts(model, X, y, seed, 2 * num_samples)


def by_mean_field(model: Callable, X: Tensor, y: Tensor, seed: int) -> pplvm.Draws:
    fit = pplvm.fit(model, None, X, y, num_steps=400, lr=0.05, seed=seed)
    return fit.draws(num_draws=RANKED, seed=seed + 1_000_000)


def test_exact_posteriors_are_calibrated():
    """False alarm: 1e-4."""
    assert p_value(calibrate(by_exact, linear, torch.randn(2, 2), 1000)) > 1e-4


def test_a_prior_twice_too_wide_is_not_calibrated():
    believed = partial(linear, scale=0.6)
    assert p_value(calibrate(by_exact, linear, torch.randn(2, 2), 1000, believed)) < 1e-8


def test_nuts_is_calibrated():
    """False alarm: 1e-4."""
    assert p_value(calibrate(by_nuts, overdispersed, torch.linspace(-0.5, 0.5, 4), 128)) > 1e-4


def test_a_mean_field_is_too_narrow_where_latents_are_correlated():
    """To less than half here: the truth is then outside all of its draws, on either side, too often.

    False alarm: 1e-4, of the exact posterior on the same data.
    """
    X = torch.linspace(-1.5, 1.5, 8)
    assert p_value(calibrate(by_exact, collinear, X, 128)) > 1e-4
    counts = calibrate(by_mean_field, collinear, X, 128)
    assert p_value(counts) < 1e-8
    for name in ("w[0]", "w[1]"):
        assert counts[name][[0, -1]].min() > 1.5 * 128 / BINS
