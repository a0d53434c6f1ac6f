"""Topic models with Gaussian latents: densities by hand, batch normalisation, topics that stay apart.

Shapes: N documents, V words, K topics, P particles.
"""

from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy.sparse import csr_array
from test_datasets import one_sentence
from torch import Tensor
from zoo_topics import corpus, matched, matched_total_variation

import pplvm
from pplvm import traces
from pplvm.guides import neural_lda_mean_field as updates
from pplvm.guides.lda import LDAGuide
from pplvm.guides.neural_lda import NeuralLDAGuide
from pplvm.guides.neural_lda_mean_field import NeuralLDAMeanField
from pplvm.models.bags import BatchNorm
from pplvm.models.lda import LDA
from pplvm.models.neural_lda import LIKELIHOODS, NeuralLDA
from pplvm.objectives import elbo, iwae
from pplvm.topics import FittedTopics

N, V, K = 6, 7, 3


def build(likelihood: str = "mixture", **options) -> tuple[NeuralLDA, NeuralLDAGuide, Tensor]:
    """Returns a model and a guide in which no parameter is as it starts, and counts."""
    guide = NeuralLDAGuide(V, K, (5, 4), alpha=options.get("alpha"))
    pair = NeuralLDA(V, K, likelihood=likelihood, **options), guide
    with torch.no_grad():
        for part in pair:
            for p in part.parameters():
                p.add_(0.3 * torch.randn_like(p))
    x = torch.poisson(torch.full((N, V), 1.5))
    x[0] = 0.0  # a document without tokens
    return (*pair, x)


def probabilities(model: NeuralLDA, h: Tensor) -> Tensor:
    """Probabilities (N, V) of words by hand, topic by topic; those of a product are of all h."""
    theta, total = h.softmax(-1), 0.0
    W = model.W if hasattr(model, "W") else torch.einsum("ke,ve->kv", model.A, model.R)
    if model.likelihood == "mixture":
        topics = (10.0 * W if hasattr(model, "W") else W).softmax(-1)
        return sum(theta[:, k, None] * topics[k] for k in range(K))
    if model.likelihood == "product":
        for k in range(K):
            total = total + theta[:, k, None] * W[k]
        mean, variance = total.mean(0), total.var(0, correction=0)
        logits = model.norm.scale * (total - mean) / (variance + 1e-5).sqrt() + model.norm.bias
        return logits.softmax(-1)
    centred = h - h.mean(-1, keepdim=True)
    return (torch.einsum("nk,kv->nv", centred, W) + model.b).softmax(-1)


# ---- densities ----


@pytest.mark.parametrize("embedding_dim", [None, 2])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_densities_are_those_by_hand(likelihood, embedding_dim):
    model, _, x = build(likelihood, alpha=0.4, embedding_dim=embedding_dim)
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    h = trace.nodes["h"]["value"]
    orders = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    want = (x * probabilities(model, h).log()).sum(-1) + orders
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], want)
    scale = ((1 - 1 / K) / 0.4) ** 0.5
    prior = torch.distributions.Normal(0.0, scale).log_prob(h).sum(-1)
    torch.testing.assert_close(trace.nodes["h"]["log_prob"], prior)


