"""Draws: their shapes, their names in ArviZ, and pointwise values that are right.

Shapes: C chains, S draws, N data, M parts of a datum.
"""

import math
from types import MappingProxyType

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats import loo, summary
from arviz_stats.base import array_stats
from torch import Tensor
from torch.distributions import Normal
from zoo import factor_analysis, mixed, nested, regression

import pplvm
from pplvm import traces

X = torch.tensor([[1.0, 0.5], [0.3, -1.0], [-0.7, 0.2], [1.5, 1.0], [0.1, -0.4]]).double()
Y = torch.tensor([1.1, 0.4, -0.9, 2.0, -0.2]).double()


def of(
    model, data, plates=MappingProxyType({}), chains=2, stats=None, **values: Tensor
) -> pplvm.Draws:
    """Draws made by hand, values (C·S, …)."""
    values = {name: v.unflatten(0, (chains, -1)) for name, v in values.items()}
    names = {name: plates.get(name, ()) for name in values}
    return pplvm.Draws(values, names, stats or {}, model, data)


# The same regression, written as a user might: only the first broadcasts over draws.
def broadcasting(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("total", w.sum(-1))
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal((X * w).sum(-1), 0.5), obs=y)


def by_matmul(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("total", w.sum())
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal(X @ w, 0.5), obs=y)


def by_index(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("total", w[0] + w[1])
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal(w[0] * X[:, 0] + w[1] * X[:, 1], 0.5), obs=y)


def by_whole_sum(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("total", w.sum())  # over particles too, and without an error
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal((X * w).sum(-1), 0.5), obs=y)


WRITTEN = [broadcasting, by_matmul, by_index, by_whole_sum]


# ---- shapes ----


def test_draws_are_chains_of_draws_of_plates_and_events():
    story = factor_analysis(num_data=5)
    fit = pplvm.fit(story.model, story.guide, *story.data, num_steps=2)
    draws = fit.draws(num_draws=7)
    assert draws["z"].shape == (1, 7, 5, 2)
    assert draws.shape == (1, 7)
    assert draws.plates == {"z": ("data",)}
    assert draws.independent
    assert draws.predict()["x"].shape == (1, 7, 5, 3)
    assert draws.log_likelihood()["x"].shape == (1, 7, 5)


def test_inner_plates_come_first():
    story = nested(num_data=4, num_parts=3)
    fit = pplvm.fit(story.model, story.guide, *story.data, num_steps=2)
    draws = fit.draws(num_draws=6)
    assert draws["w"].shape == (1, 6, 3, 4)
    assert draws.plates == {"z": ("data",), "w": ("parts", "data")}
    assert draws.log_likelihood()["x"].shape == (1, 6, 4)  # a datum's parts belong together


def test_what_was_not_drawn_is_named():
    draws = of(broadcasting, (X, Y), w=torch.randn(6, 2))
    with pytest.raises(ValueError, match=r"no site 'v' in these draws: they have \['w'\]"):
        draws["v"]


def test_thinning_keeps_draws_evenly_with_their_statistics():
    w = torch.arange(20.0).repeat(2, 1).flatten()[:, None].expand(-1, 2)
    draws = of(broadcasting, (X, Y), w=w, stats={"energy": torch.arange(20.0).repeat(2, 1)})
    thin = draws.thin(5)
    assert thin["w"][0, :, 0].tolist() == [0, 5, 10, 14, 19]
    assert thin.stats["energy"][1].tolist() == [0, 5, 10, 14, 19]
    assert draws.thin(50) is draws


# ---- values ----


@pytest.mark.parametrize("model", WRITTEN)
def test_pointwise_values_are_right_however_the_story_is_written(model):
    w = torch.randn(6, 2)
    draws = of(model, (X, Y), w=w)
    got = draws.log_likelihood()["y"]
    torch.testing.assert_close(got, Normal(w @ X.T, 0.5).log_prob(Y).reshape(2, 3, 5))
    torch.testing.assert_close(draws.deterministic()["total"], w.sum(-1).reshape(2, 3))


@pytest.mark.parametrize("model", WRITTEN)
@pytest.mark.parametrize("num_draws", [1, 2])
def test_few_draws_are_no_special_case(model, num_draws):
    w = torch.randn(num_draws, 2)
    draws = of(model, (X[:2], Y[:2]), chains=1, w=w)  # as many data as dims, and as draws
    got = draws.log_likelihood()["y"]
    torch.testing.assert_close(got, Normal(w @ X[:2].T, 0.5).log_prob(Y[:2])[None])


