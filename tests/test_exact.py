"""Exact posteriors against the textbook, and importance sampling against exact posteriors."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal
from zoo import factor_analysis, learned, mixed, nested, of_oracle, regression, student

import pplvm
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.likelihood import summarise
from pplvm.models.factor_analysis import FactorAnalysis


def condition(
    mean: Tensor, cov: Tensor, H: Tensor, noise: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """u ~ N(mean, cov), x | u ~ N(H u, diag(noise)): mean and cov of u | x, and log p(x)."""
    S = H @ cov @ H.T + noise.diag()
    K = cov @ H.T @ S.inverse()
    log_p = MultivariateNormal(H @ mean, S).log_prob(x)
    return mean + K @ (x - H @ mean), cov - K @ H @ cov, log_p


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def covariance(answer: pplvm.Exact) -> Tensor:
    return answer.scale_tril @ answer.scale_tril.mT


# ---- closed forms ----


@pytest.mark.parametrize("isotropic", [False, True], ids=["FA", "PPCA"])
def test_factor_analysis_is_the_textbook_posterior(isotropic):
    model, x = FactorAnalysis(5, 2, isotropic), torch.randn(7, 5)
    with torch.no_grad():
        model.mu.normal_()
        model.log_psi.normal_()
        W, psi = model.W, model.log_psi.exp().expand(5)
        M = torch.eye(2) + W.T @ (W / psi[:, None])
        mean = (x - model.mu) @ (M.inverse() @ W.T / psi).T
        log_p = MultivariateNormal(model.mu, W @ W.T + psi.diag()).log_prob(x)
    answer = pplvm.exact(model, x)
    close(answer.mean["z"], mean)
    close(answer.location, mean)
    close(covariance(answer), M.inverse().expand(7, 2, 2))
    close(answer.sd["z"], M.inverse().diagonal().sqrt().expand(7, 2))
    close(answer.log_marginal, log_p)


def test_bayesian_linear_regression_is_the_textbook_posterior():
    story = regression(num_data=9)
    X, y = story.data
    noise = math.exp(-0.3) ** 2  # as the story starts
    precision = torch.eye(2) + X.T @ X / noise
    answer = pplvm.exact(story.model, X, y)
    close(answer.mean["w"], precision.inverse() @ X.T @ y / noise)
    close(covariance(answer)[0], precision.inverse())
    log_p = MultivariateNormal(torch.zeros(9), X @ X.T + noise * torch.eye(9)).log_prob(y)
    close(answer.log_marginal, log_p[None])  # one number: w belongs to all the data


def test_a_shared_latent_above_the_data_is_one_gaussian():
    story, N = mixed(num_data=5), 5  # m ~ N(0.1, 1), z_n ~ N(m, 1), x_n ~ N(z_n, 0.7)
    mean, cov = torch.full((N + 1,), 0.1), torch.ones(N + 1, N + 1)
    cov[1:, 1:] += torch.eye(N)
    H = torch.cat([torch.zeros(N, 1), torch.eye(N)], 1)
    mean, cov, log_p = condition(mean, cov, H, torch.full((N,), 0.49), *story.data)
    answer = pplvm.exact(story.model, *story.data)
    close(torch.cat([answer.mean["m"][None], answer.mean["z"]]), mean)
    close(torch.cat([answer.sd["m"][None], answer.sd["z"]]), cov.diagonal().sqrt())
    close(covariance(answer)[0], cov)
    close(answer.log_marginal, log_p[None])


def chain(x: Tensor) -> Tensor:
    """A chain of three latents in each datum, the last one seen."""
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(0.5, 1.0))
        z2 = pyro.sample("z2", dist.Normal(2.0 * z1 - 1.0, 0.5))
        z3 = pyro.sample("z3", dist.Normal(z2 + z1, 0.3))
        return pyro.sample("x", dist.Normal(-z3, 0.4), obs=x)


def test_a_hierarchical_chain_is_conditioned_as_a_whole():
    x = torch.randn(4)
    A = torch.tensor([[1.0, 0, 0], [2.0, 0.5, 0], [3.0, 0.5, 0.3]])  # z = b + A eps
    b, H = torch.tensor([0.5, 0.0, 0.5]), torch.tensor([[0.0, 0.0, -1.0]])
    answer = pplvm.exact(chain, x)
    for n in range(4):
        mean, cov, log_p = condition(b, A @ A.T, H, torch.tensor([0.16]), x[n : n + 1])
        close(torch.stack([answer.mean[name][n] for name in ("z1", "z2", "z3")]), mean)
        close(covariance(answer)[n], cov)
        close(answer.log_marginal[n], log_p)


def test_nested_plates_keep_their_shape():
    story = nested(num_data=4, num_parts=3)  # z_n ~ N(0, 1), w_mn ~ N(z_n, 1), x_nm ~ N(w_mn, 1)
    cov = torch.ones(4, 4) + torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    H = torch.cat([torch.zeros(3, 1), torch.eye(3)], 1)
    answer = pplvm.exact(story.model, *story.data)
    assert answer.mean["w"].shape == (3, 4)  # plates, outermost first
    close(answer.log_marginal, story.log_marginal)
    for n, x in enumerate(story.data[0]):
        mean, posterior, _ = condition(torch.zeros(4), cov, H, torch.ones(3), x)
        close(torch.cat([answer.mean["z"][n, None], answer.mean["w"][:, n]]), mean)
        sds = torch.cat([answer.sd["z"][n, None], answer.sd["w"][:, n]])
        close(sds, posterior.diagonal().sqrt())


def test_a_story_without_a_data_plate_is_one_datum():
    def schools(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("school", len(y), dim=-1):
            theta = pyro.sample("theta", dist.Normal(mu, 3.0))
            return pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    y, sigma = torch.randn(6) * 9, torch.rand(6) + 8
    log_p = MultivariateNormal(torch.zeros(6), (sigma**2 + 9).diag() + 25).log_prob(y)
    close(pplvm.exact(schools, y, sigma).log_marginal, log_p[None])


def test_parameters_of_float32_cost_no_digits():
    torch.set_default_dtype(torch.float32)
    model, x = FactorAnalysis(5, 2), torch.randn(7, 5)
    with torch.no_grad():
        W, psi, x64 = model.W.double(), model.log_psi.double().exp(), x.double()
        log_p = MultivariateNormal(torch.zeros(5).double(), W @ W.T + psi.diag()).log_prob(x64)
    close(pplvm.exact(model, x).log_marginal, log_p)
    assert model.W.dtype == torch.float32  # the caller's stays what it was


def test_draws_have_the_moments_of_the_posterior():
    """False alarm: 22 means, sds and correlations at 4.5 standard errors, under 2e-4."""
    answer = pplvm.exact(chain, torch.tensor([0.3, -2.0]))
    S, draws = 20_000, answer.draws(20_000, seed=1)
    z = torch.stack([draws[name][0] for name in ("z1", "z2", "z3")], -1)  # (S, N, 3)
    for n in range(2):
        cov = covariance(answer)[n]
        white = torch.linalg.solve_triangular(
            answer.scale_tril[n], (z[:, n] - answer.location[n]).T, upper=False
        )  # (3, S): standard normal
        assert (white.mean(1).abs() < 4.5 / S**0.5).all()
        assert ((white @ white.T / S - torch.eye(3)).abs() < 4.5 * (2 / S) ** 0.5).all()
        assert cov.diagonal().sqrt()[0] == pytest.approx(answer.sd["z1"][n].item())


def test_draws_are_reproducible_and_lie_in_one_chain():
    answer = pplvm.exact(chain, torch.tensor([0.3, -2.0]))
    one, same, other = (answer.draws(10, seed=seed) for seed in (1, 1, 2))
    assert one["z2"].shape == (1, 10, 2)
    assert torch.equal(one["z2"], same["z2"])
    assert not torch.equal(one["z2"], other["z2"])


# ---- what is not linear-Gaussian is refused ----


def in_plate(prior, likelihood):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", likelihood(z), obs=x)

    return model


def product(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(a * b, 1.0), obs=x)


def without_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def improper(x):
    with pyro.plate("data", len(x), dim=-1):
        with poutine.mask(mask=False):
            pyro.sample("flat", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def too_many(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(5000), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(w[..., 0], 1.0), obs=x)


unit = partial(dist.Normal, scale=1.0)
REFUSED = {
    "endless": (in_plate(dist.Poisson(0.5), unit), ["'z'", "Poisson", "cannot be listed"]),
    "positive": (in_plate(dist.LogNormal(0.0, 1.0), unit), ["'z'", "LogNormal", "nuts"]),
    "heavy tails": (in_plate(dist.StudentT(3.0), unit), ["'z'", "StudentT", "nuts"]),
    "heavy-tailed data": (
        in_plate(dist.Normal(0.0, 1.0), lambda z: dist.StudentT(3.0, z)),
        ["'x'", "StudentT", "not quadratic"],
    ),
    "counts": (
        in_plate(dist.Normal(0.0, 1.0), lambda z: dist.Poisson(z.exp())),
        ["'x'", "Poisson", "not quadratic"],
    ),
    "scale": (
        in_plate(dist.Normal(0.0, 1.0), lambda z: dist.Normal(0.0, z.exp())),
        ["'x'", "Normal", "not quadratic"],
    ),
    "product": (product, ["'x'", "Normal", "not quadratic"]),
    "none": (without_latents, ["no latent"]),
    "improper": (improper, ["'flat'", "singular", "proper prior"]),
    "too many": (too_many, ["5000", "4000", "nuts"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_stories_are_refused_by_name(name):
    model, words = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        pplvm.exact(model, torch.tensor([0.0, 1.0, 2.0]))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- the log marginal likelihood by importance sampling ----


def posterior_guide(model: FactorAnalysis, x: Tensor, widened: float = 1.0) -> LinearGaussian:
    """The exact posterior as a guide, its scale widened."""
    answer = pplvm.exact(model, x)
    D, L = model.W.shape
    guide = LinearGaussian(D, L)
    with torch.no_grad():
        A = answer.scale_tril[0] @ answer.scale_tril[0].T @ model.W.T / model.log_psi.exp()
        guide.mean.weight.copy_(A)
        guide.mean.bias.copy_(-A @ model.mu)
        tril = widened * answer.scale_tril[0]
        guide.L.copy_(tril.tril(-1) + tril.diagonal().log().diag())
    return guide


def test_a_perfect_proposal_leaves_no_error():
    model, x = FactorAnalysis(5, 2), torch.randn(6, 5)
    got = pplvm.log_marginal(model, posterior_guide(model, x), x, num_particles=50)
    close(got.value, pplvm.exact(model, x).log_marginal)
    assert got.error.max() < 1e-8
    assert (got.ess > 49.999).all()
    assert (got.khat == -math.inf).all()


def test_a_good_proposal_is_within_its_error():
    """False alarm: 20 data at 4 standard errors, about 1e-3."""
    model, x = FactorAnalysis(5, 2), torch.randn(20, 5)
    got = pplvm.log_marginal(model, posterior_guide(model, x, 1.3), x, num_particles=4000, seed=1)
    gap = (got.value - pplvm.exact(model, x).log_marginal).abs()
    assert (gap < 4 * got.error).all()
    assert (got.error < 0.03).all()
    assert got.khat.max() < 0.5


def test_the_error_is_the_spread_of_estimates():
    """Of 400 equal data. False alarm: a ratio of sds beyond 20 %, about 1e-7."""
    model, x = FactorAnalysis(5, 2), torch.randn(1, 5).expand(400, 5)
    guide = posterior_guide(model, x, 1.3)
    got = pplvm.log_marginal(model, guide, x, num_particles=200)
    assert got.error.mean() / got.value.std() == pytest.approx(1.0, rel=0.2)


def test_a_bad_proposal_is_told_by_khat():
    model, x = FactorAnalysis(5, 2), torch.randn(20, 5)
    narrow = posterior_guide(model, x, 0.1)
    got = pplvm.log_marginal(model, narrow, x, num_particles=4000)
    assert got.khat.min() > 0.7
    assert got.ess.max() < 400


def test_latents_that_data_share_have_one_log_marginal():
    """False alarm: 4 standard errors, 6e-5."""
    story = regression()
    got = pplvm.log_marginal(story.model, story.guide, *story.data, num_particles=4000)
    want = pplvm.exact(story.model, *story.data).log_marginal
    assert got.value.shape == (1,)
    assert abs(got.value - want) < 4 * got.error


@pytest.mark.parametrize("matmul", [False, True])
def test_a_story_that_does_not_broadcast_is_weighed_right(matmul):
    """False alarm: 4 standard errors, 6e-5."""
    story = regression()

    def product(theta, X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(X), dim=-1):
            loc = X @ w if matmul else w[0] * X[:, 0] + w[1] * X[:, 1]
            return pyro.sample("y", dist.Normal(loc, theta["log_s"].exp()), obs=y)

    model = learned(product, {"log_s": torch.tensor(-0.3)})
    got = pplvm.log_marginal(model, story.guide, *story.data, num_particles=400)
    want = pplvm.exact(story.model, *story.data).log_marginal
    assert abs(got.value - want) < 4 * got.error


def test_the_sum_of_weights_is_taken_in_logs():
    log_w = torch.tensor([[-2000.0, 5.0], [-2001.0, 5.0]])
    got = summarise(log_w.repeat(30, 1))
    close(got.value, torch.tensor([-2000 + math.log1p(math.exp(-1)) - math.log(2), 5.0]))
    assert (got.error[1] < 1e-12) & (got.ess[1] > 59.99)


def test_neither_random_state_nor_modules_change():
    story = factor_analysis()
    before, state = (
        torch.get_rng_state(),
        {k: v.clone() for k, v in story.model.state_dict().items()},
    )
    pplvm.exact(story.model, *story.data).draws(5)
    pplvm.log_marginal(story.model, story.guide, *story.data, num_particles=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in story.model.state_dict().items())


@pytest.mark.parametrize("guide", [AmortisedMeanField, LinearGaussian])
def test_importance_sampling_is_reproducible(guide):
    story = factor_analysis()
    q = guide(3, 2)
    one, same, other = (
        pplvm.log_marginal(story.model, q, *story.data, num_particles=30, seed=s).value
        for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_heavy_tailed_prior_is_weighed_too():
    """False alarm: 4 data at 4 standard errors, 3e-4."""
    story = of_oracle(student)
    got = pplvm.log_marginal(story.model, story.guide, *story.data, num_particles=20_000)
    assert ((got.value - story.log_marginal).abs() < 4 * got.error + 1e-6).all()
