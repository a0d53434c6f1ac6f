"""Closed-form updates of LDA: scikit-learn's bound, a rising ELBO, topics that are there."""

import tracemalloc

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_array
from scipy.special import gammaln
from scipy.stats import multinomial
from sklearn.decomposition import LatentDirichletAllocation
from zoo_topics import corpus, matched, matched_total_variation

import pplvm
from pplvm.batches import mix
from pplvm.topics.concentrations import expected_log, most_likely, most_likely_symmetric
from pplvm.topics.documents import blocks, log_coefficients
from pplvm.topics.mean_field import MeanField, posterior
from pplvm.topics.summaries import word_shares
from pplvm.topics.variational_em import variational_em


def made_up(N=300, K=4, V=40, tokens=60):
    """Returns counts (N, V) drawn from LDA, its topics (K, V) and proportions (N, K)."""
    x, beta, theta = corpus(N, V, K, length=float(tokens))
    return csr_array(x.numpy().astype(int)), beta, theta


# ---- concentrations ----


def test_the_likeliest_concentrations_are_those_of_a_general_optimiser():
    s = expected_log(torch.tensor([[2.0, 0.3, 1.0], [0.5, 0.5, 4.0]])).mean(0)

    def loss(u):
        a = np.exp(u)
        return -(gammaln(a.sum()) - gammaln(a).sum() + ((a - 1) * s.numpy()).sum())

    expected = np.exp(minimize(loss, np.zeros(3), tol=1e-12).x)
    for start in (0.01, 1.0, 50.0):
        found = most_likely(s, torch.full((3,), start))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert torch.allclose(expected_log(most_likely(s, torch.ones(3))), s, atol=1e-9)

    m = s.mean().item()
    best = minimize_scalar(
        lambda u: -(gammaln(3 * np.exp(u)) - 3 * gammaln(np.exp(u)) + 3 * (np.exp(u) - 1) * m),
        bounds=(-8, 8),
        options={"xatol": 1e-10},
    )
    for start in (0.01, 1.0, 50.0):
        found = most_likely_symmetric(torch.tensor(m), torch.tensor(start), 3)
        assert found.item() == pytest.approx(np.exp(best.x), rel=1e-6)


# ---- documents ----


def test_blocks_hold_every_count_once():
    x, _, _ = made_up(N=50)
    dense = torch.zeros(x.shape)
    for block in blocks(x, torch.float64):
        for row, words, counts in zip(block.rows, block.words, block.counts, strict=True):
            dense[row].index_add_(0, words, counts)
    np.testing.assert_array_equal(dense, x.toarray())


def test_the_coefficients_are_those_of_the_multinomial():
    x, _, _ = made_up(N=20)
    dense = x.toarray()
    expected = multinomial.logpmf(dense, dense.sum(1), np.full(40, 1 / 40)) + dense.sum(1) * np.log(
        40
    )
    np.testing.assert_allclose(log_coefficients(x), expected)


# ---- the bound ----


def test_the_bound_is_scikit_learns_at_the_same_state():
    x, _, _ = made_up()
    found = variational_em(x, 4, num_epochs=7, batch_size=None, alpha=0.3, eta=0.2)
    peer = LatentDirichletAllocation(4, doc_topic_prior=0.3, topic_word_prior=0.2, random_state=0)
    peer.fit(x[:10])
    peer.components_ = found.concentration.numpy()
    peer.exp_dirichlet_component_ = expected_log(found.concentration).exp().numpy()
    gamma, bound = posterior(x, found.concentration, found.alpha)
    theirs = peer._approx_bound(x, gamma.numpy(), sub_sampling=False)
    field = MeanField(x, 4, 0.3, 0.2, 0)
    field.concentration = found.concentration
    assert bound.sum().item() - field._divergence() == pytest.approx(theirs, rel=1e-9)
    assert found.bound(x).sum().item() == pytest.approx(
        (bound.sum() + log_coefficients(x).sum()).item()
    )


