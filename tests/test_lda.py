"""Latent Dirichlet allocation: densities by listing assignments, tokens against counts, topics found.

Shapes: N documents, V words, K topics, T tokens, P particles.
"""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy.sparse import csr_array
from test_datasets import one_sentence
from torch import Tensor, nn
from zoo_topics import corpus, matched, matched_total_variation

import pplvm
from pplvm import traces
from pplvm.guides.lda import LDAGuide, LDALogisticNormal, LDAMeanField, LogRatios
from pplvm.models.lda import LDA, LDATokens, bag
from pplvm.objectives import elbo, score_function
from pplvm.topics import FittedTopics, variational_em

N, V, K, T = 5, 6, 3, 4
LENGTHS = torch.tensor([4, 0, 2, 3, 4])


def tokens() -> Tensor:
    return torch.randint(0, V, (N, T))


def guide(family: str, num_data: int = N, num_words: int = V, num_topics: int = K) -> nn.Module:
    if family == "mean-field":
        return LDAMeanField(num_data, num_words, num_topics)
    of = {"dirichlet": LDAGuide, "logistic-normal": LDALogisticNormal}[family]
    return of(num_words, num_topics, (32,))


FAMILIES = ("dirichlet", "logistic-normal", "mean-field")


def latents() -> dict[str, Tensor]:
    dirichlet = torch.distributions.Dirichlet
    return {
        "beta": dirichlet(torch.ones(K, V)).sample(),
        "theta": dirichlet(torch.ones(N, K)).sample(),
    }


def log_p_of_tokens(x: Tensor, lengths: Tensor, beta: Tensor, theta: Tensor) -> Tensor:
    """log p(x | beta, theta), (N,), by listing the topics of all tokens together."""
    total = []
    for row, n, shares in zip(x, lengths.tolist(), theta, strict=True):
        states = itertools.product(range(K), repeat=n)
        total.append(sum(math.prod(shares[k] * beta[k, w] for k, w in zip(z, row)) for z in states))  # noqa: B905
    return torch.stack([torch.as_tensor(p).log() for p in total])


def orders(x: Tensor) -> Tensor:
    """The logarithm of the multinomial coefficient of counts, (N,)."""
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)


# ---- densities ----


def test_counts_are_tokens_in_any_order():
    x, at = tokens(), latents()
    counts = bag(x, LENGTHS, V).double()
    trace = poutine.trace(poutine.condition(LDA(V, K), at)).get_trace(counts)
    trace.compute_log_prob()
    want = log_p_of_tokens(x, LENGTHS, **at) + orders(counts)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], want)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_with_their_topics_summed_out_are_counts(family):
    """The same draws of the guide give the same bound and the same gradient in every parameter."""
    x, found = tokens(), {}
    counts, q = bag(x, LENGTHS, V).double(), guide(family)
    stories = {
        "counts": (LDA(V, K, learn_alpha=True, learn_eta=True), (counts,)),
        "tokens": (LDATokens(V, K, learn_alpha=True, learn_eta=True), (x, LENGTHS)),
    }
    for name, (model, data) in stories.items():
        torch.manual_seed(1)
        parameters = [*model.parameters(), *q.parameters()]
        estimate = elbo(model, q, *data)
        found[name] = estimate.bound, torch.autograd.grad(estimate.loss, parameters)
    gap = found["counts"][0] - found["tokens"][0]
    torch.testing.assert_close(gap, orders(counts))
    torch.testing.assert_close(found["counts"][1], found["tokens"][1])


def test_priors_are_those_given():
    model = LDA(V, K, alpha=0.3, eta=0.7)
    sites = traces.look(model, torch.ones(N, V))
    assert torch.allclose(sites["theta"].fn.concentration, torch.tensor(0.3))
    assert torch.allclose(sites["beta"].fn.concentration, torch.tensor(0.7))
    default = traces.look(LDA(V, K), torch.ones(N, V))
    assert torch.allclose(default["theta"].fn.concentration, torch.tensor(1 / K))
    learned = LDA(V, K, learn_alpha=True)
    assert [name for name, p in learned.named_parameters() if p.requires_grad] == ["log_alpha"]


def scored(x: Tensor, lengths: Tensor, q: nn.Module) -> Tensor:
    """The bound of each document at the same draws, (N,)."""
    torch.manual_seed(1)
    return elbo(LDATokens(V, K), q, x, lengths).bound


