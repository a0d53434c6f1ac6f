"""NUTS against exact posteriors: the draws, their statistics, and what must not change."""

import math
import os
import random
from collections.abc import Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from pyro import poutine
from torch import Tensor, nn
from zoo import learned, schools

import pplvm
from pplvm.models.factor_analysis import FactorAnalysis


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    """Chains one after the other: starting workers costs more than these chains do."""
    before = os.environ.get("LOKY_MAX_CPU_COUNT")
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"
    yield
    os.environ.pop("LOKY_MAX_CPU_COUNT")
    if before is not None:
        os.environ["LOKY_MAX_CPU_COUNT"] = before


@pytest.fixture(scope="module")
def story() -> tuple[FactorAnalysis, Tensor]:
    torch.manual_seed(1)
    model = FactorAnalysis(4, 2).double()
    return model, torch.randn(6, 4, dtype=torch.float64)


@pytest.fixture(scope="module")
def chains(story) -> pplvm.Draws:
    model, x = story
    return pplvm.nuts(model, x, num_chains=4, num_warmup=300, num_samples=500, seed=2)


def tiny(model, *data, **options) -> pplvm.Draws:
    options = {"num_chains": 2, "num_warmup": 20, "num_samples": 15} | options
    return pplvm.nuts(model, *data, **options)


def spread(draws: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sd of draws (…, C, S) about a known mean, and its Monte Carlo standard error.

    Not ArviZ's ``mcse(method="sd")``, which takes the effective sample size of the draws
    themselves. That of their squares is five times smaller, for chains that swing to and fro.
    """
    squares = (draws - mean) ** 2
    sd = squares.mean((-2, -1)) ** 0.5
    return sd, array_stats.mcse(squares, method="mean") / (2 * sd)


# ---- truth ----


def test_means_and_sds_are_exact(story, chains):
    """False alarm: 12 means and 12 sds at 4 Monte Carlo standard errors, 1.5e-3."""
    truth, z = pplvm.exact(*story), chains["z"].numpy()  # (C, S, N, L)
    flat = z.reshape(*z.shape[:2], -1).transpose(2, 0, 1)  # (N·L, C, S)
    mean, sd = truth.mean["z"].numpy().ravel(), truth.sd["z"].numpy().ravel()
    error = array_stats.mcse(flat, method="mean")
    assert error.max() < 0.05  # or the law would say nothing
    assert (np.abs(flat.mean((1, 2)) - mean) < 4 * error).all()
    got, error = spread(flat, mean[:, None, None])
    assert error.max() < 0.05
    assert (np.abs(got - sd) < 4 * error).all()


def test_correlations_are_exact(story, chains):
    """False alarm: 6 covariances at 5 standard errors of 1,000 effective draws, under 1e-5."""
    truth = pplvm.exact(*story)
    white = torch.linalg.solve_triangular(
        truth.scale_tril, (chains["z"].flatten(0, 1) - truth.location)[..., None], upper=False
    ).squeeze(-1)  # (C·S, N, L): standard normal
    cross = (white[..., 0] * white[..., 1]).mean(0)  # (N,)
    assert (cross.abs() < 5 / 1000**0.5).all()


def test_chains_mix(chains):
    flat = chains["z"].flatten(2).movedim(-1, 0).numpy()
    assert array_stats.rhat(flat).max() < 1.01
    assert array_stats.ess(flat).min() > 400


def test_statistics_of_the_sampler_are_sane(story, chains):
    """False alarm: the mean energy at 4 Monte Carlo standard errors, 6e-5."""
    stats, (C, S) = chains.stats, chains.shape
    assert all(value.shape == (C, S) for value in stats.values())
    assert not stats["diverging"].any()
    assert ((stats["tree_depth"] >= 1) & (stats["tree_depth"] <= 10)).all()
    assert (stats["step_size"] == stats["step_size"][:, :1]).all()  # adaptation is over
    assert (stats["step_size"] > 0).all()
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert 0.7 < stats["acceptance_rate"].mean() < 0.97  # 0.8 is its target
    # Potential and kinetic energy of D Gaussian dims: each averages D / 2 above its minimum.
    truth, energy = pplvm.exact(*story), stats["energy"].double().numpy()
    D = truth.location.numel()
    log_det = truth.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum()
    least = -(truth.log_marginal.sum() - 0.5 * D * math.log(2 * math.pi) - log_det)
    want = float(least) + D
    assert abs(energy.mean() - want) < 4 * array_stats.mcse(energy, method="mean")


def test_shared_and_constrained_latents_have_their_own_shapes_and_supports():
    data = schools().data
    draws = tiny(schools().model, *data)
    assert draws["mu"].shape == (2, 15)
    assert draws["theta"].shape == (2, 15, 8)
    assert (draws["tau"] > 0).all()  # in its own terms, not those of the sampler
    assert draws.plates == {"mu": (), "tau": (), "theta": ("school",)}


def test_a_positive_latent_is_drawn_from_its_posterior():
    """A conjugate Gamma; false alarm: mean and sd at 4 Monte Carlo standard errors, 1.3e-4."""
    counts = torch.tensor([3.0, 5.0, 2.0, 4.0])

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    draws = pplvm.nuts(model, counts, num_chains=2, num_warmup=200, num_samples=500)
    rate, truth = draws["rate"].numpy(), dist.Gamma(2.0 + counts.sum(), 1.0 + len(counts))
    mean, sd = truth.mean.item(), truth.stddev.item()
    assert abs(rate.mean() - mean) < 4 * array_stats.mcse(rate, method="mean")
    got, error = spread(rate, mean)
    assert abs(got - sd) < 4 * error


# ---- the same twice, and nothing else ----


def test_chains_follow_their_seed(story):
    one, same, other = (tiny(*story, seed=seed)["z"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # nor are the chains of a run each other


def test_a_chain_does_not_depend_on_those_beside_it(story):
    alone, together = tiny(*story, num_chains=1), tiny(*story, num_chains=2)
    assert torch.equal(alone["z"][0], together["z"][0])


def test_a_chain_is_the_same_in_a_worker(monkeypatch):
    """Of a story whose dtype is the session's: a worker must be told what that is."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = torch.randn(5)
    alone = tiny(model, x)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    beside = tiny(model, x)
    assert alone["m"].dtype == beside["m"].dtype == torch.float64
    assert torch.equal(alone["m"], beside["m"])


def test_parameters_and_random_states_stay_as_they_were(story):
    model, x = story
    values = [p.detach().clone() for p in model.parameters()]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tiny(model, x)
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert list(pyro.get_param_store()) == []


def test_validation_of_pyro_is_as_it_was(story):
    tiny(*story)
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0)


