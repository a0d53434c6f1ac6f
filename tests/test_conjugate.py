"""Conjugate posteriors against the textbook, and their evidence against scipy and Monte Carlo."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugates import close, dirichlet_multinomial, parameters, scipy_logpmf
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import stats
from torch import Tensor

import pplvm
from pplvm.models.conjugate import (
    beta_bernoulli,
    beta_binomial,
    dirichlet_categorical,
    gamma_poisson,
    normal_inverse_gamma,
    normal_normal,
)

law = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.floats(0.05, 50.0)
counts = st.lists(st.integers(0, 30) | st.just(0) | st.just(10**6), min_size=0, max_size=8)
numbers = st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=8)


def betaln(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


# ---- one latent for all data: the textbook, line by line ----


@law
@given(st.lists(st.integers(0, 1), max_size=9), shapes, shapes)
def test_beta_bernoulli(tosses, a, b):
    x = torch.tensor(tosses, dtype=torch.float64)
    answer = pplvm.conjugate(partial(beta_bernoulli, a=a, b=b), x)
    heads, tails = float(sum(tosses)), float(len(tosses) - sum(tosses))
    p, q = parameters(answer, "p")
    close(p, a + heads)
    close(q, b + tails)
    T = torch.tensor
    close(answer.log_marginal, betaln(T(a + heads), T(b + tails)) - betaln(T(a), T(b)))
    close(answer.mean["p"], (a + heads) / (a + b + len(tosses)))
    close(answer.sd["p"], stats.beta(a + heads, b + tails).std())


@law
@given(counts, shapes, shapes)
def test_gamma_poisson(found, a, b):
    x = torch.tensor(found, dtype=torch.float64)
    answer = pplvm.conjugate(partial(gamma_poisson, a=a, b=b), x)
    shape, rate = parameters(answer, "rate")
    close(shape, a + sum(found))
    close(rate, b + len(found))
    # Each count given those before it is negative binomial.
    want, before = 0.0, 0
    for n, count in enumerate(found):
        want += stats.nbinom.logpmf(count, a + before, (b + n) / (b + n + 1))
        before += count
    close(answer.log_marginal, want)
    close(answer.mean["rate"], (a + sum(found)) / (b + len(found)))
    close(answer.sd["rate"], math.sqrt(a + sum(found)) / (b + len(found)))


@law
@given(numbers, st.floats(0.1, 100.0), st.floats(0.01, 10.0))
def test_normal_normal(found, prior_sd, sd):
    x = torch.tensor(found, dtype=torch.float64)
    N = len(found)
    answer = pplvm.conjugate(partial(normal_normal, prior_sd=prior_sd, sd=sd), x)
    precision = 1 / prior_sd**2 + N / sd**2
    loc, scale = parameters(answer, "mu")
    close(loc, sum(found) / sd**2 / precision)
    close(scale, precision**-0.5)
    cov = prior_sd**2 * np.ones((N, N)) + sd**2 * np.eye(N)
    want = stats.multivariate_normal(np.zeros(N), cov).logpdf(found) if N else 0.0
    close(answer.log_marginal, want, rtol=1e-6)  # of the solve in scipy


@law
@given(numbers, st.floats(-5, 5), shapes, shapes, shapes)
def test_normal_inverse_gamma(found, m, kappa, a, b):
    x, N = torch.tensor(found, dtype=torch.float64), len(found)
    answer = pplvm.conjugate(partial(normal_inverse_gamma, m=m, kappa=kappa, a=a, b=b), x)
    mean = sum(found) / N if N else 0.0
    k = kappa + N
    loc = (kappa * m + N * mean) / k
    squares = sum((f - mean) ** 2 for f in found)
    shape, scale = a + N / 2, b + squares / 2 + kappa * N * (mean - m) ** 2 / (2 * k)
    for got, want in zip(parameters(answer, "variance"), (shape, scale), strict=True):
        close(got, want)
    of_mu = (2 * shape, loc, math.sqrt(scale / (shape * k)))
    for got, want in zip(parameters(answer, "mu"), of_mu, strict=True):
        close(got, want)
    cov = b / a * (np.eye(N) + np.ones((N, N)) / kappa)
    want = stats.multivariate_t(np.full(N, m), cov, df=2 * a).logpdf(found) if N else 0.0
    close(answer.log_marginal, want, rtol=1e-6)  # of the solve in scipy
    close(answer.mean["variance"], scale / (shape - 1) if shape > 1 else math.inf)
    if shape > 1:
        close(answer.sd["mu"], stats.t(*of_mu).std())


def test_one_datum_of_unknown_mean_and_variance_is_students_t():
    answer = pplvm.conjugate(
        partial(normal_inverse_gamma, m=0.5, kappa=2.0, a=3.0, b=4.0), torch.tensor([2.5])
    )
    close(answer.log_marginal, stats.t(6, 0.5, math.sqrt(4 / 3 * (1 + 1 / 2))).logpdf(2.5))


@law
@given(st.lists(st.integers(0, 3), max_size=9), st.lists(shapes, min_size=4, max_size=4))
def test_dirichlet_categorical(throws, alpha):
    alpha = torch.tensor(alpha)
    answer = pplvm.conjugate(
        partial(dirichlet_categorical, alpha=alpha), torch.tensor(throws, dtype=torch.long)
    )
    (got,) = parameters(answer, "pi")
    found = torch.tensor([float(throws.count(k)) for k in range(4)])
    close(got, alpha + found)
    A, N = alpha.sum(), len(throws)
    want = torch.lgamma(A) - torch.lgamma(A + N)
    want = want + (torch.lgamma(alpha + found) - torch.lgamma(alpha)).sum()
    close(answer.log_marginal, want)
    close(answer.mean["pi"], (alpha + found) / (A + N))


# ---- one for each datum or group ----


@law
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6), shapes)
def test_beta_binomial_of_each_datum(found, a):
    x = torch.tensor([float(heads) for heads, _ in found])
    total = x + torch.tensor([float(tails) for _, tails in found])
    answer = pplvm.conjugate(partial(beta_binomial, a=a, b=1.5), x, total)
    p, q = parameters(answer, "p")
    close(p, a + x)
    close(q, 1.5 + total - x)
    close(answer.log_marginal, stats.betabinom.logpmf(x, total, a, 1.5))


def test_groups_in_a_plate_of_their_own():
    x, which = torch.tensor([3.0, 0.0, 7.0, 1.0, 2.0]), torch.tensor([0, 0, 2, 2, 2])

    def model(x, which):
        with pyro.plate("group", 4, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Poisson(rate[..., which]), obs=x)

    answer = pplvm.conjugate(model, x, which)
    shape, rate = parameters(answer, "rate")
    close(shape, torch.tensor([5.0, 2.0, 12.0, 2.0]))  # groups 1 and 3 have no data
    close(rate, torch.tensor([2.5, 0.5, 3.5, 0.5]))
    want = sum(
        torch.lgamma(s) - torch.lgamma(torch.tensor(2.0)) + 2 * math.log(0.5) - s * r.log()
        for s, r in zip(shape, rate, strict=True)
    )
    close(answer.log_marginal, want - torch.lgamma(x + 1).sum())
    assert answer.log_marginal.shape == ()
    assert answer.posterior["rate"].batch_shape == (4,)


def test_nested_plates_are_summed_for_each_datum():
    x = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 0.0]])  # (N, D)

    def model(x):
        with pyro.plate("data", 2, dim=-1), pyro.plate("part", 3, dim=-2):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
            pyro.sample("x", dist.Poisson(rate), obs=x.T)

    answer = pplvm.conjugate(model, x)
    close(parameters(answer, "rate")[0], 2 + x.T)
    close(answer.log_marginal, stats.nbinom.logpmf(x, 2.0, 1.5 / 2.5).sum(1))


def test_latents_of_each_datum_below_one_that_they_share():
    """Two latents in two likelihoods: what the data share makes one evidence of both."""
    x, y = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4.0, 0.0, 2.0])

    def model(x, y):
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.Exponential(0.5))
            pyro.sample("y", dist.Poisson(rate), obs=y)
            return pyro.sample("x", dist.Bernoulli(p), obs=x)

    answer = pplvm.conjugate(model, x, y)
    close(parameters(answer, "p")[0], 3.0)
    close(parameters(answer, "rate")[0], 1 + y)
    close(parameters(answer, "rate")[1], torch.full((3,), 1.5))
    want = stats.nbinom.logpmf(y, 1.0, 0.5 / 1.5).sum() + math.log(1 / 12)
    close(answer.log_marginal, want)


def test_groups_that_share_a_variance():
    """Means m_g | v ~ N(0, v/κ) of two groups, one v: each group adds to the one scale."""
    x, which = torch.tensor([1.0, 2.0, 4.0, -3.0, -1.0]), torch.tensor([0, 0, 0, 1, 1])
    kappa, a, b = 0.5, 3.0, 2.0

    def model(x, which):
        v = pyro.sample("v", dist.InverseGamma(a, b))
        with pyro.plate("group", 2, dim=-1):
            mu = pyro.sample("mu", dist.Normal(0.0, (v / kappa).sqrt()))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(mu[..., which], v.sqrt()), obs=x)

    answer = pplvm.conjugate(model, x, which)
    n, sums = torch.tensor([3.0, 2.0]), torch.tensor([7.0, -4.0])
    shape, scale = parameters(answer, "v")
    close(shape, a + 2.5)
    close(scale, b + 0.5 * ((x**2).sum() - (sums**2 / (n + kappa)).sum()))
    df, loc, of_mu = parameters(answer, "mu")
    close(loc, sums / (n + kappa))
    close(df, torch.full((2,), 2 * a + 5))
    close(of_mu, (scale / shape / (n + kappa)).sqrt())
    cov = b / a * (torch.eye(5) + (which[:, None] == which) / kappa)
    close(answer.log_marginal, stats.multivariate_t(np.zeros(5), cov, df=2 * a).logpdf(x))


def test_precision_and_variance_of_a_known_mean():
    x = torch.tensor([1.0, -2.0, 0.5])

    def precision(x):
        tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(0.3, tau.rsqrt()), obs=x)

    def variance(x):
        v = pyro.sample("v", dist.InverseGamma(3.0, 2.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(0.3, v.sqrt()), obs=x)

    scale = 2.0 + ((x - 0.3) ** 2).sum() / 2
    want = stats.multivariate_t(np.full(3, 0.3), 2 / 3 * np.eye(3), df=6).logpdf(x)
    for model, name in ((precision, "tau"), (variance, "v")):
        answer = pplvm.conjugate(model, x)
        for got, wanted in zip(parameters(answer, name), (4.5, scale), strict=True):
            close(got, wanted)
        close(answer.log_marginal, want)


def test_geometric_and_exponential_come_along():
    x = torch.tensor([0.0, 3.0, 1.0])

    def geometric(x):
        p = pyro.sample("p", dist.Beta(2.0, 5.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Geometric(p), obs=x)

    def exponential(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 5.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Exponential(rate), obs=x)

    for got, want in zip(parameters(pplvm.conjugate(geometric, x), "p"), (5, 9), strict=True):
        close(got, want)
    for got, want in zip(parameters(pplvm.conjugate(exponential, x), "rate"), (5, 9), strict=True):
        close(got, want)


def test_masked_and_weighted_data_count_as_much_as_they_should():
    x, seen = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, True])

    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 3, dim=-1), poutine.mask(mask=seen), poutine.scale(scale=2.0):
            return pyro.sample("x", dist.Bernoulli(p), obs=x)

    close(parameters(pplvm.conjugate(model, x), "p")[0], 3.0)
    close(parameters(pplvm.conjugate(model, x), "p")[1], 3.0)


def test_elements_of_an_event_are_independent_latents():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])

    def model(x):
        p = pyro.sample("p", dist.Beta(torch.ones(2), 2.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)

    answer = pplvm.conjugate(model, x)
    close(parameters(answer, "p")[0], torch.tensor([3.0, 2.0]))
    assert answer.posterior["p"].event_shape == (2,)
    assert answer.posterior["p"].batch_shape == ()


# ---- hard numbers ----


def test_data_far_from_the_prior_cost_no_digits():
    """Location 1e6 with sd 1e-3: squares of what is read off naively are 1e18 times too large."""
    x = 1e6 + 1e-3 * torch.randn(50)
    answer = pplvm.conjugate(partial(normal_normal, prior_sd=1e7, sd=1e-3), x)
    assert abs(answer.mean["mu"] - x.mean()) < 1e-8
    close(answer.sd["mu"], 1e-3 / math.sqrt(50))
    v = x.var(correction=0).item()
    want = 0.5 * math.log(1e-6 / (50 * 1e14)) - 0.5 * 50 * (v / 1e-6) - 0.5 * 1e-2
    want -= 25 * math.log(2 * math.pi * 1e-6)
    close(answer.log_marginal, want, rtol=1e-6)


def test_a_coin_that_nearly_always_falls_on_one_side():
    x, total = torch.tensor([10.0**9 - 3, 0.0]), torch.tensor([10.0**9, 10.0**9])
    p, q = parameters(pplvm.conjugate(partial(beta_binomial, a=0.5, b=0.5), x, total), "p")
    close(p, x + 0.5, rtol=1e-6)
    close(q, total - x + 0.5, rtol=1e-6)


def test_a_simplex_of_one_category_is_a_point():
    answer = pplvm.conjugate(
        partial(dirichlet_categorical, alpha=torch.tensor([2.0])), torch.tensor([0, 0])
    )
    close(answer.mean["pi"], torch.ones(1))
    close(answer.log_marginal, 0.0)


def test_float32_parameters_cost_no_digits_and_stay():
    torch.set_default_dtype(torch.float32)
    model, x = dirichlet_multinomial([0.5, 1.0, 2.0]), torch.tensor([[3, 0, 9]])
    close(
        pplvm.conjugate(model, x).log_marginal,
        scipy_logpmf(x, model.log_alpha.detach().double().exp()),
    )
    assert model.log_alpha.dtype == torch.float32


def test_a_story_that_insists_on_float32_is_solved_in_float32():
    torch.set_default_dtype(torch.float32)
    W, x = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, -1.0]])

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(W @ z, 1.0).to_event(1), obs=x)

    answer = pplvm.conjugate(model, x)
    assert answer.mean["z"].dtype == torch.float32
    close(answer.mean["z"].double(), x.sum(0) / 3, rtol=1e-5)


def test_neither_random_state_nor_modules_change():
    model, x = dirichlet_multinomial([0.5, 1.0]), torch.tensor([[3, 0]])
    before, state = torch.get_rng_state(), model.log_alpha.detach().clone()
    pplvm.conjugate(model, x).draws(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.log_alpha, state)


# ---- streaming ----

STREAMS = {
    "beta_bernoulli": (beta_bernoulli, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])),
    "gamma_poisson": (gamma_poisson, torch.tensor([4.0, 0.0, 1.0, 0.0, 9.0, 3.0, 1e6])),
    "normal_normal": (normal_normal, torch.tensor([4.0, 0.1, -1.0, 30.0, 9.0, 3.0, 7.0])),
    "normal_inverse_gamma": (
        normal_inverse_gamma,
        torch.tensor([4.0, 0.1, -1.0, 30.0, 9.0, 3.0, 7.0]),
    ),
    "dirichlet_categorical": (
        partial(dirichlet_categorical, alpha=torch.tensor([0.3, 1.0, 2.0])),
        torch.tensor([0, 2, 1, 1, 1, 0, 1]),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("cuts", [(0,), (3,), (1, 2), (2, 2, 5)])
def test_batches_one_after_the_other_are_all_at_once(name, cuts):
    model, x = STREAMS[name]
    batches = torch.tensor_split(x, cuts)
    answer = pplvm.conjugate(model, batches[0])
    evidence = answer.log_marginal
    for batch in batches[1:]:
        answer = answer.update(batch)
        evidence = evidence + answer.log_marginal
    whole = pplvm.conjugate(model, x)
    for site in whole.posterior:
        for got, want in zip(parameters(answer, site), parameters(whole, site), strict=True):
            close(got, want, rtol=1e-11)
    close(evidence, whole.log_marginal, rtol=1e-11)
    assert torch.equal(answer.data[0], x)


def test_an_update_counts_a_scaled_prior_once():
    def model(x):
        with poutine.scale(scale=0.5):
            p = pyro.sample("p", dist.Beta(3.0, 5.0))  # as a prior: Beta(2, 3), not normalised
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = torch.tensor([1.0, 1.0, 0.0])
    answer = pplvm.conjugate(model, x[:1]).update(x[1:])
    close(parameters(answer, "p")[0], 4.0)
    close(parameters(answer, "p")[1], 4.0)


def test_only_latents_that_the_data_share_are_updated():
    x, total = torch.tensor([1.0]), torch.tensor([3.0])
    with pytest.raises(ValueError, match="site 'p' is latent in plate 'data'"):
        pplvm.conjugate(beta_binomial, x, total).update(x, total)

    def once(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("first", dist.Bernoulli(p), obs=torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Bernoulli(p), obs=x)

    with pytest.raises(ValueError, match="site 'first' is observed outside plate 'data'"):
        pplvm.conjugate(once, x).update(x)


# ---- draws, and evidence by Monte Carlo ----


@pytest.mark.parametrize("name", STREAMS)
def test_evidence_is_the_mean_likelihood_of_a_million_priors(name):
    """False alarm: five stories at 4 standard errors, 3e-4."""
    model, x = STREAMS[name]
    x = x[:3]
    S = 10**6
    priors = {
        "beta_bernoulli": lambda: dist.Bernoulli(dist.Beta(1.0, 1.0).sample((S, 1))),
        "gamma_poisson": lambda: dist.Poisson(dist.Gamma(1.0, 1.0).sample((S, 1))),
        "normal_normal": lambda: dist.Normal(dist.Normal(0.0, 10.0).sample((S, 1)), 1.0),
        "normal_inverse_gamma": lambda: normal_of(dist.InverseGamma(2.0, 1.0).sample((S, 1))),
        "dirichlet_categorical": lambda: dist.Categorical(
            dist.Dirichlet(torch.tensor([0.3, 1.0, 2.0])).sample((S, 1))
        ),
    }
    likelihood = priors[name]().log_prob(x).sum(-1).exp()  # (S,)
    error = likelihood.std() / S**0.5
    assert error < 0.1 * likelihood.mean()
    assert (likelihood.mean() - pplvm.conjugate(model, x).log_marginal.exp()).abs() < 4 * error


def normal_of(v: Tensor) -> dist.Normal:
    return dist.Normal(v.sqrt() * torch.randn_like(v), v.sqrt())


@pytest.mark.parametrize("name", STREAMS)
def test_a_million_draws_have_the_moments_of_the_posterior(name):
    """False alarm: about 16 means and sds at 4.5 standard errors, 1e-4."""
    model, x = STREAMS[name]
    answer, S = pplvm.conjugate(model, x[:6]), 10**6
    draws = answer.draws(S, seed=3)
    assert draws.shape == (1, S)
    for site in answer.posterior:
        z = (draws[site][0] - answer.mean[site]) / answer.sd[site]
        assert (z.mean(0).abs() < 4.5 / S**0.5).all()
        fourth = (z**4).mean(0)
        assert ((z**2).mean(0) - 1).abs().le(4.5 * ((fourth - 1) / S) ** 0.5).all()
    if name == "normal_inverse_gamma":  # a mean is drawn with its variance, not alone
        k = 1.0 + 6
        white = (draws["mu"] - answer.mean["mu"]) * (k / draws["variance"]).sqrt()
        assert abs((white**2).mean() - 1) < 4.5 * math.sqrt(2 / S)
        assert abs((white**2 * draws["variance"]).mean() / answer.mean["variance"] - 1) < 0.02


def test_draws_are_reproducible_and_go_to_arviz():
    answer = pplvm.conjugate(
        partial(beta_binomial, a=2.0), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 5.0])
    )
    one, same, other = (answer.draws(10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one["p"], same["p"])
    assert not torch.equal(one["p"], other["p"])
    assert one.to_arviz()["posterior"]["p"].dims == ("chain", "draw", "data")
    with pytest.raises(ValueError, match="num_draws"):
        answer.draws(0)
    with pytest.raises(ValueError, match="seed"):
        answer.draws(5, seed=-1)


def test_a_bundle_of_latents_is_drawn_in_its_own_shape():
    answer = pplvm.conjugate(dirichlet_multinomial([1.0, 2.0, 3.0]), torch.tensor([[1, 0, 4]] * 5))
    assert answer.draws(7)["p"].shape == (1, 7, 5, 3)
    assert answer.mean["p"].shape == answer.sd["p"].shape == (5, 3)