def test_what_lies_beyond_the_lengths_is_not_looked_at():
    x, q = tokens(), guide("mean-field")
    other = torch.where(torch.arange(T) < LENGTHS[:, None], x, 10 * V)
    longer = torch.cat((other, torch.full((N, 3), -1)), 1)
    want = scored(x, LENGTHS, q)
    torch.testing.assert_close(scored(other, LENGTHS, q), want)
    torch.testing.assert_close(scored(longer, LENGTHS, q), want)
    assert torch.equal(bag(x, LENGTHS, V), bag(longer, LENGTHS, V))
    shorter = LENGTHS.clamp(max=3)
    assert not torch.allclose(scored(x, shorter, q), want)


def test_tokens_may_come_in_any_order():
    x, q = tokens(), guide("mean-field")
    turned = x.clone()
    turned[0], turned[2, :2] = x[0].flip(0), x[2, :2].flip(0)
    torch.testing.assert_close(scored(turned, LENGTHS, q), scored(x, LENGTHS, q))


def test_the_order_of_documents_changes_nothing():
    x, at, order = tokens(), latents(), torch.tensor([3, 0, 4, 1, 2])
    z = torch.randint(0, K, (T, N))
    totals = []
    for rows in (torch.arange(N), order):
        there = {"beta": at["beta"], "theta": at["theta"][rows], "z": z[:, rows]}
        values = {name: value[None] for name, value in there.items()}
        data = x[rows], LENGTHS[rows]
        totals.append(traces.log_joint(LDATokens(V, K), values, *data, per_datum=False))
    torch.testing.assert_close(*totals)


def test_particles_are_as_many_runs():
    x = tokens()
    for family in FAMILIES:
        q = guide(family).eval()
        traces.check_particles(LDA(V, K), q, bag(x, LENGTHS, V).double())
        traces.check_particles(LDATokens(V, K), q, x, LENGTHS)


def test_guides_may_sample_topics():
    """With z sampled by its posterior at draws of the rest, the bound is as if it were summed out."""
    x, q = tokens(), guide("mean-field")

    def sampling(x: Tensor, lengths: Tensor) -> None:
        beta = q.sample_topics()
        inside = (torch.arange(T) < lengths[:, None]).T
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", torch_dirichlet(q))
            with pyro.plate("tokens", T, dim=-2), poutine.mask(mask=inside):
                shares = theta * beta.T[x.T]  # (T, N, K)
                pyro.sample("z", pyro.distributions.Categorical(shares))

    def torch_dirichlet(q: nn.Module) -> pyro.distributions.Dirichlet:
        return pyro.distributions.Dirichlet(q.log_gamma.exp())

    model = LDATokens(V, K)
    torch.manual_seed(1)
    got = score_function(model, sampling, x, LENGTHS).bound
    torch.testing.assert_close(got, scored(x, LENGTHS, q))


def test_dreams_follow_the_model():
    """False alarm: 2 stories of 6 words at 5 standard errors, 7e-6."""
    S = 20_000
    at = {"beta": latents()["beta"]}
    for model, data in (
        (LDA(V, K), (torch.tensor([[3.0, *[0.0] * (V - 1)]]).expand(S, V),)),
        (LDATokens(V, K), (torch.zeros(S, T, dtype=torch.long), torch.full((S,), 3))),
    ):
        assert poutine.trace(poutine.condition(model, at))(*data) is data[0]
        dream = poutine.condition(poutine.uncondition(model), at)(*data)
        counts = dream if len(data) == 1 else bag(dream, data[1], V).double()
        assert (counts.sum(-1) == 3).all()
        error = counts.std(0) / S**0.5
        assert ((counts.mean(0) - 3 * at["beta"].mean(0)).abs() < 5 * error).all()
        if len(data) == 2:
            assert (dream[:, 3] == 0).all()


# ---- guides ----


def test_log_ratios_have_the_density_of_a_change_of_variables():
    u, ratios = torch.randn(4, K - 1), LogRatios()
    theta = ratios(u)
    torch.testing.assert_close(theta.sum(-1), torch.ones(4))
    torch.testing.assert_close(ratios.inv(theta), u)
    jacobians = [torch.autograd.functional.jacobian(ratios, row)[:-1] for row in u]
    want = torch.stack([torch.linalg.slogdet(J).logabsdet for J in jacobians])
    torch.testing.assert_close(ratios.log_abs_det_jacobian(u, theta), want)
    far = torch.full((1, K - 1), -1e4)
    assert ratios.log_abs_det_jacobian(far, ratios(far)).item() == pytest.approx(-1e4 * (K - 1))


