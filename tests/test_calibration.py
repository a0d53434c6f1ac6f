r"""Simulation-based calibration: the ranks of truths among draws of their posterior are uniform.

With z* and x from the story and z_1 … z_R independent draws of the posterior given x, the rank of
f(z*, x) among the f(z_r, x) is uniform on 0 … R, for every f; of discrete f, ties are broken at
random.

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
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from pyro import poutine
from scipy.stats import chisquare
from torch import Tensor

import pplvm

pytestmark = pytest.mark.slow

RANKED = 63  # draws that a truth is ranked among: 64 ranks, in
BINS = 8  # equal bins
APART = 1_000_000  # between the seed of a truth and that of its inference: no noise in common


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains one after the other: the tests themselves take the cores."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


# ---- ranks ----


def simulate(model: Callable, *data: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Draws the value of every site from the story alone, and what it returns."""
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*data)
    sites = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    return sites, trace.nodes["_RETURN"]["value"]


def rank(truth: dict[str, Tensor], draws: pplvm.Draws, y: Tensor) -> dict[str, int]:
    """Ranks the truth among R of the draws, evenly spread, by each f."""
    kept = draws.thin(RANKED).values
    both = {n: torch.cat((truth[n][None, None], kept[n]), 1) for n in kept}  # (1, 1 + R, …)
    log_lik = replace(draws, values=both).log_likelihood()
    both["log-likelihood"] = sum(v.flatten(2).sum(-1) for v in log_lik.values())
    if "k" in both:  # of each datum: how many are in its group, and which
        k = both.pop("k")
        both |= {"number": k.sum(-1), "sum": (k * y).sum(-1)}
    ranks = {}
    for name, value in both.items():
        flat = value[0].reshape(RANKED + 1, -1)  # (1 + R, …)
        below, ties = ((op(flat[1:], flat[0])).sum(0) for op in (torch.lt, torch.eq))
        broken = (torch.rand(ties.shape) * (ties + 1)).long()
        ranks |= {f"{name}[{i}]": int(r) for i, r in enumerate(below + broken)}
    return ranks


def replication(
    infer: Callable, model: Callable, believed: Callable, X: Tensor, seed: int
) -> dict[str, int]:
    torch.manual_seed(seed)
    truth, y = simulate(model, X, torch.zeros(len(X)))
    return rank(truth, infer(believed, X, y, seed + APART), y)


