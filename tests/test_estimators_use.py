"""Estimators of discrete latents in use: fits, compiled steps, what they depend on, errors, reports."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from torch import nn
from zoo import learned
from zoo_choices import CHOICES, exact_loss

import pplvm
from pplvm.objectives import (
    NVIL,
    REBAR,
    RELAX,
    arm,
    concrete,
    disarm,
    elbo,
    from_pyro,
    iwae,
    muprop,
    reweighted_wake_sleep,
    score_function,
    straight_through,
    vimco,
    wake_sleep,
)
from pplvm.traces import dependencies, draw_choices, integrand

OBJECTIVES = {
    "score_function": score_function,
    "leave_one_out": partial(score_function, num_particles=2, baseline="leave_one_out"),
    "rao_blackwell": partial(score_function, rao_blackwell=True),
    "NVIL": NVIL(),
    "vimco": partial(vimco, num_particles=2),
    "muprop": muprop,
    "REBAR": REBAR(),
    "RELAX": RELAX(),
    "arm": arm,
    "disarm": disarm,
    "concrete": concrete,
    "straight_through": straight_through,
    "wake_sleep": wake_sleep,
    "reweighted_wake_sleep": partial(reweighted_wake_sleep, num_particles=2),
}


def story(name, num_data=4):
    oracle = CHOICES[name]()
    x = torch.arange(num_data) % 2.0
    return learned(oracle.model, oracle.theta), learned(oracle.guide, oracle.phi), (x,)


def parameters(fit):
    return torch.cat([p.detach().flatten() for p in fit.run.parameters.values()])


# ---- fits ----


@pytest.mark.parametrize("name", OBJECTIVES)
def test_short_batches_and_lone_data_are_like_any_other(name):
    model, guide, data = story("belief", num_data=5)
    fit = pplvm.fit(
        model, guide, *data, objective=OBJECTIVES[name], batch_size=4, num_steps=6, compile="off"
    )
    assert torch.isfinite(parameters(fit)).all()
    alone = pplvm.fit(
        model, guide, data[0][:1], objective=OBJECTIVES[name], num_steps=3, compile="off"
    )
    assert torch.isfinite(parameters(alone)).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_traced_steps_are_the_eager_ones(name):
    model, guide, data = story("belief", num_data=6)
    fits = [
        pplvm.fit(
            model, guide, *data, objective=OBJECTIVES[name], num_steps=5, compile=mode, seed=1
        )
        for mode in ("off", "graph")
    ]
    assert fits[1].settings["compile"].startswith("graph"), fits[1].settings["compile"]
    torch.testing.assert_close(parameters(fits[1]), parameters(fits[0]))
    held = [dict(fit.run._buffers()) for fit in fits]
    for key, value in held[0].items():
        torch.testing.assert_close(held[1][key], value)


def test_a_fit_learns_what_the_sum_over_states_would():
    """By gradients without noise, towards the same optimum."""
    model, guide, data = story("belief", num_data=8)
    ask = partial(pplvm.fit, model, guide, *data, num_steps=400, lr=0.05, seed=0)
    exact = ask(objective=partial(score_function, rao_blackwell=True))
    noisy = ask(objective=partial(disarm, num_particles=8))
    listed = partial(score_function, rao_blackwell=True)
    bounds = [listed(fit.model, fit.guide, *data).bound.mean() for fit in (exact, noisy)]
    first = listed(model, guide, *data).bound.mean()
    assert bounds[0] > first + 0.05
    assert bounds[1] > bounds[0] - 0.2 * (bounds[0] - first)


def test_what_an_objective_learns_has_a_rate_of_its_own_and_is_the_fits():
    model, guide, data = story("belief")
    objective = NVIL(lr=0.5)
    fit = pplvm.fit(model, guide, *data, objective=objective, num_steps=5, lr=0.01)
    groups = fit.run.optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.5]
    assert objective.networks is None  # the caller's is as it was
    assert fit.objective is not objective
    assert any((p != 0).any() for p in fit.objective.networks[0][-1].parameters())


def test_interrupted_fits_go_on_with_their_baselines(tmp_path):
    model, guide, data = story("belief")
    ask = partial(pplvm.fit, model, guide, *data, objective=NVIL(), compile="off")
    whole = ask(num_steps=8)
    ask(num_steps=4, checkpoint=tmp_path / "fit")
    again = ask(num_steps=8, checkpoint=tmp_path / "fit", resume=True)
    torch.testing.assert_close(parameters(again), parameters(whole), rtol=0, atol=0)
    for p, q in zip(again.objective.parameters(), whole.objective.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (partial(NVIL, hidden_dim=7), "parameter 'networks.0.0.weight' has shape"),
        (partial(NVIL, "moving_average"), "is in only one of the two"),
    ],
)
def test_resuming_with_other_baselines_blames_the_objective(other, named, tmp_path):
    model, guide, data = story("belief")
    ask = partial(pplvm.fit, model, guide, *data, compile="off", checkpoint=tmp_path / "fit")
    ask(objective=NVIL(), num_steps=2)
    with pytest.raises(ValueError, match="the file is of another objective") as info:
        ask(objective=other(), num_steps=4, resume=True)
    assert named in str(info.value)
    assert "model and guide" not in str(info.value)


def test_a_fit_by_nvil_can_be_saved_and_opened(tmp_path):
    model, guide, data = story("belief")
    fit = pplvm.fit(model, guide, *data, objective=NVIL(), num_steps=4)
    fit.save(tmp_path / "fit")
    opened = pplvm.load(tmp_path / "fit", model, guide, *data, objective=NVIL())
    torch.testing.assert_close(parameters(opened), parameters(fit))
    torch.testing.assert_close(opened.bound(num_repeats=2), fit.bound(num_repeats=2))


def test_averages_of_modules_are_part_of_a_traced_step():
    """Batch normalisation changes its buffers at every step."""
    x = torch.randn(32, 3)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.layers(x), 1.0).to_event(1))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 3)

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    torch.manual_seed(0)
    programs = Model(), Guide()
    fits = [
        pplvm.fit(*programs, x, num_steps=10, compile=mode, batch_size=16)
        for mode in ("off", "graph")
    ]
    assert fits[1].settings["compile"].startswith("graph"), fits[1].settings["compile"]
    for a, b in zip(fits[0].guide.buffers(), fits[1].guide.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert int(fits[1].guide.layers[1].num_batches_tracked) == int(
        fits[0].guide.layers[1].num_batches_tracked
    )


# ---- what depends on what ----


def followed(model, guide, *data):
    return dependencies(model, guide, *data)


def test_dependencies_are_those_of_the_story():
    model, guide, data = story("belief")
    found = followed(model, guide, *data)
    assert found["p", "x"] == {"z1"}
    assert found["p", "z1"] == {"z1", "z2"}
    assert found["own", "z2"] == {"z1"}
    assert found["own", "z1"] == frozenset()


@pytest.mark.parametrize("way", ["index", "gather", "in place", "out", "numbers", "where", "view"])
def test_what_a_latent_is_used_for_is_followed(way):
    table = torch.tensor([0.3, -0.2, 1.1])

    def use(k):
        if way == "index":
            return table[k]
        if way == "gather":
            return table.expand(len(k), 3).gather(1, k[:, None]).squeeze(1)
        if way == "where":
            return torch.where(k > 0, 1.0, -1.0)
        out = torch.zeros(len(k))
        if way == "in place":
            out += table[k]
        elif way == "out":
            torch.mul(table[k], 2.0, out=out)
        elif way == "view":
            out[1:][0] = table[k[0]]
        else:
            out[0] = table[k[0]]
        return out

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(use(k), 1.0), obs=x)
            pyro.sample("y", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("w", dist.Normal(0.0, 1.0))

    found = followed(model, guide, torch.randn(4))
    assert found["p", "x"] == {"k"}
    assert found["p", "y"] == frozenset()


class FromOutside(dist.Bernoulli):
    """Draws that torch does not make."""

    def sample(self, sample_shape=()):
        return torch.from_numpy(super().sample(sample_shape).numpy().copy())


def test_draws_from_outside_are_followed_by_way_of_their_density():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", FromOutside(0.5))
            pyro.sample("b", FromOutside(0.2 + 0.5 * a))

    found = followed(model, guide, torch.randn(4))
    assert found["p", "x"] == {"a", "b"}


@pytest.mark.parametrize(
    "objective", [score_function, disarm, muprop, NVIL(normalise=False), REBAR()]
)
def test_what_a_mask_leaves_out_has_no_gradient(objective):
    oracle = CHOICES["masked"]()
    theta, phi = (
        {n: v.clone().requires_grad_() for n, v in params.items()}
        for params in (oracle.theta, oracle.phi)
    )
    loss = objective(partial(oracle.model, theta), partial(oracle.guide, phi), torch.ones(6)).loss
    g = torch.autograd.grad(loss, phi["b"])[0]
    assert g[0] != 0 == g[1]


KL_WEIGHTED = {
    "score_function": score_function,
    "NVIL": NVIL(),
    "muprop": muprop,
    "REBAR": REBAR(),
    "disarm": disarm,
    "arm": arm,
    "concrete": concrete,
    "straight_through": straight_through,
}


@pytest.mark.parametrize("name", KL_WEIGHTED)
def test_kl_weights_weigh_the_loss_alone(name):
    """The gradient is linear in the weight, as long as what is trained beside it stays put."""
    model, guide, data = story("belief")
    objective = KL_WEIGHTED[name]
    if isinstance(objective, nn.Module):
        objective.eval()
        objective(model, guide, *data)  # which makes its networks
    grads, bounds = [], []
    for weight in (0.0, 0.5, 1.0):
        pyro.set_rng_seed(0)
        estimate = objective(model, guide, *data, kl_weight=weight)
        params = list(dict(pyro.get_param_store().named_parameters()).values())
        g = torch.autograd.grad(estimate.loss, params, allow_unused=True)
        grads.append(torch.cat([torch.zeros(1) if v is None else v.flatten() for v in g]))
        bounds.append(estimate.bound)
    torch.testing.assert_close(bounds[0], bounds[2])
    torch.testing.assert_close(grads[1], (grads[0] + grads[2]) / 2)
    assert not torch.allclose(grads[0], grads[2])
    fit = pplvm.fit(model, guide, *data, objective=objective, num_steps=2,
                    kl_schedule=lambda step: 0.5 * step)  # fmt: skip
    assert torch.isfinite(parameters(fit)).all()


def test_signals_leave_out_what_a_latent_has_no_part_in():
    model, guide, data = story("belief")
    z = draw_choices(model, guide, *data)
    parts = integrand(model, guide, z, *data)
    first, second = parts.choices
    whole = parts.log_lik - parts.kl
    torch.testing.assert_close(first.signal + 0 * whole, first.signal)
    assert [c.name for c in parts.choices] == ["z1", "z2"]
    # z2 is not seen by x: its signal lacks the likelihood, and what else is z1's alone.
    assert not torch.allclose(second.signal, whole)
    assert second.value.shape == (1, 4, 2)


# ---- as Pyro's loss ----


def test_estimators_serve_as_pyros_loss():
    model, guide, data = story("belief")
    svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=disarm)
    losses = [svi.step(*data) for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))


# ---- errors ----


def smooth(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def smooth_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("n", torch.tensor(0.0)), 1.0))


def counts(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Poisson(pyro.param("m", torch.tensor(1.0))))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def counts_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Poisson(pyro.param("n", torch.tensor(1.0))))


class Wrong(nn.Module):
    def forward(self, x):
        return x.expand(3, -1)


BELIEF = story("belief")
ERRORS = {
    "reparameterised to vimco": (smooth, smooth_guide, vimco, "site 'z' is reparam.*'iwae'"),
    "reparameterised to disarm": (smooth, smooth_guide, disarm, "no site of Bernoulli.*'elbo'"),
    "counts to disarm": (counts, counts_guide, disarm, "site 'z' is Poisson.*'score_function'"),
    "counts to concrete": (counts, counts_guide, concrete, "site 'z' is Poisson.*OneHotCat"),
    "counts to elbo": (counts, counts_guide, elbo, "site 'z' .Poisson. has no pathwise"),
    "counts to iwae": (counts, counts_guide, iwae, "'vimco'"),
    "index to REBAR": (*story("index")[:2], REBAR(), "site 'k' is Categorical.*OneHotCategorical"),
    "one-hot to arm": (*story("one_hot")[:2], arm, "site 'k' is OneHotCategorical"),
    "lone vimco": (*BELIEF[:2], partial(vimco, num_particles=1), "'num_particles'.*2.*got 1"),
    "vimco's mean": (*BELIEF[:2], partial(vimco, mean="median"), "'mean'.*'median'"),
    "lone leave_one_out": (
        *BELIEF[:2], partial(score_function, baseline="leave_one_out"), "'num_particles'.*got 1",
    ),
    "unknown baseline": (
        *BELIEF[:2], partial(score_function, baseline="average"), "'baseline'.*'average'.*NVIL",
    ),
    "infinite baseline": (
        *BELIEF[:2], partial(score_function, baseline=float("inf")), "'baseline'.*finite",
    ),
    "wrong network": (*BELIEF[:2], NVIL(network=Wrong()), r"'network' returned shape \(3, 4\)"),
    "temperature": (*BELIEF[:2], partial(concrete, temperature=0.0), "'temperature'.*above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_would_serve(case):
    model, guide, objective, words = ERRORS[case]
    with pytest.raises(ValueError, match=words) as caught:
        pplvm.fit(model, guide, torch.arange(4) % 2.0, objective=objective, num_steps=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NVIL("constant"), "'baselines'.*'constant'"),
        (lambda: NVIL(["moving_average", "netwrok"]), "'baselines'.*'netwrok'"),
        (lambda: NVIL(decay=1.0), "'decay'"),
        (lambda: NVIL(num_particles=0), "'num_particles'"),
        (lambda: REBAR(temperature=-1.0), "'temperature'"),
        (lambda: RELAX(num_particles=0), "'num_particles'"),
    ],
)
def test_options_of_learning_objectives_are_checked(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_explain_names_the_estimator_of_each_site(capsys):
    model, guide, data = story("mixed")
    pplvm.explain(model, guide, *data, objective=NVIL())
    shown = capsys.readouterr().out
    assert "score function, learned baselines" in shown
    assert "pathwise" in shown


# ---- reports ----


def test_a_report_finds_bias_and_noise():
    """ "noise" of right estimators is below 5 in 20 numbers but for 1e-5 of seeds."""
    model, guide, data = story("belief")
    report = pplvm.gradient_report(
        model, guide, *data, num_draws=300, num_training=20,
        objectives={
            "score": score_function, "DisARM": disarm, "NVIL": NVIL(normalise=False),
            "listed": partial(score_function, rao_blackwell=True),
            "vimco": partial(vimco, num_particles=2),
            "soft": partial(concrete, temperature=2.0), "wake-sleep": wake_sleep,
            "Pyro": from_pyro(infer.TraceGraph_ELBO()),
        },
    )  # fmt: skip
    rows = {}
    for row in report.rows:
        rows.setdefault(row.objective, []).append(row)
    assert {row.group for row in rows["score"]} == set("rWcvubgAd")
    for name in ("score", "DisARM", "NVIL", "listed", "vimco"):
        assert all(row.noise < 5 for row in rows[name]), name
    assert max(row.noise for row in rows["soft"]) > 6, rows["soft"]
    assert all(row.bias is None for row in (*rows["wake-sleep"], *rows["Pyro"]))
    variance = {name: sum(row.variance for row in part) for name, part in rows.items()}
    assert variance["listed"] < 1e-12 < variance["DisARM"] < variance["score"]
    assert "DisARM" in str(report)
    assert "—" in str(report)
    figure = report.plot()
    assert len(figure.axes) == 2


def test_reports_check_their_arguments():
    model, guide, data = story("belief")
    with pytest.raises(ValueError, match="'objectives' is empty"):
        pplvm.gradient_report(model, guide, *data, objectives=[])
    with pytest.raises(ValueError, match="'num_draws'"):
        pplvm.gradient_report(model, guide, *data, objectives=[disarm], num_draws=1)


def test_exact_gradients_of_reports_are_those_of_the_oracle():
    oracle = CHOICES["belief"]()
    assert torch.isfinite(exact_loss(oracle, oracle.theta, oracle.phi, 2))