# ---- stories of every kind ----


def test_a_fitted_story_is_sampled_at_its_learned_parameters():
    """False alarm: 4 Monte Carlo standard errors, 6e-5; the prior's mean would be 30 away."""

    def model(theta, x):
        m = pyro.sample("m", dist.Normal(theta["mu"], 0.1))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = torch.randn(5) + 3.0
    program = learned(model, {"mu": torch.tensor(0.0)})
    fit = pplvm.fit(program, None, x, num_steps=300, lr=0.1)
    draws = pplvm.nuts(fit.model, x, num_chains=2, num_warmup=200, num_samples=300)
    m = draws["m"].numpy()
    truth = pplvm.exact(fit.model, x)
    assert truth.mean["m"] > 2.0
    assert abs(m.mean() - truth.mean["m"].item()) < 4 * array_stats.mcse(m, method="mean")


def test_a_method_of_a_module_is_a_story():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                return pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=x)

    network = Network()
    assert tiny(network.model, torch.randn(3))["z"].shape == (2, 15, 3)
    assert network.w.requires_grad


def test_masked_and_nested_sites_keep_their_plates():
    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-2), poutine.mask(mask=seen.T):
                return pyro.sample("x", dist.Normal(z, 1.0), obs=x.T).T

    draws = tiny(model, torch.randn(4, 3), torch.rand(4, 3) > 0.5)
    assert draws["z"].shape == (2, 15, 4)
    assert draws.plates == {"z": ("data",)}


def test_no_warmup_and_one_chain_will_do(story):
    draws = tiny(*story, num_chains=1, num_warmup=0, num_samples=3)
    assert draws["z"].shape == (1, 3, 6, 2)
    assert draws.settings["num_warmup"] == 0
    assert draws.seconds > 0
    assert not draws.independent
