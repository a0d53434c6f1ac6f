"""Chains against exact posteriors: the draws, their statistics, and what must not change."""

import itertools
import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial

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

SAMPLERS = {
    "nutpie": partial(pplvm.nuts, backend="nutpie"),
    "pyro": partial(pplvm.nuts, backend="pyro"),
    "chees": pplvm.chees,
}
# Runs that give a few hundred effective draws or more. Pyro's are short: they cost the most.
LENGTHS = {
    "nutpie": {"num_chains": 4, "num_warmup": 300, "num_samples": 500},
    "pyro": {"num_chains": 2, "num_warmup": 150, "num_samples": 400},
    "chees": {"num_chains": 64, "num_warmup": 150, "num_samples": 200},
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


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


@pytest.fixture(scope="module", params=SAMPLERS)
def chains(request, story) -> pplvm.Draws:
    return long(request.param, *story, seed=2)


def long(sampler: str, model: Callable, *data: Tensor, **options) -> pplvm.Draws:
    return SAMPLERS[sampler](model, *data, **(LENGTHS[sampler] | options))


def tiny(model: Callable, *data: Tensor, sampler: str = "nutpie", **options) -> pplvm.Draws:
    options = {"num_chains": 2, "num_warmup": 20, "num_samples": 15} | options
    return SAMPLERS[sampler](model, *data, **options)


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
    """False alarm: 12 means and 12 sds of each at 4 Monte Carlo standard errors, 4.5e-3."""
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
    """False alarm: 6 covariances of each sampler at 4 Monte Carlo standard errors, 1e-3."""
    truth = pplvm.exact(*story)
    white = torch.linalg.solve_triangular(
        truth.scale_tril, (chains["z"] - truth.location)[..., None], upper=False
    ).squeeze(-1)  # (C, S, N, L): standard normal
    cross = white.prod(-1).movedim(-1, 0).numpy()  # (N, C, S)
    error = array_stats.mcse(cross, method="mean")
    assert error.max() < 0.07
    assert (np.abs(cross.mean((1, 2))) < 4 * error).all()


def test_chains_mix(chains):
    flat = chains["z"].flatten(2).movedim(-1, 0).numpy()
    assert array_stats.rhat(flat).max() < 1.01
    assert array_stats.ess(flat).min() > 400
    assert chains.seconds > 0
    assert not chains.independent


def test_statistics_of_the_sampler_are_sane(story, chains):
    """False alarm: the mean energy of each at 4 Monte Carlo standard errors, 2e-4."""
    stats, (C, S) = chains.stats, chains.shape
    assert all(value.shape == (C, S) for value in stats.values())
    assert not stats["diverging"].any()
    if "n_steps" in stats:
        assert (stats["n_steps"] >= 1).all()
    if "tree_depth" in stats:
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


@each_sampler
def test_shared_and_constrained_latents_have_their_own_shapes_and_supports(sampler):
    data = schools().data
    draws = tiny(schools().model, *data, sampler=sampler)
    assert draws["mu"].shape == (2, 15)
    assert draws["theta"].shape == (2, 15, 8)
    assert (draws["tau"] > 0).all()  # in its own terms, not those of the sampler
    assert draws.plates == {"mu": (), "tau": (), "theta": ("school",)}


@each_sampler
def test_a_positive_latent_is_drawn_from_its_posterior(sampler):
    """A conjugate Gamma; false alarm: mean and sd of each at 4 standard errors, 4e-4."""
    counts = torch.tensor([3.0, 5.0, 2.0, 4.0])

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    draws = long(sampler, model, counts, num_chains=2 if sampler != "chees" else 64)
    rate, truth = draws["rate"].numpy(), dist.Gamma(2.0 + counts.sum(), 1.0 + len(counts))
    mean, sd = truth.mean.item(), truth.stddev.item()
    assert abs(rate.mean() - mean) < 4 * array_stats.mcse(rate, method="mean")
    got, error = spread(rate, mean)
    assert abs(got - sd) < 4 * error


# ---- the same twice, and nothing else ----


@each_sampler
def test_chains_follow_their_seed(story, sampler):
    one, same, other = (tiny(*story, sampler=sampler, seed=seed)["z"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # nor are the chains of a run each other


@pytest.mark.parametrize("sampler", ["nutpie", "pyro"])
def test_a_chain_does_not_depend_on_those_beside_it(story, sampler):
    alone, together = (tiny(*story, sampler=sampler, num_chains=C) for C in (1, 2))
    assert torch.equal(alone["z"][0], together["z"][0])


@pytest.mark.parametrize("compile", ["inductor", "graph", "off"])
def test_a_chain_does_not_depend_on_the_number_of_threads(story, compile, monkeypatch):
    alone = tiny(*story, num_chains=4, compile=compile)
    assert alone.settings["compile"] == f"{compile}: as asked"
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "3")
    beside = tiny(*story, num_chains=4, compile=compile)
    assert torch.equal(alone["z"], beside["z"])
    assert all(torch.equal(value, beside.stats[name]) for name, value in alone.stats.items())


def test_a_chain_is_the_same_in_a_worker(monkeypatch):
    """Of a story whose dtype is the session's: a worker must be told what that is."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = torch.randn(5)
    alone = tiny(model, x, sampler="pyro")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    beside = tiny(model, x, sampler="pyro")
    assert alone["m"].dtype == beside["m"].dtype == torch.float64
    assert torch.equal(alone["m"], beside["m"])


@each_sampler
def test_parameters_and_random_states_stay_as_they_were(story, sampler):
    model, x = story
    values = [p.detach().clone() for p in model.parameters()]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tiny(model, x, sampler=sampler)
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert list(pyro.get_param_store()) == []


@each_sampler
def test_validation_of_pyro_is_as_it_was(story, sampler):
    tiny(*story, sampler=sampler)
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


@each_sampler
def test_masked_and_nested_sites_keep_their_plates(sampler):
    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-2), poutine.mask(mask=seen.T):
                return pyro.sample("x", dist.Normal(z, 1.0), obs=x.T).T

    draws = tiny(model, torch.randn(4, 3), torch.rand(4, 3) > 0.5, sampler=sampler)
    assert draws["z"].shape == (2, 15, 4)
    assert draws.plates == {"z": ("data",)}


@each_sampler
def test_no_warmup_and_the_fewest_chains_will_do(story, sampler):
    fewest = 2 if sampler == "chees" else 1
    draws = tiny(*story, sampler=sampler, num_chains=fewest, num_warmup=0, num_samples=3)
    assert draws["z"].shape == (fewest, 3, 6, 2)
    assert draws.settings["num_warmup"] == 0


@each_sampler
def test_settings_are_those_of_the_run(story, sampler):
    draws = tiny(*story, sampler=sampler, seed=5)
    methods = {"nutpie": "NUTS (nutpie)", "pyro": "NUTS (Pyro)", "chees": "ChEES-HMC"}
    wanted = {"num_chains": 2, "num_warmup": 20, "num_samples": 15, "seed": 5}
    assert draws.settings.items() >= (wanted | {"method": methods[sampler]}).items()
    assert draws.settings["compile"].split(":")[0] == ("off" if sampler == "pyro" else "graph")
    if sampler != "pyro":
        parts = [draws.settings[name] for name in ("prepare_seconds", "sample_seconds")]
        assert min(parts) > 0
        assert sum(parts) <= draws.seconds


def test_nutpie_is_the_default(story):
    auto, nutpie = pplvm.nuts(*story, num_warmup=9, num_samples=3), tiny(*story, num_samples=3)
    assert auto.settings["method"] == nutpie.settings["method"] == "NUTS (nutpie)"


# ---- discrete latents ----


def two_groups(y: Tensor) -> Tensor:
    """Data about one mean, or 2 above it: Gaussian once it is known which."""
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        return pyro.sample("y", dist.Normal(m + 2.0 * k, 1.0), obs=y)


@each_sampler
def test_discrete_latents_are_decoded_jointly_with_the_others(sampler):
    """The probability of each assignment k, and the mean of m where it is the one drawn.

    False alarm: 8 of both for each sampler at 4 Monte Carlo standard errors, 3e-3.
    """
    y = torch.tensor([0.3, 1.2, 2.6])
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(y))))  # (K, N)
    rest = y - 2.0 * every
    cov = torch.eye(len(y)) + 4.0  # of the rest, m integrated out
    log_p = dist.MultivariateNormal(torch.zeros(len(y)), cov).log_prob(rest)
    p = (log_p + dist.Bernoulli(0.3).log_prob(every).sum(-1)).softmax(0).numpy()  # (K,)
    mean = (rest.sum(-1) / (len(y) + 0.25)).numpy()  # (K,) of m given k
    draws = long(sampler, two_groups, y, seed=4)
    assert draws["k"].dtype == torch.float64
    assert draws.plates == {"m": (), "k": ("data",)}
    drawn = (draws["k"][None] == every[:, None, None]).all(-1).double()  # (K, C, S)
    for got, want in ((drawn, p), (drawn * draws["m"], p * mean)):
        got = got.numpy()
        error = array_stats.mcse(got, method="mean")
        assert error.max() < 0.04
        assert (np.abs(got.mean((1, 2)) - want) < 4 * error).all()


# ---- what cannot be compiled ----


def test_a_story_that_cannot_be_traced_runs_as_it_is_and_warns_once():
    """False alarm: mean and sd at 4 Monte Carlo standard errors, 1.3e-4."""

    def loc(m):
        return 2.0 * m if m > 0 else 0.5 * m

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(loc(m), 1.0), obs=x)

    x = torch.tensor([0.8, -0.9, 0.3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = pplvm.nuts(model, x, num_chains=2, num_warmup=150, num_samples=500)
    (warning,) = caught
    assert "not compiled: it looks at the value of a tensor" in str(warning.message)
    assert draws.settings["compile"].startswith("off: it looks at the value")
    grid = torch.linspace(-6.0, 6.0, 4001)
    means = torch.where(grid > 0, 2.0 * grid, 0.5 * grid)
    log_p = dist.Normal(means[:, None], 1.0).log_prob(x).sum(-1) - grid**2 / 2
    p, m = log_p.softmax(0), draws["m"].numpy()
    mean = (p * grid).sum()
    sd = (p * (grid - mean) ** 2).sum().sqrt().item()
    assert abs(m.mean() - mean.item()) < 4 * array_stats.mcse(m, method="mean")
    got, error = spread(m, mean.item())
    assert abs(got - sd) < 4 * error


# ---- Ctrl-C ----

INTERRUPTED = """
import contextlib, io, json, os, signal, threading
import torch
import pplvm
from pplvm import mcmc
from pplvm.models.factor_analysis import FactorAnalysis

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background

model, x = FactorAnalysis(4, 2).double(), torch.randn(6, 4, dtype=torch.float64)
never = 10_000_000
nuts, chees = dict(num_chains=2), dict(num_chains=4)
compiled, graph = dict(compile="inductor"), dict(compile="graph")
early, late = dict(num_warmup=20, num_samples=never), dict(num_warmup=never, num_samples=5)
cases = {
    "nutpie": (pplvm.nuts, nuts | compiled | early),
    "nutpie, in the warm-up": (pplvm.nuts, nuts | compiled | late),
    "nutpie, its second chain still to come": (pplvm.nuts, nuts | graph | early),
    "nutpie, uncompiled": (pplvm.nuts, nuts | dict(compile="off") | early),
    "nutpie, in the warm-up of the first": (pplvm.nuts, nuts | graph | late),
    "chees": (pplvm.chees, chees | graph | early),
    "chees, in the warm-up": (pplvm.chees, chees | graph | late),
}
for sampler, options in ((pplvm.nuts, nuts | compiled), (pplvm.chees, chees | graph)):
    sampler(model, x, num_warmup=2, num_samples=2, **options)  # so that no case has to compile


def interrupted(function):  # not while a potential is traced, where some callbacks drop exceptions
    def sample(*args, **kwargs):
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return function(*args, **kwargs)

    return sample


mcmc.nuts_nutpie.sample = interrupted(mcmc.nuts_nutpie.sample)
mcmc.chees_hmc = interrupted(mcmc.chees_hmc)
for name, (sampler, options) in cases.items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            draws = sampler(model, x, **options)
            values = draws["z"], *draws.stats.values()
            found = [list(value.shape[:2]) for value in values], bool(draws["z"].isfinite().all())
        except KeyboardInterrupt:
            found = "KeyboardInterrupt"
    print(json.dumps([name, found, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def interrupted() -> dict[str, tuple]:
    """What a process is left with that sends itself SIGINT, by case, and what it said."""
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "2"}  # both chains of nutpie at once
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {name: (found, said) for name, found, said in rows}


@pytest.mark.parametrize(
    ("case", "num_chains", "of_what"),
    [
        ("nutpie", 2, "a chain"),
        ("chees", 4, "a chain"),
        ("nutpie, its second chain still to come", 1, "of 1 of 2 chains"),
        ("nutpie, uncompiled", 1, "of 1 of 2 chains"),
    ],
)
def test_interrupted_it_keeps_the_draws_so_far(interrupted, case, num_chains, of_what):
    (shapes, finite), said = interrupted[case]
    C, S = shapes[0]
    assert (C, finite) == (num_chains, True)
    assert 0 < S < 10_000_000
    assert all(shape == [C, S] for shape in shapes)
    assert said == f"pplvm: interrupted; kept {S} draws {of_what}.\n"


@pytest.mark.parametrize(
    "case",
    [
        "nutpie, in the warm-up",
        "nutpie, in the warm-up of the first",
        "chees, in the warm-up",
    ],
)
def test_interrupted_before_any_draw_it_is_interrupted(interrupted, case):
    assert interrupted[case] == ("KeyboardInterrupt", "")


# ---- errors ----


def impossible(x: Tensor) -> Tensor:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.factor("barrier", torch.where(m.abs() >= 0.0, -torch.inf, 0.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def discrete_alone(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        return pyro.sample("x", dist.Normal(k, 1.0), obs=x)


REFUSED = {
    "infinite for nuts": (lambda x: tiny(impossible, x), "not finite at 100 .*'barrier'"),
    "infinite for Pyro": (
        lambda x: pplvm.nuts(impossible, x, backend="pyro"), "not finite at 100 .*'barrier'"
    ),
    "infinite for chees": (
        lambda x: tiny(impossible, x, sampler="chees"), "not finite at 100 .*'barrier'"
    ),
    "discrete for nuts": (lambda x: tiny(discrete_alone, x), "all discrete"),
    "discrete for chees": (
        lambda x: tiny(discrete_alone, x, sampler="chees"), "all discrete"
    ),
    "backend": (lambda x: pplvm.nuts(two_groups, x, backend="stan"), "'backend'.*got 'stan'"),
    "compile": (lambda x: pplvm.nuts(two_groups, x, compile="jit"), "'compile'.*got 'jit'"),
    "compile of chees": (lambda x: pplvm.chees(two_groups, x, compile=1), "'compile'.*got 1"),
    "one chain": (lambda x: pplvm.chees(two_groups, x, num_chains=1), "'num_chains'.*2.*got 1"),
    "no draws": (lambda x: pplvm.chees(two_groups, x, num_samples=0), "'num_samples'.*got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sampled_is_refused_with_a_sentence(name):
    attempt, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        attempt(torch.randn(4))
    assert "\n" not in str(caught.value)
