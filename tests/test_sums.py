"""Objectives that sum discrete latents out against stories whose sums are written by hand.

Both draw the same continuous latents, so that bounds and gradients are equal, not merely alike.
"""

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats import loo
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pplvm
from pplvm import traces
from pplvm.models.gaussian_mixture import BayesianGaussianMixture, GaussianMixture
from pplvm.models.hmm import HMM
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.traces import Program, prepared

X = torch.tensor([0.4, -1.1, 0.7, 2.0, 3.1], dtype=torch.float64)
ROLL = torch.tensor([[0.3, -0.9, 1.4], [1.0, 0.2, -0.5]], dtype=torch.float64)
LENGTHS = torch.tensor([3, 2])


class Parameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
        self.A = nn.Parameter(torch.tensor([[0.1, 1, 0], [0, 0.4, 1], [2, 0, 1.0]]).double())
        self.m = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.s = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))


class Listed(Parameters):
    """A discrete latent above a continuous one, of each datum."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[k], 0.8))
            return pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class Summed(Parameters):
    def forward(self, x):
        prior = dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), dist.Normal(self.loc, 0.8)
        )
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class Amortised(Parameters):
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m * x, self.s.exp()))


class SharedListed(Parameters):
    """A continuous latent that all data share, above a discrete one of each."""

    def forward(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            return pyro.sample("x", dist.Normal(self.loc[k] + shift, 0.7), obs=x)


class SharedSummed(Parameters):
    def forward(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        components = dist.Normal(self.loc + shift[..., None], 0.7)
        with pyro.plate("data", len(x), dim=-1):
            mixture = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
            return pyro.sample("x", mixture, obs=x)


class SharedGuide(Parameters):
    def forward(self, *_):
        pyro.sample("shift", dist.Normal(self.m, self.s.exp()))


class ChainListed(Parameters):
    """A chain of each datum, that a shared latent shifts."""

    def forward(self, x, lengths):
        shift, z = pyro.sample("shift", dist.Normal(0.0, 1.0)), 0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                with pyro.poutine.mask(mask=t < lengths):
                    moves = self.logits if t == 0 else self.A[z]
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=moves))
                    pyro.sample(f"x_{t}", dist.Normal(self.loc[z] + shift, 1.0), obs=x[:, t])
        return x


class ChainSummed(Parameters):
    def forward(self, x, lengths):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        seen = dist.Normal(self.loc + shift[..., None], 1.0)  # (…, K)
        with pyro.plate("data", len(x), dim=-1):
            total = self.logits.log_softmax(-1) + seen.log_prob(x[:, 0, None])  # (…, N, K)
            for t in range(1, x.shape[1]):
                moved = (total[..., None] + self.A.log_softmax(-1)).logsumexp(-2)
                moved = moved + seen.log_prob(x[:, t, None])
                total = torch.where((t < lengths)[:, None], moved, total)
            pyro.factor("x", total.logsumexp(-1))
        return x


class AllShared(Parameters):
    """A discrete latent that all data share."""

    def forward(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(logits=self.logits))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(self.loc[k] + shift, 0.7), obs=x)


class AllSharedSummed(Parameters):
    def forward(self, x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        seen = dist.Normal(self.loc[:, None] + shift[..., None], 0.7).log_prob(x).sum(-1)  # (…, K)
        pyro.factor("x", (self.logits.log_softmax(-1) + seen).logsumexp(-1))
        return x


class Row(NamedTuple):
    listed: type
    summed: type
    guide: type
    data: tuple[Tensor, ...]
    per_datum: bool


STORIES = {
    "each datum's own": Row(Listed, Summed, Amortised, (X,), True),
    "below a shared one": Row(SharedListed, SharedSummed, SharedGuide, (X,), False),
    "chains": Row(ChainListed, ChainSummed, SharedGuide, (ROLL, LENGTHS), False),
    "shared": Row(AllShared, AllSharedSummed, SharedGuide, (X,), False),
}
OBJECTIVES = {
    "elbo": elbo,
    "elbo 3": partial(elbo, num_particles=3),
    "iwae": partial(iwae, num_particles=3),
    "iwae stl": partial(iwae, num_particles=3, gradient="stl"),
    "iwae dreg": partial(iwae, num_particles=3, gradient="dreg"),
    "rws": partial(reweighted_wake_sleep, num_particles=3),
    "wake_sleep": wake_sleep,
}
CASES = [
    (story, name)
    for story, row in STORIES.items()
    for name in OBJECTIVES
    # Particles would need a story that indexes by more than the states of chains.
    if (row.per_datum or name.startswith("elbo")) and not (story == "shared" and name == "elbo 3")
]


def outcome(model: Program, guide: Program, objective, *data: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    estimate = objective(model, guide, *data)
    learned = [*_learned(model), *_learned(guide)]
    grads = torch.autograd.grad(
        estimate.loss * len(estimate.bound), learned, allow_unused=True, materialize_grads=True
    )
    return [estimate.bound.sum(), *grads]


def _learned(program: Program) -> list[Tensor]:
    return list(program.program.parameters())


@pytest.mark.parametrize("as_in_fits", [False, True])
@pytest.mark.parametrize(("story", "name"), CASES)
def test_bounds_and_gradients_are_those_of_the_sum_by_hand(story, name, as_in_fits):
    row, objective = STORIES[story], OBJECTIVES[name]
    model, by_hand, guide = (
        Program(program(), nesting=1) for program in (row.listed, row.summed, row.guide)
    )
    if as_in_fits:
        model = prepared(model, guide, *row.data)
        assert model.even == (story == "chains")
    if name == "wake_sleep":  # of which the dreams are drawn otherwise
        objective = partial(reweighted_wake_sleep, num_particles=2, phi="wake")
    got = outcome(model, guide, objective, *row.data)
    want = outcome(by_hand, Program(row.guide(), nesting=1), objective, *row.data)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


class Recurrent(Parameters):
    """Hands a state of its own on, which its first parameters hide."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        h, z = 0.0 * x[:, 0], 0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=self.A[z]))
                loc = self.loc[z] + self.weight * h
                pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=x[:, t])
                h = h + x[:, t]
        return x


