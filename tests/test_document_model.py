"""Documents with binary latents: densities by hand, all states listed, empty documents.

Shapes: N documents, V words, K latents, P particles.
"""

import itertools

import pyro
import pytest
import torch
from pyro import poutine
from test_datasets import one_sentence
from torch import Tensor
from torch.nn.functional import logsigmoid

import pplvm
from pplvm import traces
from pplvm.guides.document_model import DocumentModelGuide
from pplvm.models.counts import Multinomial
from pplvm.models.document_model import DocumentModel
from pplvm.objectives import reweighted_wake_sleep, wake_sleep

N, V, K = 6, 7, 3


def build(prior: float | None = None) -> tuple[DocumentModel, DocumentModelGuide, Tensor]:
    """Returns a model and a guide in which no parameter is as it starts, and counts."""
    pair = DocumentModel(V, K, prior), DocumentModelGuide(V, K, 4, 5)
    with torch.no_grad():
        for p in itertools.chain(*(part.parameters() for part in pair)):
            p.add_(0.5 * torch.randn_like(p))
    x = torch.poisson(torch.full((N, V), 1.5))
    x[0] = 0.0  # a document without tokens
    x[1, 1:], x[1, 0] = 0.0, 1.0  # a document of one
    return (*pair, x)


def bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    return (z * logsigmoid(logits) + (1 - z) * logsigmoid(-logits)).sum(-1)