def test_the_bound_is_that_of_the_story_whose_words_are_summed_out_or_below():
    """Listed assignments give the exact expectation that the closed form bounds."""
    x, _, _ = made_up(N=5, V=8, tokens=6)
    found = variational_em(x, 2, num_epochs=30, batch_size=None)
    q = dist.Dirichlet(found.posterior(x)), dist.Dirichlet(found.concentration)
    torch.manual_seed(0)
    theta, beta = q[0].sample((40_000,)), q[1].sample((40_000,))
    counts = torch.tensor(x.toarray(), dtype=torch.float64)
    log_lik = (counts * (theta @ beta).log()).sum(-1)  # (S, N)
    prior = dist.Dirichlet(found.alpha).log_prob(theta) - q[0].log_prob(theta)
    exact = log_lik + prior + log_coefficients(x)
    error = 4 * exact.std(0) / 200  # false alarms: 5 tests at 4 standard errors, 2e-4
    assert (found.bound(x) <= exact.mean(0) + error).all()
    assert (found.bound(x) >= exact.mean(0) - 2.0).all()  # not by much: a few nats of 6 tokens


@pytest.mark.parametrize("learned", [False, True])
def test_the_elbo_rises_at_every_sweep(learned):
    x, _, _ = made_up()
    found = variational_em(
        x, 6, num_epochs=40, batch_size=None, eta=0.1, learn_alpha=learned, learn_eta=learned,
        tolerance=0.0,
    )  # fmt: skip
    rises = np.diff(found.elbo)
    assert len(rises) > 10
    assert (rises > -1e-9).all()
    assert (found.alpha != 0.1).any() == learned
    assert (abs(found.eta - 0.1) > 1e-6) == learned


def test_a_sweep_is_coordinate_ascent_as_cavi_does_it():
    """The fixed point of the closed form is one of pplvm.cavi on the story word by word."""
    K, V, N, T = 2, 5, 4, 6
    random = np.random.default_rng(3)
    tokens = torch.tensor(random.integers(0, V, (N, T)))

    def story(w):
        with pyro.plate("topics", K, dim=-1):
            beta = pyro.sample("beta", dist.Dirichlet(torch.full((V,), 0.4)))
        with pyro.plate("data", len(w), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(torch.full((K,), 0.7)))
            for t in range(T):
                z = pyro.sample(f"z_{t}", dist.Categorical(theta))
                p = beta[z] if beta.ndim == 2 else beta.squeeze(-3)[z]
                pyro.sample(f"w_{t}", dist.Categorical(p), obs=w[:, t])
        return w

    theirs = pplvm.cavi(story, tokens, num_steps=600, num_starts=1, tolerance=1e-11)
    lam = torch.as_tensor(theirs.factors.parameters["beta"][0])
    x = csr_array(torch.nn.functional.one_hot(tokens, V).sum(1).numpy())
    field = MeanField(x, K, 0.7, 0.4, 0)
    field.concentration = lam
    for _ in range(200):
        elbo = field.sweep()
    constant = log_coefficients(x).sum().item()
    assert elbo * N - constant == pytest.approx(theirs.elbo[-1], abs=1e-7)
    assert torch.allclose(field.concentration, lam, atol=1e-4)


# ---- the online form ----


def test_one_minibatch_of_all_with_a_whole_step_is_a_sweep():
    x, _, _ = made_up(N=60)
    one, other = MeanField(x, 3, 0.2, 0.1, 0), MeanField(x, 3, 0.2, 0.1, 0)
    assert one.sweep() == pytest.approx(other.step(x, 1.0), rel=1e-12)
    assert torch.allclose(one.concentration, other.concentration)


def test_minibatches_scale_what_they_saw():
    x, _, _ = made_up(N=60)
    field = MeanField(x, 3, 0.2, 0.1, 0)
    field.step(x[:10], 1.0)
    assert (field.concentration - 0.1).sum().item() == pytest.approx(6 * x[:10].sum(), rel=1e-9)


@pytest.mark.parametrize("batch_size", [None, 200])
def test_topics_of_lda_are_found(batch_size):
    x, beta, theta = made_up(N=1000, K=5, V=60, tokens=80)
    best = variational_em(x, 5, eta=0.1, batch_size=batch_size, num_starts=4, num_epochs=30)
    assert matched_total_variation(best.topics, beta).mean() < 0.1
    found = best.proportions(x)[:, matched(best.topics, beta)]
    assert (found - theta).abs().mean() < 0.05


@pytest.mark.parametrize(("batch_size", "steps"), [(None, 1), (25, 3)])
def test_the_best_start_is_kept(batch_size, steps):
    """By the mean of its last pass: of two the first is best, of four the last."""
    x, _, _ = made_up(N=60)
    how = {"batch_size": batch_size, "num_epochs": 4}
    alone = [
        variational_em(x, 3, seed=seed, **how) for seed in (7, mix(7, 1), mix(7, 2), mix(7, 3))
    ]
    reached = [sum(found.elbo[-steps:]) for found in alone]
    for num_starts in (1, 2, 4):
        found = variational_em(x, 3, seed=7, num_starts=num_starts, **how)
        best = alone[max(range(num_starts), key=reached.__getitem__)]
        assert torch.equal(found.concentration, best.concentration)
        assert found.elbo == best.elbo
    assert reached[3] == max(reached)
    assert reached[0] > reached[1]