def test_a_loop_that_first_parameters_make_even_is_not_run_as_one():
    fit = pplvm.fit(Recurrent(), None, ROLL, num_steps=30, lr=0.1, progress=False)
    assert abs(fit.model.weight) > 0.1
    exact = pplvm.exact(fit.model, ROLL)  # which judges loops at the parameters that it has
    assert not exact.listed.graph.chains
    assert torch.allclose(fit.bound(num_repeats=1)[0], exact.log_marginal)
    assert not fit.run._known.even


def test_dreams_of_a_story_with_sums_teach_the_guide():
    model, guide = Listed(), Amortised()
    fit = pplvm.fit(model, guide, X, objective=wake_sleep, num_steps=20, progress=False)
    assert all(math.isfinite(b) for b in fit.history.bound)


@pytest.mark.parametrize("story", STORIES)
def test_traced_fits_sum_out_the_same(story):
    row = STORIES[story]
    eager, traced = (
        pplvm.fit(
            row.listed(), row.guide(), *row.data, num_steps=30, compile=mode, progress=False, seed=1
        )
        for mode in ("off", "graph")
    )
    assert traced.settings["compile"].startswith("graph")
    assert torch.allclose(*(torch.tensor(fit.history.bound) for fit in (eager, traced)))


def test_without_a_guide_a_discrete_story_learns_by_its_exact_likelihood():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    model = GaussianMixture(2, 3).double()
    fit = pplvm.fit(model, None, x, num_steps=40, lr=0.05, progress=False)
    exact = pplvm.exact(fit.model, x).log_marginal
    assert torch.allclose(fit.bound(num_repeats=1)[0], exact)
    assert fit.history.bound[-1] > fit.history.bound[0]
    batches = pplvm.fit(model, None, x, num_steps=40, batch_size=20, progress=False)
    assert batches.history.bound[-1] > batches.history.bound[0]


def test_without_a_guide_continuous_latents_have_the_default_one():
    x = torch.cat([torch.randn(40, 1) - 3, torch.randn(40, 1) + 3]).double()
    fit = pplvm.fit(BayesianGaussianMixture(1, 2), None, x, num_steps=30, progress=False)
    assert set(fit.draws(num_draws=5).values) >= {"pi", "tau", "mu"}


def test_a_shared_sum_is_no_matter_for_minibatches():
    with pytest.raises(ValueError, match="site 'k' is discrete and shared by the data"):
        pplvm.fit(AllShared(), SharedGuide(), X, batch_size=2, num_steps=2, progress=False)


