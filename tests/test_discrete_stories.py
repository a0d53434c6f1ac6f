"""Stories with discrete latents: against all their states by hand, and against other libraries."""

import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from sklearn import mixture
from zoo_discrete import (
    GUIDES,
    MIXTURES,
    MODELS,
    SERIES,
    D,
    K,
    M,
    N,
    T,
    brute_force,
    data_of,
    emission,
    enumerated,
    normal,
    story,
)

import pplvm
from pplvm import traces
from pplvm.guides.factorial_hmm import MeanField, StructuredMeanField
from pplvm.models.counts import Multinomial
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.gaussian_mixture import BayesianGaussianMixture
from pplvm.models.hmm import HMM
from pplvm.models.naive_bayes import NaiveBayes


def close(a, b, rtol=1e-9):
    np.testing.assert_allclose(torch.as_tensor(a).detach(), torch.as_tensor(b).detach(), rtol=rtol)


# ---- every story ----


@pytest.mark.parametrize("name", MODELS)
def test_a_story_returns_its_data_or_a_dream(name):
    model, data = story(name), data_of(name)
    assert poutine.trace(model)(*data) is data[0]
    dream = poutine.uncondition(model)(*data)
    assert dream.shape == data[0].shape
    assert dream.dtype == data[0].dtype
    assert dream.isfinite().all()
    assert not torch.equal(dream, data[0])
    if name in SERIES:
        beyond = torch.arange(T) >= data[1][:, None]
        assert (data[0] != 0)[beyond].any()
        assert (dream[beyond] == 0).all()
    if name == "multinomial_bayes":
        assert torch.equal(dream.sum(-1), data[0].sum(-1))


@pytest.mark.parametrize("name", MODELS)
def test_a_dream_is_as_probable_as_when_it_is_observed(name):
    model, data = story(name), data_of(name)
    dreamt = poutine.trace(poutine.uncondition(model)).get_trace(*data)
    x = dreamt.nodes["_RETURN"]["value"]
    observed = poutine.trace(poutine.replay(model, trace=dreamt)).get_trace(x, *data[1:])
    dreamt.compute_log_prob()
    observed.compute_log_prob()
    assert dreamt.nodes.keys() == observed.nodes.keys()
    for site in dreamt.stochastic_nodes:
        close(dreamt.nodes[site]["log_prob"], observed.nodes[site]["log_prob"])


@pytest.mark.parametrize("name", MODELS)
def test_particles_are_as_many_runs(name):
    P, model, data = 5, story(name), data_of(name)
    with pyro.plate("particles", P, dim=-2):
        together = poutine.trace(model).get_trace(*data)
    together.compute_log_prob()
    plates = {"particles", "data", "components"}
    values = {n: together.nodes[n]["value"] for n in set(together.stochastic_nodes) - plates}
    for p in range(P):
        row = {n: v[p] for n, v in values.items()}
        row |= {n: v[0] for n, v in row.items() if n == "pi"}  # (1, K) in no plate of ours
        alone = poutine.trace(poutine.condition(model, row)).get_trace(*data)
        alone.compute_log_prob()
        for site in (*values, *together.observation_nodes):
            want = alone.nodes[site]["log_prob"]
            close(together.nodes[site]["log_prob"][p].reshape(want.shape), want)


@pytest.mark.parametrize("name", MODELS)
def test_particles_do_not_meet_where_states_are_enumerated(name):
    P, model, data = 3, story(name), data_of(name)
    shared = [{} for _ in range(P)]
    if name == "bayesian_gaussian_mixture":
        draws = [poutine.trace(model).get_trace(*data).nodes for _ in range(P)]
        shared = [{n: nodes[n]["value"] for n in ("pi", "mu", "tau")} for nodes in draws]
    values = {n: torch.stack([row[n] for row in shared]) for n in shared[0]}
    values |= {n: v[:, None] for n, v in values.items() if n == "pi"}  # (P, 1, K)

    def together(*data):
        with pyro.plate("particles", P, dim=-2):
            return poutine.condition(model, values)(*data)

    want = sum(enumerated(poutine.condition(model, row), *data) for row in shared)
    close(enumerated(together, *data, depth=2), want)