def test_the_prior_is_the_laplace_approximation():
    """Against Hessian and gradient of the Dirichlet in the basis of the softmax, h summing to 0."""
    alpha = 0.7
    model = NeuralLDA(V, K, alpha=alpha)

    def log_density(h: Tensor) -> Tensor:  # of the Dirichlet, its Jacobian included
        return (alpha * h.log_softmax(-1)).sum()

    h = torch.zeros(K)
    assert torch.autograd.functional.jacobian(log_density, h).abs().max() < 1e-12
    precision = -torch.autograd.functional.hessian(log_density, h)
    marginal = torch.linalg.pinv(precision, hermitian=True, atol=1e-9).diagonal()
    torch.testing.assert_close(model.scale.square(), marginal)
    a = torch.full((K,), alpha)  # the formula of Srivastava & Sutton
    torch.testing.assert_close(marginal, (1 - 2 / K) / a + (1 / a).sum() / K**2)
    assert torch.equal(NeuralLDA(V, K).scale, torch.ones(K))


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_guides_are_gaussian_in_units_of_the_prior(alpha):
    model, guide, x = build(alpha=alpha)
    trace = poutine.trace(guide).get_trace(x)
    first, _, second, _, _, last, _ = guide.encoder.layers
    softplus = torch.nn.functional.softplus
    a = softplus(second(softplus(first((1 + x).log()))))
    a = last(a)
    a = (a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt() + guide.encoder.layers[-1].bias
    fn = trace.nodes["h"]["fn"].base_dist
    torch.testing.assert_close(fn.loc, model.scale * a[:, :K])
    torch.testing.assert_close(fn.scale.square().log(), model.scale.square().log() + a[:, K:])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_particles_are_as_many_runs(likelihood):
    """In training too, where documents are normalised within each particle."""
    model, guide, x = build(likelihood)
    traces.check_particles(model, guide, x)
    fit = pplvm.fit(model, guide, x, objective=iwae, num_steps=2)
    assert len(fit.history.bound) == 2


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_reach_every_parameter(likelihood):
    for options in ({}, {"embedding_dim": 2}):
        model, guide, x = build(likelihood, **options)
        elbo(model, guide, x).loss.backward()
        for program in (model, guide):
            for name, p in program.named_parameters():
                assert p.grad is not None, name
                assert p.grad.isfinite().all(), name
                assert p.grad.abs().max() > 0, name


def test_topics_are_words_of_documents_of_one_topic():
    for likelihood in LIKELIHOODS:
        model, _, _ = build(likelihood)
        model.eval()
        torch.testing.assert_close(model.topics().sum(-1), torch.ones(K))
        if likelihood == "mixture":
            for k in range(K):
                one = torch.eye(K)[k : k + 1]
                torch.testing.assert_close(model.word_probs(one)[0], model.topics()[k])
    model, _, _ = build("linear")
    h = torch.randn(4, K)
    torch.testing.assert_close(model.word_probs(h.softmax(-1)), probabilities(model, h))
    torch.testing.assert_close(model.topics(), probabilities(model, torch.eye(K)))
    assert model.word_probs(torch.eye(K)).isfinite().all()  # shares of 0 are no trouble


def test_topics_of_products_are_relative_to_the_average_document():
    model, _, _ = build("product")
    logits = model.word_logits(
        torch.randn(500, K).softmax(-1)
    )  # of one minibatch, all of the average
    model.norm.momentum = 1.0
    model.word_logits(torch.randn(500, K).softmax(-1))
    average = logits.mean(0).softmax(-1)  # a geometric mean over documents
    model.eval()
    p = model.word_probs(torch.eye(K)).square() / average
    torch.testing.assert_close(model.topics(), p / p.sum(-1, keepdim=True))


def test_dreams_have_the_totals_of_the_data():
    for likelihood in LIKELIHOODS:
        model, _, x = build(likelihood)
        assert poutine.trace(model)(x) is x
        assert torch.equal(poutine.uncondition(model)(x).sum(-1), x.sum(-1))


# ---- Gaussians found by updates ----


def settled(likelihood: str, monkeypatch, **options) -> tuple[NeuralLDA, Tensor, Tensor, Tensor]:
    """Returns a model, counts, and the means and variances of a thousand updates."""
    model, _, x = build(likelihood, learn_prior=True, alpha=0.4, **options)
    monkeypatch.setattr(updates, "_MANY", 1000)
    m, s = NeuralLDAMeanField(model).eval().gaussian(x)
    return model, x, m.requires_grad_(), s.square().requires_grad_()


def log_prior(model: NeuralLDA, h: Tensor) -> Tensor:
    mu, C = model.prior()
    return torch.distributions.MultivariateNormal(mu, scale_tril=C).log_prob(h)


@pytest.mark.parametrize("embedding_dim", [None, 2])
def test_updates_of_a_mixture_end_where_their_bound_is_flat(embedding_dim, monkeypatch):
    """The bound of Blei & Lafferty (2007, equation 7 on), its shares of tokens at their best."""
    model, x, m, s2 = settled("mixture", monkeypatch, embedding_dim=embedding_dim)
    mu, C = model.prior()
    q = torch.distributions.MultivariateNormal(m, s2.diag_embed())
    prior = torch.distributions.MultivariateNormal(mu.expand_as(m), scale_tril=C.expand(N, K, K))
    words = (x * (m.exp() @ model.topics()).log()).sum(-1)
    bound = words - x.sum(-1) * (m + s2 / 2).logsumexp(-1)
    bound = bound - torch.distributions.kl_divergence(q, prior)
    slopes = torch.autograd.grad(bound.sum(), (m, s2))
    for slope in slopes:
        torch.testing.assert_close(slope, torch.zeros(N, K), atol=1e-6, rtol=0)


def test_updates_of_the_linear_one_end_at_the_laplace_approximation(monkeypatch):
    model, x, m, s2 = settled("linear", monkeypatch)

    def log_joint(h: Tensor, row: int) -> Tensor:
        return (x[row] * model.word_logits(h.softmax(-1)).log_softmax(-1)).sum() + log_prior(
            model, h
        )

    for row in range(N):
        h = m[row].detach()
        at = partial(log_joint, row=row)
        slope = torch.autograd.functional.jacobian(at, h)
        curve = torch.autograd.functional.hessian(at, h)
        torch.testing.assert_close(slope, torch.zeros(K), atol=1e-6, rtol=0)
        torch.testing.assert_close(1 / s2[row], -curve.diagonal())


@pytest.mark.parametrize("likelihood", ["mixture", "linear"])
def test_the_bound_of_updates_is_near_the_evidence(likelihood, monkeypatch):
    """Which 200,000 draws of the prior know to 0.01 nats; the ELBO has 20,000, so to 0.01 as well.

    The gap is what the formulas and a Gaussian without correlations cost: up to 0.75 nats of a mixture
    and 0.5 of the linear one, and next to nothing of the document without words.
    """
    model, x, m, s2 = settled(likelihood, monkeypatch)
    mu, C = model.prior()
    with torch.no_grad():
        h = mu + torch.randn(200_000, K) @ C.T
        log_p = model.word_logits(h.softmax(-1)).log_softmax(-1) @ x.T
        evidence = log_p.logsumexp(0) - np.log(len(h))
        h = m + s2.sqrt() * torch.randn(20_000, N, K)
        log_p = (x * model.word_logits(h.softmax(-1)).log_softmax(-1)).sum(-1)
        q = torch.distributions.Normal(m, s2.sqrt()).log_prob(h).sum(-1)
        gap = evidence - (log_p + log_prior(model, h) - q).mean(0)
    assert (gap > -0.05).all()
    assert (gap < 1.0).all()


def test_learned_priors_are_gaussian():
    model, _, x = build(alpha=0.4, learn_prior=True)
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    h, (mu, C) = trace.nodes["h"]["value"], model.prior()
    covariance, off = C @ C.T, h - mu
    want = (
        -0.5 * (off @ covariance.inverse() * off).sum(-1) - 0.5 * (2 * np.pi * covariance).logdet()
    )
    torch.testing.assert_close(trace.nodes["h"]["log_prob"], want)
    fresh = NeuralLDA(V, K, alpha=0.4, learn_prior=True)
    torch.testing.assert_close(fresh.prior()[1], fresh.scale.diag())
    draws = (mu + torch.randn(100_000, K) @ C.T).softmax(-1)  # means to 0.0015 at most
    torch.testing.assert_close(model.mean_proportions(), draws.mean(0), atol=0.01, rtol=0)


def test_updates_have_no_parameters_and_learn_the_storys():
    model, _, x = build(alpha=0.4, learn_prior=True)
    fit = pplvm.fit(model, NeuralLDAMeanField(model), x, num_steps=2, lr=0.1, compile="off")
    assert fit.guide.model is fit.model
    for (name, before), after in zip(model.named_parameters(), fit.model.parameters(), strict=True):
        if name == "below":
            before, after = before.tril(-1), after.tril(-1)
        assert not torch.equal(before, after), name


def test_words_of_no_topic_are_no_trouble():
    """Neither where a document is without such a word, nor where it has one."""
    model, _, x = build()
    with torch.no_grad():
        model.W[:, 0] = -100.0  # a probability that rounds to 0
    m, s = NeuralLDAMeanField(model).gaussian(torch.cat([x, 0 * x]))
    assert m.isfinite().all()
    assert s.isfinite().all()


def test_products_have_no_updates():
    with pytest.raises(ValueError, match="'model' has the likelihood 'product'") as info:
        NeuralLDAMeanField(build("product")[0])
    one_sentence(info)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_words_start_as_common_as_they_are(likelihood):
    model, _, x = build(likelihood)
    model.start_near(x)
    common = (x.sum(0) + 0.5) / (x.sum(0) + 0.5).sum()
    if likelihood == "mixture":
        own = x[:K] / x[:K].sum(-1, keepdim=True).clamp(min=1)  # the first has no tokens
        want = 0.97 * common + 0.03 * own
        torch.testing.assert_close(model.topics(), want / want.sum(-1, keepdim=True))
    else:
        bias = model.b if likelihood == "linear" else model.norm.bias
        torch.testing.assert_close(bias.softmax(-1), common)
    with pytest.raises(ValueError, match="'x' has 2 documents: give at least") as info:
        model.start_near(x[:2])
    one_sentence(info)


# ---- batch normalisation and dropout ----


@pytest.mark.parametrize("scaled", [False, True])
def test_batch_normalisation_is_that_of_torch(scaled):
    ours, theirs = BatchNorm(V, scaled=scaled), torch.nn.BatchNorm1d(V)
    assert hasattr(ours, "scale") == scaled
    with torch.no_grad():
        theirs.bias.copy_(ours.bias.normal_())
        if scaled:
            theirs.weight.copy_(ours.scale.normal_())
    a = torch.randn(40, V) * 3 + 1
    for _ in range(3):
        torch.testing.assert_close(ours(a), theirs(a))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    # Theirs divides by N - 1 in what it keeps.
    kept = 1 - 0.9**3
    want = (theirs.running_var - (1 - kept)) * 39 / 40 + (1 - kept)
    torch.testing.assert_close(ours.variance, want)
    ours.eval(), theirs.eval()
    theirs.running_var.copy_(ours.variance)
    torch.testing.assert_close(ours(a), theirs(a))


def test_batch_normalisation_keeps_particles_apart():
    norm = BatchNorm(V)
    a = torch.randn(3, 40, V)
    torch.testing.assert_close(norm(a), torch.stack([norm(row) for row in a]))
    fresh = BatchNorm(V)
    fresh(a)
    torch.testing.assert_close(fresh.mean, 0.1 * a.mean((0, 1)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_trained_documents_are_alone(likelihood):
    model, guide, x = build(likelihood, dropout=0.5)
    fit = pplvm.fit(model, guide, x, num_steps=3)
    found = FittedTopics(fit)
    whole = found.proportions(csr_array(x.numpy()))
    for row in range(N):
        lone = found.proportions(csr_array(x[row : row + 1].numpy()))
        torch.testing.assert_close(lone, whole[row : row + 1])
    torch.testing.assert_close(whole.sum(-1), torch.ones(N))
    torch.testing.assert_close(found.word_probs(whole), found.word_probs(whole))
    probs = torch.cat([found.word_probs(row[None]) for row in whole])
    torch.testing.assert_close(found.word_probs(whole), probs)


def test_documents_without_words_have_the_proportions_of_the_prior():
    x = torch.randint(0, 3, (N, V)).double()
    x[[1, 4]] = 0
    lda = LDA(V, K, alpha=0.5, learn_alpha=True)
    for model, guide in (
        (NeuralLDA(V, K), NeuralLDAGuide(V, K, (8,))),
        (lda, LDAGuide(V, K, (8,))),
    ):
        fit = pplvm.fit(model, guide, x, num_steps=20, lr=0.1)
        theta = FittedTopics(fit, batch_size=3).proportions(csr_array(x.numpy()))
        alpha = fit.model.log_alpha.exp().detach() if model is lda else torch.ones(K)
        torch.testing.assert_close(theta[[1, 4]], (alpha / alpha.sum()).expand(2, K))
        torch.testing.assert_close(theta[0], fit.guide.proportions(x)[0].detach())
        assert not torch.allclose(fit.guide.proportions(x)[1], theta[1], atol=1e-3)


def test_dropout_leaves_topics_out_in_training_alone():
    model, _, _ = build("product", dropout=0.5)
    theta = torch.full((50, K), 1 / K)
    assert not torch.allclose(model.word_logits(theta), model.word_logits(theta))
    model.eval()
    assert torch.equal(model.word_logits(theta), model.word_logits(theta))


def test_running_averages_are_saved(tmp_path):
    model, guide, x = build("product")
    fit = pplvm.fit(model, guide, x, num_steps=5)
    fit.save(tmp_path / "fit.safetensors")
    again = pplvm.load(tmp_path / "fit.safetensors", *build("product")[:2], x)
    counts = csr_array(x.numpy())
    both = [FittedTopics(f) for f in (fit, again)]
    torch.testing.assert_close(both[0].topics, both[1].topics)
    torch.testing.assert_close(both[0].proportions(counts), both[1].proportions(counts))
    assert not torch.equal(fit.model.norm.mean, torch.zeros(V))


@pytest.mark.slow
def test_compiled_steps_keep_running_averages():
    model, guide, x = build("product")
    fits = [
        pplvm.fit(model, guide, x, num_steps=30, batch_size=3, compile=how)
        for how in ("off", "graph")
    ]
    assert fits[1].settings["compile"].startswith("graph")
    torch.testing.assert_close(fits[0].model.norm.mean, fits[1].model.norm.mean)
    torch.testing.assert_close(FittedTopics(fits[0]).topics, FittedTopics(fits[1]).topics)


# ---- what is refused ----


def test_options_that_cannot_be_are_refused():
    for options, message in (
        ({"num_topics": 1}, "'num_topics' is 1"),
        ({"likelihood": "sum"}, "'likelihood' should be one of"),
        ({"alpha": 0.0}, "'alpha' is 0.0"),
    ):
        with pytest.raises(ValueError, match=message) as info:
            NeuralLDA(V, **options)
        one_sentence(info)


def test_what_are_no_counts_is_refused():
    model, guide, x = build()
    x[2, 3] = 0.5
    with pytest.raises(ValueError, match=r"'x' is 0\.5 in row 2, column 3: counts are") as info:
        pplvm.fit(model, guide, x, num_steps=1)
    one_sentence(info)
    with pytest.raises(ValueError, match="'x' has shape") as info:
        guide.check_data(x[:, 1:])
    one_sentence(info)


def test_fits_of_other_stories_have_no_topics():
    def model(x: Tensor) -> Tensor:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            return pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'fit' is of NoneType") as info:
        FittedTopics(pplvm.fit(model, None, torch.randn(5), num_steps=2))
    one_sentence(info)


# ---- topics ----


def npmi(topics: Tensor, x: Tensor, num_top: int = 8) -> float:
    """The mean over topics and pairs of their top words, by documents that have both."""
    has = (x > 0).double()
    together = has.T @ has / len(x)
    alone = together.diagonal()
    scores = (together / alone / alone[:, None]).log() / -together.clamp(max=0.999).log()
    scores = torch.where(together > 0, scores, -1.0)
    pairs = [scores[row][:, row] for row in topics.topk(num_top).indices]
    off = ~torch.eye(num_top, dtype=torch.bool)
    return torch.stack([pair[off].mean() for pair in pairs]).mean().item()


FITS = {  # options, learning rates and epochs
    "mixture": ({}, 0.01, 20),
    "mixture, standard": ({"alpha": None}, 0.01, 20),
    "mixture, embeddings": ({"embedding_dim": 20}, 0.02, 50),
    "mixture, updates": ({"learn_prior": True}, 0.02, 20),
    "product": ({"likelihood": "product"}, 0.02, 20),
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.slow
def test_topics_are_found(name):
    """One corpus and one seed: no false alarm. Those of a product are no mixture's: told by NPMI."""
    torch.set_default_dtype(torch.float32)
    (options, lr, epochs), (x, beta, theta) = FITS[name], corpus()
    model = NeuralLDA(x.shape[1], 5, **{"alpha": 0.2} | options)
    guide = NeuralLDAGuide(x.shape[1], 5, (64,))
    if name.endswith("updates"):
        model.start_near(x)
        guide = NeuralLDAMeanField(model)
    fit = pplvm.fit(model, guide, x, batch_size=100, num_epochs=epochs, compile="off", lr=lr)
    found = FittedTopics(fit, batch_size=300)
    counts = csr_array(x.numpy().astype(np.int32))
    if name.startswith("mixture"):
        assert (matched_total_variation(found.topics, beta) < 0.1).all()
        got = found.proportions(counts)[:, matched(found.topics, beta)]
        assert 0.5 * (got - theta).abs().sum(-1).mean() < 0.2
    apart = 0.5 * torch.cdist(found.topics, found.topics, p=1) + torch.eye(5)
    assert apart.min() > 0.4
    assert npmi(found.topics, x) > npmi(beta, x) - 0.05