def test_order_and_new_documents_change_nothing():
    x, _, _ = made_up(N=120)
    found = variational_em(x, 4, batch_size=None, num_epochs=5)
    fields = [MeanField(rows, 4, 0.1, 0.3, 0) for rows in (x, x[np.random.permutation(120)])]
    fields[1].concentration = fields[0].concentration  # which follows from the first documents
    for _ in range(5):
        assert fields[0].sweep() == pytest.approx(fields[1].sweep(), rel=1e-10)
    assert torch.allclose(fields[0].concentration, fields[1].concentration, rtol=1e-8)
    alone = torch.cat([found.proportions(x[[n]]) for n in range(5)])
    assert torch.allclose(found.proportions(x)[:5], alone, atol=2e-3)  # each stops by itself
    assert torch.allclose(found.word_probs(alone).sum(-1), torch.ones(5))


def test_a_corpus_is_never_in_memory_as_a_whole():
    """What is allocated for 40,000 documents is less than the 8 bytes of each of their entries."""
    x = csr_array(
        (np.ones(40_000 * 50, np.int32), np.tile(np.arange(50), 40_000), np.arange(40_001) * 50),
        shape=(40_000, 50),
    )  # fmt: skip
    tracemalloc.start()
    try:
        field = MeanField(x, 2, 0.1, 0.3, 0)
        field.step(x[:100], 0.5)
        word_shares(x)
        assert tracemalloc.get_traced_memory()[1] < 0.5 * 8 * x.nnz
    finally:
        tracemalloc.stop()


def test_documents_beside_do_not_matter():
    # Blocks are of documents of about equal length: long and short ones, soon done and late.
    x, _, _ = made_up(N=200, tokens=30)
    fit = variational_em(x, 4, num_epochs=5)
    together = fit.posterior(x)
    for n in range(0, 200, 20):
        torch.testing.assert_close(fit.posterior(x[[n]]), together[[n]], rtol=1e-10, atol=1e-10)
    again = fit.bound(x)
    assert torch.allclose(fit.bound(x[[7]]), again[[7]], rtol=1e-10)


def test_empty_documents_have_the_priors_mean():
    x = csr_array(np.vstack([made_up(N=30)[0].toarray(), np.zeros((2, 40), int)]))
    found = variational_em(x, 3, batch_size=None, learn_alpha=True)
    expected = found.alpha / found.alpha.sum()
    assert torch.allclose(found.proportions(x)[-2:], expected.expand(2, 3))


def test_runs_repeat():
    x, _, _ = made_up(N=100)
    one, two = (variational_em(x, 3, batch_size=30, num_epochs=2, seed=4) for _ in range(2))
    assert torch.equal(one.concentration, two.concentration)
    assert one.elbo == two.elbo


# ---- bad input ----


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda x: x.astype(float) * -1.0, {}, "'counts' has -"),
        (lambda x: x * 0.5, {}, "document 0: counts are 0, 1, 2"),
        (lambda x: x * np.nan, {}, "'counts' has nan"),
        (lambda x: x[:3], {}, "only 3 documents"),
        (lambda x: x[:, :0], {}, "'counts' is empty"),
        (lambda x: x.toarray(), {}, "should be a sparse matrix"),
        (lambda x: x, {"alpha": 0.0}, "'alpha' should be above 0"),
        (lambda x: x, {"eta": float("inf")}, "'eta' should be above 0"),
        (lambda x: x, {"kappa": 0.5}, "'kappa' should be above 0.5"),
        (lambda x: x, {"tau0": -1.0}, "'tau0' should be at least 0"),
        (lambda x: x, {"num_topics": 0}, "'num_topics' should be at least 1"),
        (lambda x: x, {"batch_size": 0}, "'batch_size' should be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(change, options, sentence):
    x, _, _ = made_up(N=20)
    with pytest.raises(ValueError, match=sentence):
        variational_em(change(x), **({"num_topics": 4} | options))


def test_other_vocabularies_are_refused():
    x, _, _ = made_up(N=20)
    found = variational_em(x, 2)
    with pytest.raises(ValueError, match="has 39 words, but the topics have 40"):
        found.proportions(x[:, 1:])