def log_p(model: DocumentModel, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), token by token, and times the orders that they may come in."""
    logits = z @ model.words.weight.T + model.words.bias
    total = []
    for row, words, latents in zip(x, logits.log_softmax(-1), z, strict=True):
        tokens = torch.repeat_interleave(torch.arange(V), row.long())
        orders = torch.lgamma(torch.tensor(len(tokens) + 1.0)) - torch.lgamma(row + 1).sum()
        total.append(bernoulli(latents, model.prior) + words[tokens].sum() + orders)
    return torch.stack(total)


def log_q(guide: DocumentModelGuide, x: Tensor, z: Tensor) -> Tensor:
    first, _, last = guide.encoder
    total = []
    for row, latents in zip(x, z, strict=True):
        tokens = torch.repeat_interleave(torch.arange(V), row.long())
        h = guide.embeddings[tokens].mean(0) if len(tokens) else torch.zeros(4)
        logits = last.weight @ (first.weight @ h + first.bias).tanh() + last.bias
        total.append(bernoulli(latents, logits))
    return torch.stack(total)


def joint(trace: poutine.Trace) -> Tensor:
    """Returns the sum of the log-densities of all sites, (*)."""
    trace.compute_log_prob()
    names = {*trace.stochastic_nodes, *trace.observation_nodes} - {"data", "particles"}
    return sum(trace.nodes[name]["log_prob"] for name in names)


# ---- densities ----


@pytest.mark.parametrize("prior", [None, 0.5, 0.2])
def test_densities_are_those_by_hand(prior):
    model, guide, x = build(prior)
    for program, by_hand in ((model, log_p), (guide, log_q)):
        trace = poutine.trace(program).get_trace(x)
        z = trace.nodes["z"]["value"]
        assert z.shape == (N, K)
        torch.testing.assert_close(joint(trace), by_hand(program, x, z))


def test_log_marginals_are_sums_over_all_states():
    """By importance sampling from the guide; false alarm: 6 at 5 standard errors, 4e-6."""
    model, guide, x = build()
    states = torch.cartesian_prod(*[torch.arange(2.0)] * K).to(x)
    want = torch.stack([log_p(model, x, z.expand(N, -1)) for z in states]).logsumexp(0)
    found = pplvm.log_marginal(model, guide, x, num_particles=4000)
    assert ((found.value - want).abs() < 5 * found.error + 1e-6).all()


def test_an_empty_document_says_nothing():
    model, _, x = build()
    z = torch.bernoulli(torch.full((N, K), 0.5))
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"][0] == 0.0
    empty = torch.zeros(2, V)
    assert torch.equal(poutine.uncondition(model)(empty), empty)


def test_a_prior_may_be_given():
    fixed, learned = DocumentModel(V, K, prior=0.2), DocumentModel(V, K)
    assert torch.allclose(fixed.prior.sigmoid(), torch.tensor(0.2))
    assert torch.allclose(learned.prior.sigmoid(), torch.tensor(0.5))
    names = [{name for name, _ in model.named_parameters()} for model in (fixed, learned)]
    assert names[1] - names[0] == {"prior"}
    assert "prior" in fixed.state_dict()
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="'prior' is") as info:
            DocumentModel(V, K, prior=wrong)
        one_sentence(info)


def test_frequencies_are_where_it_starts():
    f = torch.arange(1.0, V + 1)
    model = DocumentModel(V, K, frequencies=f)
    torch.testing.assert_close(model.logits(torch.zeros(K)).softmax(-1), f / f.sum())
    z = torch.ones(K)
    want = model.words.weight.sum(-1) + f.log() - f.log().mean()
    torch.testing.assert_close(model.logits(z), want)
    again = DocumentModel(V, K, frequencies=torch.ones(V))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.logits(z), want)
    for wrong in (f[1:], f - 1.0, f * torch.nan):
        with pytest.raises(ValueError, match="'frequencies' should be") as info:
            DocumentModel(V, K, frequencies=wrong)
        one_sentence(info)


def test_particles_are_as_many_runs():
    model, guide, x = build()
    traces.check_particles(model, guide, x)
    P = 3
    with pyro.plate("particles", P, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
        both = joint(poutine.trace(poutine.replay(model, trace=trace)).get_trace(x))
    want = [log_p(model, x, z) for z in trace.nodes["z"]["value"]]
    torch.testing.assert_close(both, torch.stack(want))


def test_soft_latents_are_weighed_as_they_are():
    model, guide, x = build()
    soft = torch.rand(2, N, K)
    with pyro.validation_enabled(False), pyro.plate("particles", 2, dim=-2):
        for program, by_hand in ((model, log_p), (guide, log_q)):
            trace = poutine.trace(poutine.condition(program, {"z": soft})).get_trace(x)
            want = torch.stack([by_hand(program, x, z) for z in soft])
            torch.testing.assert_close(joint(trace), want)


@pytest.mark.parametrize("row", range(N))
def test_a_document_alone_is_as_it_is_among_others(row):
    model, guide, x = build()
    z = torch.bernoulli(torch.full((N, K), 0.5))
    for program in (model, guide):
        whole = joint(poutine.trace(poutine.condition(program, {"z": z})).get_trace(x))
        at = {"z": z[row : row + 1]}
        lone = joint(poutine.trace(poutine.condition(program, at)).get_trace(x[row : row + 1]))
        torch.testing.assert_close(lone, whole[row : row + 1])


def test_whole_numbers_are_counts_too():
    model, guide, x = build()
    for program in (model, guide):
        z = torch.zeros(N, K)
        same = [
            joint(poutine.trace(poutine.condition(program, {"z": z})).get_trace(counts))
            for counts in (x, x.long())
        ]
        torch.testing.assert_close(*same)


# ---- dreams and gradients ----


def test_dreams_follow_the_model():
    """False alarm: 7 words at 5 standard errors, 4e-6."""
    model, _, _ = build()
    S, n = 20_000, 3.0
    x = torch.zeros(S, V)
    x[:, 0] = n
    assert poutine.trace(model)(x) is x
    dream = poutine.uncondition(model)(x)
    assert (dream.sum(-1) == n).all()
    states = torch.cartesian_prod(*[torch.arange(2.0)] * K).to(x)
    weight = bernoulli(states, model.prior).exp()
    logits = states @ model.words.weight.T + model.words.bias
    want = n * weight @ logits.softmax(-1)
    error = dream.std(0) / S**0.5
    assert ((dream.mean(0) - want).abs() < 5 * error).all()


@pytest.mark.parametrize("objective", [wake_sleep, reweighted_wake_sleep])
def test_gradients_reach_every_parameter(objective):
    model, guide, x = build()
    objective(model, guide, x).loss.backward()
    for program in (model, guide):
        for parameter, p in program.named_parameters():
            assert p.grad is not None, parameter
            assert p.grad.isfinite().all(), parameter
            assert p.grad.abs().max() > 0, parameter


def test_learning_raises_the_bound():
    x = torch.zeros(30, V)
    x[::2, :3], x[1::2, 3:] = 4.0, 3.0
    fit = pplvm.fit(
        DocumentModel(V, K),
        DocumentModelGuide(V, K),
        x,
        objective=reweighted_wake_sleep,
        num_steps=100,
        lr=0.03,
    )
    bound = torch.tensor(fit.history.bound)
    assert bound[-10:].mean() > bound[:10].mean() + 1.0


@pytest.mark.parametrize(("wrong", "words"), [(-1.0, "counts 0, 1"), (0.5, "counts 0, 1")])
def test_what_is_no_count_is_refused(wrong, words):
    model, guide, x = build()
    x[2, 3] = wrong
    with pytest.raises(ValueError, match="site 'x' observes") as info:
        pplvm.fit(model, guide, x, objective=reweighted_wake_sleep, num_steps=1)
    one_sentence(info, words)


# ---- the multinomial that stories of counts share ----


def test_multinomials_take_either_parameter():
    """Up to a constant, and whatever the batch."""
    total, probs = torch.tensor([3.0, 5.0]), torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.5, 3.0]])
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 4.0]])
    by_probs = Multinomial(total, probs)
    by_logits = Multinomial(total, logits=probs.log() + 1.7)
    p = probs / probs.sum(-1, keepdim=True)
    rows = zip(total, p, x, strict=True)
    want = [torch.distributions.Multinomial(int(n), q).log_prob(row) for n, q, row in rows]
    for fn in (by_probs, by_logits, by_probs.expand((2,)), by_logits.expand((4, 2))):
        got = fn.log_prob(x)
        torch.testing.assert_close(got, torch.stack(want).expand(got.shape))
    assert by_probs.log_prob(torch.tensor([0.0, 2.0, 1.0]))[0] == -torch.inf
    draws = by_probs.expand((4, 2)).sample((50,))
    assert draws.shape == (50, 4, 2, 3)
    assert (draws.sum(-1) == total).all()
    assert (draws[..., 0, 2] == 0).all()
