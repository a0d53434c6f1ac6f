"""Usages that a layer could get wrong without a word: each is right here, or refused."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pplvm
from pplvm.guides.factor_analysis import AmortisedMeanField
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.study import freeze


def local(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.param("a", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(a * x, pyro.param("s", torch.tensor(0.0)).exp()))


def tied(x):
    """What all data observe together depends on what each has of its own."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("t", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(3.0))
    return x


def tied_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.9)), 0.6))


class Scaled(PyroModule):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = PyroParam(torch.tensor(w), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, self.w))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gaussian(x, variance):
    return dist.Normal(0.0, math.sqrt(variance)).log_prob(x)


def test_predictions_do_not_reuse_the_noise_of_the_latents():
    """Var = 1/2 + 1 about x/2; reused noise would give (√½ + 1)² = 2.91. Error 3 % an entry."""
    x = torch.zeros(5)
    fit = pplvm.fit(local, local_guide, x, num_steps=400, lr=0.02)
    for drawn in (fit.predict(num_draws=4000)["x"], fit.draws(num_draws=4000).predict()["x"][0]):
        assert drawn.var() == pytest.approx(1.5, abs=0.25)
    drawn = pplvm.exact(local, x).draws(4000).predict()["x"]
    assert drawn.var() == pytest.approx(1.5, abs=0.1)


def test_a_density_outside_the_data_plate_counts():
    x = torch.zeros(3)
    truth = float(gaussian(torch.tensor(3.0), 3.25))
    assert float(pplvm.exact(tied, x).log_marginal.sum()) == pytest.approx(truth, abs=1e-6)
    estimate = pplvm.log_marginal(tied, tied_guide, x, num_particles=20000)
    assert estimate.value.shape == (1,)
    assert abs(estimate.value - truth) < 5 * estimate.error + 0.01
    with pytest.raises(ValueError, match="'t' is shared by the data"):
        iwae(tied, tied_guide, x)


@pytest.mark.parametrize("ask", ["exact", "log_marginal", "nuts"])
def test_modules_are_asked_at_their_own_parameters(ask):
    """Pyro's global store would hand the first module's parameters to the second."""
    x = torch.tensor([0.5, -2.0, 3.0])
    for w in (1.0, 3.0):
        module = Scaled(w)
        if ask == "exact":
            got = pplvm.exact(module, x).log_marginal
            assert torch.allclose(got, gaussian(x, 1 + w * w))
        elif ask == "log_marginal":
            guide = partial(_wide, w=w)
            got = pplvm.log_marginal(module, guide, x, num_particles=4000).value
            assert torch.allclose(got, gaussian(x, 1 + w * w), atol=0.1)
        else:
            draws = pplvm.nuts(module, x, num_chains=1, num_warmup=100, num_samples=400)
            sd = math.sqrt(w * w / (1 + w * w))
            assert draws["z"].std(1).mean() == pytest.approx(sd, abs=0.08)
        assert module.w.item() == pytest.approx(w)
        assert len(pyro.get_param_store()) == 0


def _wide(x, w):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x * w * w / (1 + w * w), 1.2))


def test_chains_share_parameters_that_are_drawn_when_declared():
    def model(x):
        w = pyro.param("w", lambda: torch.rand(()) * 5 + 0.1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, w))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = pplvm.nuts(model, torch.zeros(20), num_chains=2, num_warmup=100, num_samples=200)
    one, two = draws["z"].std(1).mean(-1).tolist()
    assert one == pytest.approx(two, rel=0.1)


def unplated(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(x)):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 200, subsample_size=len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def looped(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
    return x


def returns_z(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    return z


network = nn.Linear(1, 1)


def holding(net):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))

    return guide