def test_mean_proportions_are_means_of_draws():
    """False alarm: 45 at 5 standard errors, 3e-5; the fixed points themselves are within 0.002."""
    x = bag(tokens(), LENGTHS, V).double()
    for family in FAMILIES:
        q = guide(family).eval()
        with pyro.plate("draws", 20_000, dim=-2):
            theta = poutine.trace(q).get_trace(x).nodes["theta"]["value"].detach()
        error = theta.std(0) / 20_000**0.5
        assert ((q.proportions(x) - theta.mean(0)).abs() < 5 * error + 0.002).all(), family


def test_an_empty_document_has_the_proportions_of_none():
    q = guide("dirichlet").eval()
    x = torch.cat((torch.zeros(1, V), torch.ones(1, V)))
    torch.testing.assert_close(q.gamma(x)[0], q.log_a.exp())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.ones(N, V + 1),), "'x' has shape"),
        ((torch.full((N, V), -1.0),), "'x' is -1 in row 0, column 0"),
        ((torch.full((N, V), 0.5),), "'x' is 0.5 in row 0, column 0"),
        ((torch.full((N, V), math.inf),), "'x' is inf in row 0, column 0"),
        ((torch.full((N, T), V), LENGTHS), "'x' is 6 in row 0, token 0"),
        ((torch.zeros(N, T), LENGTHS), "'x' has shape .* and dtype"),
        ((torch.zeros(N, T, dtype=torch.long), LENGTHS + 1), "'lengths' is 5 in row 0"),
    ],
)
def test_what_are_no_documents_is_refused(data, message):
    model = LDA(V, K) if len(data) == 1 else LDATokens(V, K)
    for program in (model, guide("dirichlet"), guide("mean-field")):
        with pytest.raises(ValueError, match=message) as info:
            program.check_data(*data)
        one_sentence(info)


def test_fits_of_what_are_no_documents_are_refused():
    with pytest.raises(ValueError, match=r"'x' is 0\.5 in row 0, column 0"):
        pplvm.fit(LDA(V, K), guide("dirichlet"), torch.full((N, V), 0.5), num_steps=1)


def test_a_model_and_a_guide_of_other_numbers_of_topics_are_refused():
    with pytest.raises(ValueError, match=r"'topics of 4'.*'topics of 3'") as info:
        pplvm.fit(LDA(V, 4), guide("dirichlet"), torch.ones(N, V), num_steps=1)
    one_sentence(info)


def test_what_is_no_fit_is_refused():
    x = torch.ones(N, V)
    fit = pplvm.fit(LDA(V, K), guide("dirichlet"), x, num_steps=1)
    closed = variational_em(csr_array(x.numpy()), K, num_epochs=1)
    for wrong, message in (
        ({"fit": closed}, "'fit' should be what pplvm.fit returned, got VariationalEM"),
        ({"fit": fit, "batch_size": 0}, "'batch_size' should be at least 1"),
    ):
        with pytest.raises(ValueError, match=message) as info:
            FittedTopics(**wrong)
        one_sentence(info)


def test_options_that_cannot_be_are_refused():
    for option in ({"alpha": 0.0}, {"eta": -1.0}, {"alpha": math.inf}, {"eta": math.nan}):
        with pytest.raises(ValueError, match=f"'{next(iter(option))}' is") as info:
            LDA(V, K, **option)
        one_sentence(info)
    with pytest.raises(ValueError, match="'num_data' of LDAMeanField is 5, got 2") as info:
        guide("mean-field").proportions(torch.ones(2, V))
    one_sentence(info)


# ---- answers ----


@pytest.mark.slow
def test_cavi_is_at_the_fixed_point_of_blei_et_al():
    x = tokens()
    found = pplvm.cavi(
        LDATokens(V, K, alpha=0.4, eta=0.6), x, LENGTHS, num_starts=2, tolerance=1e-12
    )
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(found.elbo))
    phi = found.marginals["z"].movedim(0, 1)  # (N, T, K)
    phi = phi * (torch.arange(T) < LENGTHS[:, None])[..., None]
    gamma, lam = (found.posterior[name].concentration for name in ("theta", "beta"))
    torch.testing.assert_close(gamma, 0.4 + phi.sum(1), atol=1e-4, rtol=0)
    each = torch.eye(V)[x]  # (N, T, V)
    torch.testing.assert_close(lam, 0.6 + torch.einsum("ntk,ntv->kv", phi, each), atol=1e-4, rtol=0)
    expected = [c.digamma() - c.sum(-1, keepdim=True).digamma() for c in (gamma, lam)]
    logits = expected[0][:, None] + expected[1].T[x]  # (N, T, K)
    inside = torch.arange(T) < LENGTHS[:, None]
    torch.testing.assert_close(phi[inside], logits.softmax(-1)[inside], atol=1e-4, rtol=0)