def test_pyros_elbos_do_not_sum_out_and_say_so():
    with pytest.raises(
        ValueError, match="site 'k' is left to be summed out, which Trace_ELBO does"
    ):
        pplvm.fit(Listed(), Amortised(), X, objective=Trace_ELBO(), num_steps=2, progress=False)


def test_draws_of_a_fit_have_the_latents_that_were_summed_out():
    """False alarm: shares of five data in 4000 draws at 5 errors, 3e-6."""
    fit = pplvm.fit(Deep(), Amortised(), X, num_steps=5, progress=False)
    draws = fit.draws(num_draws=4000)
    assert set(draws.values) == {"z", "k"}
    model, z = fit.model, draws["z"][0]
    loc = model.loc.detach()
    p = model.logits + dist.Normal(loc, 0.8).log_prob(z[..., None])
    p = (p + dist.Normal(z[..., None] + 0.5 * loc, 0.7).log_prob(X[:, None])).softmax(-1)
    share = torch.nn.functional.one_hot(draws["k"][0], 3).double().mean(0)
    assert ((share - p.mean(0)).abs() < 5 * (0.25 / 4000) ** 0.5).all()
    gmm = GaussianMixture(1, 2).double()
    alone = pplvm.fit(gmm, None, X[:, None], num_steps=5, progress=False).draws(num_draws=10)
    assert alone["k"].shape == (1, 10, 5)


# ---- pointwise likelihoods ----


@pytest.mark.parametrize("story", ["below a shared one", "chains"])
def test_pointwise_likelihoods_are_those_of_the_sum_by_hand(story):
    row = STORIES[story]
    draws = [
        pplvm.nuts(m(), *row.data, num_chains=1, num_warmup=20, num_samples=10, compile="graph")
        for m in (row.listed, row.summed)
    ]
    found = draws[0].log_likelihood()
    assert list(found) == ["x"]
    values = {name: draws[0][name] for name in draws[1].values}
    want = replace(draws[1], values=values).log_likelihood()["x"]
    assert torch.allclose(found["x"], want)


class Deep(Parameters):
    """Data that see a discrete latent, and a continuous one below it."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[k], 0.8))
            return pyro.sample("x", dist.Normal(z + 0.5 * self.loc[k], 0.7), obs=x)


def test_pointwise_likelihoods_are_given_the_continuous_latents():
    z, model = torch.randn(4, len(X), dtype=torch.float64), Deep()
    found = traces.summed_pointwise(model, {"z": z}, X)
    posterior = model.logits + dist.Normal(model.loc, 0.8).log_prob(z[..., None])  # (P, N, K)
    seen = dist.Normal(z[..., None] + 0.5 * model.loc, 0.7).log_prob(X[:, None])
    assert torch.allclose(found["x"], (posterior.log_softmax(-1) + seen).logsumexp(-1))


def test_loo_of_a_mixture_is_that_of_its_sum_by_hand():
    """Which arviz.from_pyro, conditioning on drawn components, would be far from."""
    options = {"num_chains": 2, "num_warmup": 200, "num_samples": 200, "compile": "graph"}
    listed, summed = (pplvm.nuts(m(), X, seed=1, **options) for m in (SharedListed, SharedSummed))
    summed = replace(summed, values={"shift": listed["shift"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of five data, each counts for much
        # ArviZ takes the efficiency of the chains from all latents, of which one has more.
        a, b = (loo(d.to_arviz(), pointwise=True, reff=1.0) for d in (listed, summed))
    assert abs(a.elpd - b.elpd) < 1e-6
    assert torch.allclose(*(torch.as_tensor(r.elpd_i.values) for r in (a, b)))
    assert pplvm.compare({"NUTS": listed})["NUTS"].loo == pytest.approx(a.elpd, abs=0.01)


def test_a_chain_has_one_likelihood_for_each_series():
    model = HMM(2, 3, "bernoulli").double()
    x = (torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    exact = pplvm.exact(model, x, torch.tensor([5, 1, 3, 4]))
    found = exact.draws(7).log_likelihood()
    assert list(found) == ["x"]
    assert torch.allclose(found["x"], exact.log_marginal.expand(1, 7, 4))