REFUSED = {
    "minibatches without the plate": (
        lambda x: pplvm.fit(unplated, None, x, batch_size=5, num_steps=2),
        ["'x'", "plate 'data'", "batch_size"],
    ),
    "Pyro's own subsampling": (
        lambda x: pplvm.fit(subsampled, None, x, batch_size=5, num_steps=2),
        ["'x'", "subsampled", "len(x)"],
    ),
    "a loop over the data": (
        lambda x: pplvm.fit(looped, looped, x, num_steps=2),
        ["'z_0'", "a loop", "len(x)"],
    ),
    "a rate that is no number": (
        lambda x: pplvm.fit(local, local_guide, x, lr="fast"),
        ["'lr'", "fast"],
    ),
    "a dream of something else": (
        lambda x: pplvm.fit(returns_z, local_guide, x, objective=wake_sleep, num_steps=2),
        ["argument 0", "return x"],
    ),
    "the sleep phase of an automatic guide": (
        lambda x: pplvm.fit(local, None, x, objective=wake_sleep, num_steps=2),
        ["auxiliary", "phi='wake'"],
    ),
    "the sleep phase beside the wake phase": (
        lambda x: pplvm.fit(
            local, None, x, objective=partial(reweighted_wake_sleep, phi="both"), num_steps=2
        ),
        ["auxiliary"],
    ),
    "other data for parameters of each datum": (
        lambda x: pplvm.fit(local, None, x, num_steps=2).draws(x[:7]),
        ["data"],
    ),
    "validation data for parameters of each datum": (
        lambda x: pplvm.fit(local, None, x, num_steps=2, validation=(x[:7],)),
        ["data"],
    ),
    "a module that Pyro is not told of": (
        lambda x: pplvm.fit(local, holding(nn.Linear(1, 1)), x, num_steps=2),
        ["'net'", "pyro.module"],
    ),
    "an objective by name": (
        lambda x: pplvm.fit(local, local_guide, x, objective="elbo"),
        ["'objective'", "elbo"],
    ),
    "a class for a model": (lambda x: pplvm.fit(nn.Linear, None, x), ["'model'", "Linear"]),
    "a column too far": (
        lambda x: pplvm.fit(lambda x: local(x[:, 7]), local_guide, x),
        ["the model cannot run"],
    ),
    "arguments too many": (
        lambda x: pplvm.fit(local, local_guide, x, x),
        ["the model cannot run on 2 arguments"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(torch.randn(20))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_behind_a_partial_is_learned():
    x = torch.randn(30, 4)
    model, guide = FactorAnalysis(4, 1), AmortisedMeanField(4, 1)
    fits = [pplvm.fit(f, guide, x, num_steps=50) for f in (model, partial(model))]
    assert fits[0].history.bound == fits[1].history.bound


def test_a_loaded_fit_reports_the_bound_of_its_own_objective(tmp_path):
    x = torch.randn(20)
    fit = pplvm.fit(local, local_guide, x, objective=partial(iwae, num_particles=50), num_steps=20)
    fit.save(tmp_path / "fit")
    loaded = pplvm.load(tmp_path / "fit", local, local_guide, x)
    assert torch.equal(loaded.bound(), fit.bound())
    own = pplvm.fit(local, local_guide, x, objective=lambda *a: elbo(*a), num_steps=2)
    own.save(tmp_path / "own")
    loaded = pplvm.load(tmp_path / "own", local, local_guide, x)
    with pytest.raises(ValueError, match="load it with objective="):
        loaded.bound()


def test_parameters_that_are_not_learned_are_saved_too(tmp_path):
    def pair():
        model = FactorAnalysis(4, 1)
        model.W.requires_grad_(False)
        return model, AmortisedMeanField(4, 1)

    x = torch.randn(20, 4)
    fit = pplvm.fit(*pair(), x, num_steps=5)
    fit.save(tmp_path / "fit")
    loaded = pplvm.load(tmp_path / "fit", *pair(), x)
    assert torch.equal(loaded.model.W, fit.model.W)


def test_a_fit_goes_on_from_a_fit_but_not_from_a_frozen_one():
    def model(x):
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(30) + 2
    first = pplvm.fit(model, local_guide, x, num_steps=30)
    further = pplvm.fit(first.model, first.guide, x, num_steps=30)
    assert sorted(further.run.parameters) == ["a", "b", "s"]
    held = pplvm.fit(freeze(first), local_guide, x, num_steps=30)
    assert sorted(held.run.parameters) == ["a", "s"]
    assert first.run.parameters["b"] < further.run.parameters["b"]  # each has its own


def test_a_fit_over_closed_over_modules_is_held_fixed_only_if_asked():
    net = nn.Linear(1, 1)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))

    x = torch.randn(20)
    fit = pplvm.fit(local, guide, x, num_steps=20)
    with pytest.raises(ValueError, match="freeze"):
        pplvm.fit(local, fit.guide, x, num_steps=2)


def test_an_objective_of_ones_own_is_not_taken_for_a_shipped_one_of_its_name(tmp_path):
    def elbo(model, guide, *data):
        return iwae(model, guide, *data, num_particles=9)

    x = torch.randn(10)
    fit = pplvm.fit(local, local_guide, x, objective=elbo, num_steps=2)
    fit.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="load it with objective="):
        pplvm.load(tmp_path / "fit", local, local_guide, x).bound()