# How far a mean field may be from NUTS, by site: the distance of means, the least and the most ratio
# of deviations, each an average over the site.
GAPS = {
    "mean-field": {"theta": (0.045, 0.80, 1.02), "beta": (0.0075, 0.8, 1.02)},
    "dirichlet": {"theta": (0.085, 0.55, 0.70), "beta": (0.0110, 0.8, 1.02)},
    "closed form": {"theta": (0.080, 0.50, 0.62), "beta": (0.0110, 0.6, 0.85)},
}


def moments(method: str, x: Tensor, alpha: float, eta: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean and deviation of each site under a mean field."""
    if method == "closed form":
        counts = csr_array(x.numpy())
        field = variational_em(
            counts, K, alpha=alpha, eta=eta, batch_size=None, num_epochs=500, tolerance=1e-6
        )
        q = {"theta": field.posterior(counts), "beta": field.concentration}
        q = {name: torch.distributions.Dirichlet(value) for name, value in q.items()}
        return {name: (f.mean, f.stddev) for name, f in q.items()}
    model, q = LDA(x.shape[1], K, alpha=alpha, eta=eta), guide(method, *x.shape)
    draws = pplvm.fit(model, q, x, num_steps=1500, lr=0.02, compile="off").draws(num_draws=4000)
    return {name: (draws[name][0].mean(0), draws[name][0].std(0)) for name in ("theta", "beta")}


@pytest.mark.slow
def test_mean_fields_are_as_far_from_nuts_as_mean_fields_are():
    """Half the documents are of 4 words, so that the prior of proportions shows.

    A mean field is too narrow, and its means lean to where its topics do. The distances measured are
    0.028 to 0.033, 0.047 to 0.067 and 0.066 for theta, and at most 0.0057, 0.0094 and 0.0082 for beta.
    Chains of another seed are off by 0.005 and 0.0008, ratios by 0.005. No false alarm, by fixed seeds.
    """
    alpha, eta, random = 0.3, 0.5, np.random.default_rng(0)
    beta = np.kron(np.eye(K), np.full(4, 0.22)) + 0.01  # (K, 12)
    theta = random.dirichlet([alpha] * K, 12)
    lengths = [4] * 6 + [40] * 6
    x = torch.as_tensor(np.stack([*map(random.multinomial, lengths, theta @ beta)])).double()
    draws = pplvm.nuts(LDA(12, K, alpha=alpha, eta=eta), x, num_warmup=200, num_samples=400)
    draws = pplvm.align(draws, {"beta": 0, "theta": 1})
    true = {name: draws[name].flatten(0, 1) for name in ("theta", "beta")}  # (S, N, K), (S, K, V)
    for method, gaps in GAPS.items():
        found = moments(method, x, alpha, eta)
        place = matched(found["beta"][0], true["beta"].mean(0))
        for name, (most, narrow, wide) in gaps.items():
            mean, sd = (m[:, place] if name == "theta" else m[place] for m in found[name])
            off = (mean - true[name].mean(0)).abs().mean()
            ratio = sd.mean() / true[name].std(0).mean()
            assert off < most, (method, name, off)
            assert narrow < ratio < wide, (method, name, ratio)


SETTINGS = {
    "dirichlet": {"batch_size": 100, "num_epochs": 20, "lr": 0.05},
    "logistic-normal": {"batch_size": 100, "num_epochs": 20, "lr": 0.05},
    "mean-field": {"num_steps": 300, "lr": 0.1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_topics_are_found(family):
    """One corpus and one seed: no false alarm. Documents to come have their proportions too.

    Of other seeds one in six ends, by the amortised guides, where two topics are one.
    """
    torch.set_default_dtype(torch.float32)
    x, beta, theta = corpus()
    model = LDA(x.shape[1], 5, alpha=0.2, eta=0.1)
    fit = pplvm.fit(model, guide(family, *x.shape, 5), x, compile="off", **SETTINGS[family])
    found = FittedTopics(fit, batch_size=300 if family != "mean-field" else len(x))
    assert (matched_total_variation(found.topics, beta) < 0.08).all()
    place = matched(found.topics, beta)
    got = found.proportions(csr_array(x.numpy()))[:, place]
    assert 0.5 * (got - theta).abs().sum(-1).mean() < 0.1
    if family != "mean-field":
        x, _, theta = corpus(50, seed=1, beta=beta)
        got = found.proportions(csr_array(x.numpy().astype(np.int32)))
        assert 0.5 * (got[:, place] - theta).abs().sum(-1).mean() < 0.11
        assert torch.allclose(got[:1], found.proportions(csr_array(x[:1].numpy())), atol=1e-5)
    probs = found.word_probs(got)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(got)))