@pytest.mark.parametrize("name", MIXTURES + SERIES)
def test_gradients_reach_every_parameter(name):
    model, data = story(name), data_of(name)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    loss.differentiable_loss(config_enumerate(model), lambda *data: None, *data).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
        assert p.grad.abs().max() > 1e-6, parameter


def test_counts_are_drawn_from_their_law():
    total, logits = torch.tensor([0, 3, 7]), torch.randn(3, D)
    x = Multinomial(total, logits=logits).sample((20_000,))  # (S, 3, D)
    assert (x.sum(-1) == total).all()
    close(x.mean(0), total[:, None] * logits.softmax(-1), rtol=0.1)


# ---- all states by hand ----


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_sums_over_their_states(name):
    model, (x,) = story(name), data_of(name)
    pi = model.log_pi.softmax(-1)
    joint = [pi[k].log() + emission(name, model, x, k) for k in range(K)]
    want = torch.stack(joint).logsumexp(0)  # (N,)
    close(enumerated(model, x), want.sum())
    for n in range(N):
        close(enumerated(model, x[n : n + 1]), want[n])


def test_bayesian_mixture_is_a_sum_over_its_states():
    hyper = {"concentration": 0.7, "mean": 0.4, "mean_precision": 0.3, "shape": 1.7, "rate": 0.6}
    model, (x,) = BayesianGaussianMixture(D, K, **hyper), data_of("bayesian_gaussian_mixture")
    pi = torch.tensor([0.2, 0.5, 0.3])
    mu, tau = torch.randn(K, D), torch.rand(K, D) + 0.3
    model_at = poutine.condition(model, {"pi": pi, "mu": mu, "tau": tau})
    a, b, kappa = 1.7, 0.6, 0.3
    prior = math.lgamma(K * 0.7) - K * math.lgamma(0.7) + ((0.7 - 1) * pi.log()).sum()
    gamma = a * math.log(b) - math.lgamma(a) + (a - 1) * tau.log() - b * tau
    prior = prior + gamma.sum() + normal(mu, torch.tensor(0.4), -0.5 * (kappa * tau).log()).sum()
    joint = [pi[k].log() + normal(x, mu[k], -0.5 * tau[k].log()) for k in range(K)]
    close(enumerated(model_at, x), prior + torch.stack(joint).logsumexp(0).sum())


@pytest.mark.parametrize("num_steps", [1, 2, T])
@pytest.mark.parametrize("name", SERIES)
def test_series_are_sums_over_their_paths(name, num_steps):
    model, (x, lengths) = story(name), data_of(name, num_steps=num_steps)
    if "factorial" in name:  # of which there are many
        x, lengths = x[:, :3], lengths.clamp(max=3)
    want = torch.stack(
        [brute_force(name, model, row[:n]) for row, n in zip(x, lengths, strict=True)]
    )
    for i, n in enumerate(lengths):
        close(enumerated(model, x[i : i + 1, :n], n[None]), want[i])
    close(enumerated(model, x, lengths), want.sum())


@pytest.mark.parametrize("name", SERIES)
def test_nothing_beyond_the_lengths_counts(name):
    model, (x, lengths) = story(name), data_of(name)
    want = enumerated(model, x, lengths)
    beyond = torch.arange(T) >= lengths[:, None]
    other = data_of(name)[0]
    assert not torch.equal(other, x)
    x = torch.where(beyond if x.ndim == 2 else beyond[..., None], other, x)
    close(enumerated(model, x, lengths), want)


def product(model: FactorialHMM) -> HMM:
    """Returns the HMM whose states are all combinations of the states of two chains."""
    same = HMM(K**M, D, "bernoulli" if model.log_s is None else "gaussian")

    def pairs(a, b):  # sums of rows over all combinations, the last of the second fastest
        return (a[:, None] + b[None]).flatten(0, 1)

    with torch.no_grad():
        first, second = model.log_A
        same.log_pi.copy_(pairs(*model.log_pi))
        same.log_A.copy_(torch.stack([pairs(i, j) for i in first for j in second]))
        same.W.copy_(pairs(*model.W))
        if model.log_s is not None:
            same.log_s.copy_(model.log_s.expand(K**M, D))
    return same