def calibrate(
    infer: Callable,
    model: Callable,
    X: Tensor,
    num_replications: int,
    believed: Callable | None = None,
) -> dict[str, np.ndarray]:
    """Counts the ranks in each bin, by each f; ``believed`` is the story that is inferred."""
    found = [
        replication(infer, model, believed or model, X, seed) for seed in range(num_replications)
    ]
    ranks = {name: np.array([row[name] for row in found]) for name in found[0]}
    return {
        name: np.bincount(r * BINS // (RANKED + 1), minlength=BINS) for name, r in ranks.items()
    }


def p_value(counts: dict[str, np.ndarray]) -> float:
    """How likely ranks less uniform than these are, by any f, were they uniform: at most this."""
    p_values = {name: chisquare(row).pvalue for name, row in counts.items()}
    for name, row in counts.items():
        print(f"{name}: {row.tolist()}, p = {p_values[name]:.2g}")
    found = min(1.0, min(p_values.values()) * len(p_values))
    print(f"all together: {found:.2g}")
    return found


# ---- stories ----


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


def groups(X: Tensor, y: Tensor) -> Tensor:
    """Effects whose spread is latent, as in eight schools; X holds the errors of y."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", len(X), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(m + s * z, X), obs=y)


def two_normals(X: Tensor, y: Tensor, width: float = 1.0) -> Tensor:
    """A Gaussian mixture, its components told apart by which is the lower one."""
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    gap = pyro.sample("gap", dist.Gamma(4.0, 2.0 / width))
    w = pyro.sample("w", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(X), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(w))
        return pyro.sample("y", dist.Normal(low + gap * k, 0.7), obs=y)


# ---- ways of inferring ----


def by_exact(model: Callable, X: Tensor, y: Tensor, seed: int) -> pplvm.Draws:
    return pplvm.exact(model, X, y).draws(RANKED, seed=seed)


def by_nuts(
    model: Callable, X: Tensor, y: Tensor, seed: int, num_samples: int = 12 * RANKED, **options
) -> pplvm.Draws:
    """Draws a chain that is worth R independent draws, so that thinning leaves about such."""
    options = {"backend": "nutpie", "compile": "inductor"} | options
    draws = pplvm.nuts(
        model, X, y, num_chains=1, num_warmup=200, num_samples=num_samples, seed=seed, **options
    )
    scalars = [v[..., None].flatten(2).movedim(-1, 0).numpy() for v in draws.values.values()]
    worth = min(array_stats.ess(x).min() for x in scalars)
    if worth >= RANKED:
        return draws
    return by_nuts(model, X, y, seed, 2 * num_samples, **options)


def by_chees(model: Callable, X: Tensor, y: Tensor, seed: int) -> pplvm.Draws:
    """The last draw of each of R chains: as long as they are, they have nothing in common."""
    draws = pplvm.chees(
        model, X, y,
        num_chains=RANKED, num_warmup=100, num_samples=10, compile="inductor", seed=seed,
    )  # fmt: skip
    last = {name: value[:, -1:].transpose(0, 1) for name, value in draws.values.items()}
    return replace(draws, values=last, stats={})


def by_mean_field(model: Callable, X: Tensor, y: Tensor, seed: int) -> pplvm.Draws:
    fit = pplvm.fit(model, None, X, y, num_steps=400, lr=0.05, seed=seed)
    return fit.draws(num_draws=RANKED, seed=seed)


# ---- what is calibrated, and what is not ----


def test_exact_posteriors_are_calibrated():
    """False alarm: 1e-4."""
    assert p_value(calibrate(by_exact, linear, torch.randn(2, 2), 1000)) > 1e-4


def test_a_prior_twice_too_wide_is_not_calibrated():
    believed = partial(linear, scale=0.6)
    assert p_value(calibrate(by_exact, linear, torch.randn(2, 2), 1000, believed)) < 1e-8


STORIES = {
    "overdispersed": (overdispersed, torch.linspace(-0.5, 0.5, 4)),
    "groups": (groups, torch.tensor([0.3, 0.5, 0.5, 0.8])),
    "two normals": (two_normals, torch.zeros(8)),
}


@pytest.mark.parametrize("name", STORIES)
def test_nutpie_is_calibrated(name):
    """False alarm: 1e-4 for each."""
    assert p_value(calibrate(by_nuts, *STORIES[name], 160)) > 1e-4


def test_the_sampler_of_pyro_is_calibrated():
    """False alarm: 1e-4."""
    by_pyro = partial(by_nuts, backend="pyro", compile="auto", num_samples=3 * RANKED)
    assert p_value(calibrate(by_pyro, *STORIES["overdispersed"], 48)) > 1e-4


def test_chees_is_calibrated():
    """False alarm: 1e-4."""
    assert p_value(calibrate(by_chees, *STORIES["two normals"], 96)) > 1e-4


def test_a_gap_believed_twice_as_wide_is_not_calibrated():
    believed = partial(two_normals, width=2.0)
    assert p_value(calibrate(by_nuts, *STORIES["two normals"], 96, believed)) < 1e-8


def test_labels_from_their_prior_are_not_calibrated(monkeypatch):
    """And nothing else shows it: the continuous latents are what they were."""

    def from_the_prior(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict:
        w = values["w"][:, None].expand(-1, len(data[0]))
        return {"k": torch.bernoulli(w)}

    monkeypatch.setattr(pplvm.traces, "decode", from_the_prior)
    counts = calibrate(by_nuts, *STORIES["two normals"], 64)
    decoded = {"number[0]", "sum[0]", "log-likelihood[0]"}
    assert p_value({name: row for name, row in counts.items() if name in decoded}) < 1e-8
    assert p_value({name: row for name, row in counts.items() if name not in decoded}) > 1e-4


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