@pytest.mark.parametrize("model", WRITTEN)
def test_predictions_are_drawn_at_the_draws(model):
    """False alarm: 10 means of 400 predictions at 5 standard errors, 6e-6."""
    w = torch.tensor([[1.0, -1.0], [20.0, 5.0]]).repeat_interleave(400, 0)
    predicted = of(model, (X, Y), chains=2, w=w).predict(seed=1)["y"]  # (2, S, N)
    want = torch.tensor([[1.0, -1.0], [20.0, 5.0]]) @ X.T
    assert ((predicted.mean(1) - want).abs() < 5 * 0.5 / predicted.shape[1] ** 0.5).all()
    assert (predicted.std(1) > 0.4).all()


def test_predictions_follow_their_seed():
    draws = of(broadcasting, (X, Y), w=torch.randn(6, 2))
    one, same, other = (draws.predict(seed=seed)["y"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_many_draws_are_replayed_in_parts(monkeypatch):
    draws = of(broadcasting, (X, Y), w=torch.randn(10, 2))
    whole = draws.log_likelihood()["y"]
    monkeypatch.setattr("pplvm.draws._PART", 30)  # three draws at a time, and one that is left
    torch.testing.assert_close(draws.log_likelihood()["y"], whole)


def test_nested_values_are_summed_within_a_datum():
    story = nested(num_data=4, num_parts=3)
    w = torch.randn(6, 3, 4)
    plates = {"z": ("data",), "w": ("parts", "data")}
    draws = of(story.model, story.data, plates, z=torch.randn(6, 4), w=w)
    want = Normal(w, 1.0).log_prob(story.data[0].T).sum(1)
    torch.testing.assert_close(draws.log_likelihood()["x"], want.reshape(2, 3, 4))


def test_a_site_outside_the_data_plate_keeps_its_own_plates():
    def schools(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("school", len(y), dim=-1):
            return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mu = torch.randn(6)
    draws = of(schools, (Y,), mu=mu)
    want = Normal(mu[:, None], 1.0).log_prob(Y).reshape(2, 3, 5)
    torch.testing.assert_close(draws.log_likelihood()["y"], want)
    assert draws.to_arviz().log_likelihood["y"].dims == ("chain", "draw", "school")


def test_draws_of_an_automatic_guide_are_made_together(monkeypatch):
    story = regression()
    fit = pplvm.fit(story.model, None, *story.data, num_steps=2)
    calls = []
    run = traces.replays.run
    monkeypatch.setattr(traces.replays, "run", lambda *a, **k: calls.append(1) or run(*a, **k))
    assert fit.draws(num_draws=50)["w"].shape == (1, 50, 2)
    assert len(calls) < 10  # not one after the other


# ---- ArviZ ----


@pytest.fixture
def chains(monkeypatch) -> pplvm.Draws:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    return pplvm.nuts(broadcasting, X, Y, num_chains=2, num_warmup=30, num_samples=20)


def test_groups_and_dims_of_chains(chains):
    tree = chains.to_arviz()
    assert set(tree.children) == {
        "posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior",
        "prior_predictive", "observed_data",
    }  # fmt: skip
    dims = {
        ("posterior", "w"): ("chain", "draw", "w_dim_0"),
        ("posterior", "total"): ("chain", "draw"),
        ("log_likelihood", "y"): ("chain", "draw", "data"),
        ("posterior_predictive", "y"): ("chain", "draw", "data"),
        ("prior", "w"): ("chain", "draw", "w_dim_0"),
        ("prior_predictive", "y"): ("chain", "draw", "data"),
        ("observed_data", "y"): ("data",),
    }
    assert {key: tree[key[0]][key[1]].dims for key in dims} == dims
    assert tree.posterior.sizes["chain"] == 2
    assert tree.posterior.sizes["draw"] == 20
    assert set(tree.sample_stats.data_vars) == {
        "diverging", "energy", "tree_depth", "n_steps", "step_size", "acceptance_rate"
    }  # fmt: skip


def test_values_in_the_tree_are_those_of_the_draws(chains):
    tree = chains.to_arviz()
    assert torch.equal(torch.as_tensor(tree.posterior["w"].values), chains["w"])
    total = torch.as_tensor(tree.posterior["total"].values)
    torch.testing.assert_close(total, chains["w"].sum(-1))
    likelihood = torch.as_tensor(tree.log_likelihood["y"].values)
    want = Normal(chains["w"] @ X.T, 0.5).log_prob(Y)
    torch.testing.assert_close(likelihood, want)
    assert torch.equal(torch.as_tensor(tree.observed_data["y"].values), Y)
    assert tree.sample_stats["diverging"].dtype == bool


def test_a_summary_has_a_row_for_each_scalar(chains):
    assert list(summary(chains.to_arviz()).index) == ["w[0]", "w[1]", "total"]


def test_draws_of_a_guide_have_no_statistics_of_a_sampler():
    story = factor_analysis(num_data=5)
    fit = pplvm.fit(story.model, story.guide, *story.data, num_steps=2)
    tree = fit.draws(num_draws=7).to_arviz()
    assert "sample_stats" not in tree.children
    assert tree.posterior["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert tree.posterior_predictive["x"].dims == ("chain", "draw", "data", "x_dim_0")
    assert tree.log_likelihood["x"].dims == ("chain", "draw", "data")


def test_nested_plates_are_named():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", x.shape[1], dim=-2):
                w = pyro.sample("w", dist.Normal(z, 1.0))
                return pyro.sample("x", dist.Normal(w, 1.0), obs=x.T)

    draws = pplvm.exact(model, torch.randn(4, 3)).draws(6)
    tree = draws.to_arviz({"parts": ["a", "b", "c"]})
    assert tree.posterior["w"].dims == ("chain", "draw", "parts", "data")
    assert tree.observed_data["x"].dims == ("parts", "data")
    assert list(tree.posterior["w"].coords["parts"].values) == ["a", "b", "c"]


def test_coordinates_label_every_group(chains):
    names = [f"row {i}" for i in range(5)]
    tree = chains.to_arviz(coords={"data": names, "w_dim_0": ["slope", "other"]})
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive", "observed_data"):
        assert list(tree[group].coords["data"].values) == names
    assert list(tree.posterior.coords["w_dim_0"].values) == ["slope", "other"]
    assert "data" not in tree.posterior.coords


@pytest.mark.parametrize(
    ("coords", "words"),
    [({"data": ["a", "b"]}, ["'data'", "2 labels", "5"]), ({"date": [1]}, ["'date'", "1 labels"])],
)
def test_coordinates_that_do_not_fit_are_named(chains, coords, words):
    with pytest.raises(ValueError, match="give one label") as caught:
        chains.to_arviz(coords)
    assert all(word in str(caught.value) for word in words)


def test_the_prior_predictive_is_of_the_prior():
    """False alarm: a mean of 100 draws at 5 standard errors, 6e-7."""
    latents, observed = of(broadcasting, (X, Y), w=torch.randn(4, 2) + 50).prior_predict(100)
    assert latents["w"].shape == (1, 100, 2)
    assert latents["w"].mean().abs() < 5 / 200**0.5
    assert not torch.isclose(observed["y"][0, :, 0], Y[0]).any()


def test_leaving_one_out_is_exact_leave_one_out():
    """PSIS-LOO of exact draws against the closed form; false alarm: 5 standard errors, 6e-7."""
    draws = pplvm.exact(broadcasting, X, Y).draws(8000, seed=1)
    result = loo(draws.to_arviz(), pointwise=True)
    want, error = [], []
    for n in range(5):
        rest = torch.arange(5) != n
        precision = torch.eye(2) + X[rest].T @ X[rest] / 0.25
        cov = precision.inverse()
        mean = cov @ X[rest].T @ Y[rest] / 0.25
        scale = (X[n] @ cov @ X[n] + 0.25).sqrt()
        want.append(Normal(X[n] @ mean, scale).log_prob(Y[n]).item())
        ratio = (-draws.log_likelihood()["y"][0, :, n]).exp().numpy()
        error.append(array_stats.mcse(ratio[None], method="mean") / ratio.mean())
    assert float(result.elpd) == pytest.approx(sum(want), abs=5 * math.hypot(*error) + 1e-3)
    assert (result.pareto_k < 0.7).all()


def test_the_model_is_run_without_touching_the_random_state():
    story = mixed()
    draws = of(story.model, story.data, {"z": ("data",)}, m=torch.randn(4), z=torch.randn(4, 6))
    before = torch.get_rng_state()
    draws.to_arviz()
    draws.predict()
    draws.log_likelihood()
    draws.prior_predict(3)
    assert torch.equal(torch.get_rng_state(), before)