@pytest.mark.parametrize("name", ["factorial_hmm", "factorial_bernoulli_hmm"])
def test_chains_are_one_chain_of_their_combinations(name):
    model, (x, lengths) = story(name), data_of(name, num_data=5, num_steps=12)
    lengths = torch.tensor([12, 1, 7, 3, 9])
    close(enumerated(model, x, lengths), enumerated(product(model), x, lengths))


# ---- other libraries ----


def peer_of(name: str, model: HMM):
    """Returns hmmlearn's model with our parameters."""
    hmm = pytest.importorskip("hmmlearn.hmm")
    K, D = model.W.shape
    W = model.W.detach()
    if name == "categorical_hmm":
        peer = hmm.CategoricalHMM(K, n_features=D)
        peer.emissionprob_ = W.softmax(-1).numpy()
    elif name == "gaussian_hmm":
        peer = hmm.GaussianHMM(K, "diag")
        peer.n_features, peer.means_ = D, W.numpy()
        peer.covars_ = (2 * model.log_s).exp().detach().numpy()
    else:
        peer = hmm.PoissonHMM(K)
        peer.n_features, peer.lambdas_ = D, W.exp().numpy()
    peer.startprob_ = model.log_pi.softmax(-1).detach().numpy()
    peer.transmat_ = model.log_A.softmax(-1).detach().numpy()
    return peer


@pytest.mark.parametrize("name", ["categorical_hmm", "gaussian_hmm", "poisson_hmm"])
@pytest.mark.parametrize("seed", range(3))
def test_hmms_score_as_those_of_hmmlearn(name, seed):
    torch.manual_seed(seed)
    N, T, K, D = 7, 40, 5, 4
    model = HMM(K, D, name.removesuffix("_hmm"))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    lengths = torch.randint(1, T + 1, (N,)).sort(descending=True).values
    lengths[0] = T
    shape = (N, T) if name == "categorical_hmm" else (N, T, D)
    x = poutine.uncondition(model)(torch.zeros(shape), lengths)
    rows = [row[:n].reshape(n, -1) for row, n in zip(x, lengths, strict=True)]
    rows = torch.cat(rows).detach().numpy().astype(float if name == "gaussian_hmm" else int)
    want = peer_of(name, model).score(rows, lengths.tolist())
    close(enumerated(model, x, lengths), want)


def test_gaussian_mixture_scores_as_that_of_scikit_learn():
    model, x = story("gaussian_mixture"), 2 * torch.randn(500, D)
    variances = (2 * model.log_s).exp().detach().numpy()
    peer = mixture.GaussianMixture(K, covariance_type="diag")
    peer.weights_ = model.log_pi.softmax(-1).detach().numpy()
    peer.means_ = model.mu.detach().numpy()
    peer.covariances_, peer.precisions_cholesky_ = variances, variances**-0.5
    want = peer.score_samples(x.numpy())
    close(enumerated(model, x), want.sum())
    for n in range(5):
        close(enumerated(model, x[n : n + 1]), want[n])


# ---- guides ----


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_samples_what_its_model_does(name):
    model, guide, data = story(name), GUIDES[name](), data_of(name)
    p, q = (poutine.trace(program).get_trace(*data) for program in (model, guide))
    assert set(p.stochastic_nodes) == set(q.stochastic_nodes)
    assert "data" in {
        frame.name for n in q.stochastic_nodes for frame in q.nodes[n]["cond_indep_stack"]
    }
    for site in q.stochastic_nodes:
        assert p.nodes[site]["value"].shape == q.nodes[site]["value"].shape == (N,)
        masks = [trace.nodes[site]["mask"] for trace in (p, q)]
        assert masks[0] is masks[1] is None or torch.equal(*masks)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("exact", [True, False])
def test_gradients_of_an_elbo_reach_every_parameter(name, exact):
    model, guide, data = story(name), GUIDES[name](), data_of(name)
    if exact:
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        loss.differentiable_loss(model, config_enumerate(guide), *data).backward()
    else:
        loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
        loss.differentiable_loss(model, guide, *data).backward()
    for parameter, p in [*model.named_parameters(), *guide.named_parameters()]:
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
        assert p.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", GUIDES)
def test_an_elbo_is_below_the_evidence(name):
    model, guide, data = story(name), config_enumerate(GUIDES[name]()), data_of(name)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, *data)
    assert elbo < enumerated(model, *data)


def test_mean_field_is_exact_where_states_are_independent():
    """Each step forgets the one before, and the second chain is not seen."""
    model, (x, lengths) = story("factorial_hmm"), data_of("factorial_hmm")
    guide = MeanField(N, T, M, K)
    with torch.no_grad():
        model.log_A.copy_(model.log_pi[:, None].expand_as(model.log_A))
        model.W[1] = 0.0
        seen = torch.stack(
            [normal(x, model.W[0, k], model.log_s) for k in range(K)], -1
        )  # (N, T, K)
        guide.logits.copy_(model.log_pi)  # (N, T, M, K)
        guide.logits[:, :, 0] += seen
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(guide), x, lengths)
    close(elbo, enumerated(model, x, lengths))


def test_a_structured_guide_holds_what_coordinate_ascent_finds():
    model, (x, lengths) = story("factorial_hmm"), data_of("factorial_hmm")
    best = traces.Blocks(model, x, lengths, structured=True)
    best.start(torch.Generator().manual_seed(0))
    bounds = [best.sweep().item() for _ in range(200)]
    guide = StructuredMeanField(N, T, M, K)
    with torch.no_grad():
        for m, block in enumerate(best.blocks):
            guide.moves[m] = block.chain.moves[0][0, 0]
            own = torch.cat((block.chain.first[None], block.chain.later))
            guide.logits[:, :, m] = (own + best._seen(m)).movedim(0, 1)  # (N, T, K)
    found = pplvm.exact(guide, x, lengths)
    np.testing.assert_allclose(found.log_marginal, torch.zeros(N), atol=1e-12)
    for name, p in best.marginals().items():
        np.testing.assert_allclose(found.marginals[name], p.detach(), atol=1e-9)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(guide), x, lengths)
    assert elbo == pytest.approx(bounds[-1], rel=1e-9)


@pytest.mark.parametrize("kind", [MeanField, StructuredMeanField])
def test_mean_field_wants_the_data_it_was_made_for(kind):
    guide, (x, lengths) = kind(N, T, M, K), data_of("factorial_hmm")
    for data in ((x[:2], lengths[:2]), (x[:, :2], lengths.clamp(max=2))):
        with pytest.raises(
            ValueError, match=rf"'num_data' and 'num_steps' of {kind.__name__} are 4 and 4"
        ):
            guide(*data)


# ---- arguments ----


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            partial(NaiveBayes, D, K, "normal"),
            "'likelihood' should be 'bernoulli' or 'multinomial'",
        ),
        (partial(HMM, K, D, "normal"), "'emission' should be one of .*'poisson'"),
        (partial(FactorialHMM, M, K, D, "poisson"), "'emission' should be 'gaussian' or"),
    ],
)
def test_other_choices_are_refused(build, message):
    with pytest.raises(ValueError, match=message + ".*, got '(normal|poisson)'"):
        build()


@pytest.mark.parametrize("name", ["gaussian_hmm", "factorial_hmm", "neural_hmm"])
@pytest.mark.parametrize("lengths", [[9, 1, 1, 1], [-1, 1, 1, 1], [1.5, 1, 1, 1], [[1]] * 4])
def test_lengths_that_there_are_not_are_refused(name, lengths):
    model, (x, _) = story(name), data_of(name)
    lengths = torch.tensor(lengths)  # of four sequences
    with pytest.raises(ValueError, match="'lengths'"):
        pplvm.exact(model, x, lengths)


def test_an_empty_sequence_says_nothing():
    model, (x, lengths) = story("gaussian_hmm"), data_of("gaussian_hmm")
    empty = lengths.clone()
    empty[0] = 0
    truth = pplvm.exact(model, x, empty)
    assert truth.log_marginal[0] == 0.0
    assert torch.allclose(truth.marginals["z"][0], torch.full_like(truth.marginals["z"][0], 1 / K))
    assert torch.isfinite(truth.log_marginal).all()
