"""Rationales: densities against all masks by hand, what must not matter, what is found."""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from test_datasets import one_sentence
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import pplvm
from pplvm import traces
from pplvm.datasets import small_reviews
from pplvm.diagnostics_rationale import rationale_summary
from pplvm.guides.rationale import RationaleGuide
from pplvm.models.rationale import Classifier, Rationale
from pplvm.objectives import reweighted_wake_sleep

N, T, V, C, E, H = 4, 5, 9, 3, 4, 6
LENGTHS = torch.tensor([5, 1, 3, 2])
PRIOR = 0.3


def perturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.7 * torch.randn_like(p))
    return module


def model_of(**options) -> Rationale:
    return perturbed(Rationale(V, C, E, H, prior=PRIOR, **options))


def guide_of() -> RationaleGuide:
    return perturbed(RationaleGuide(V, E, H))


def data_of() -> tuple[Tensor, Tensor, Tensor]:
    """y, x, lengths; beyond the end of a sentence are words of which none may be read."""
    return torch.randint(C, (N,)), torch.randint(1, V, (N, T)), LENGTHS


def masks(length: int) -> Tensor:
    """All masks of so many words, (2^T, T)."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=length)))


# ---- densities by hand, of one sentence (T,) without padding ----


def log_likelihood(model, y: Tensor, words: Tensor, z: Tensor) -> Tensor:
    embedding, (first, _, last) = model.reader.embedding.weight, model.reader.classify
    read = sum(z[i] * embedding[words[i]] for i in range(len(words))) / max(
        1.0, float(z.detach().sum())
    )
    logits = last.weight @ (first.weight @ read + first.bias).tanh() + last.bias
    return logits[y] - logits.exp().sum().log()


def log_joint(model, y: Tensor, words: Tensor, z: Tensor) -> Tensor:
    log_prior = (z * math.log(PRIOR) + (1 - z) * math.log(1 - PRIOR)).sum()
    return log_prior + log_likelihood(model, y, words, z)


def select_logits(guide, words: Tensor) -> Tensor:
    e = guide.embedding.weight[words]  # (T, E)
    back = guide.back(e.flip(0))[0].flip(0)
    return torch.cat((guide.there(e)[0], back), -1) @ guide.select.weight[0] + guide.select.bias


def log_q(guide, words: Tensor, z: Tensor) -> Tensor:
    logits = select_logits(guide, words)
    return (z * logsigmoid(logits) + (1 - z) * logsigmoid(-logits)).sum()


def evidence(model, y: Tensor, words: Tensor) -> Tensor:
    return torch.stack([log_joint(model, y, words, z) for z in masks(len(words))]).logsumexp(0)


# ---- the story and its guide ----


def test_densities_are_those_written_by_hand():
    model, guide, (y, x, lengths) = model_of(), guide_of(), data_of()
    z = torch.bernoulli(torch.full((N, T), 0.5))
    log_p = traces.log_joint(model, {"z": z}, y, x, lengths, per_datum=True)
    found = traces.log_joint(guide, {"z": z}, y, x, lengths, per_datum=True)
    for n, L in enumerate(lengths):
        torch.testing.assert_close(log_p[n], log_joint(model, y[n], x[n, :L], z[n, :L]))
        torch.testing.assert_close(found[n], log_q(guide, x[n, :L], z[n, :L]))


def test_all_masks_add_up_to_the_evidence():
    model, guide = model_of(), guide_of()
    y, x, lengths = torch.tensor([1]), torch.tensor([[3, 8, 1]]), torch.tensor([3])
    want = evidence(model, y[0], x[0])
    z = masks(3)  # (8, T)
    every = [part.expand(8, *part.shape[1:]) for part in (y, x, lengths)]
    log_p = traces.log_joint(model, {"z": z}, *every, per_datum=True)
    torch.testing.assert_close(log_p.logsumexp(0), want)
    log_q = traces.log_joint(guide, {"z": z}, *every, per_datum=True)
    torch.testing.assert_close(log_q.logsumexp(0), torch.tensor(0.0))
    found = pplvm.log_marginal(model, guide, y, x, lengths, num_particles=4000)
    assert abs(found.value[0] - want) < 4 * found.error[0]
    assert found.error[0] < 0.05


def test_the_divergence_counts_words_of_the_sentence_alone():
    model, guide, (y, x, lengths) = model_of(), guide_of(), data_of()
    z = traces.draw(model, guide, y, x, lengths, moving=False)
    _, kl = traces.elbo_terms(model, guide, z, y, x, lengths)
    for n, L in enumerate(lengths):
        q = select_logits(guide, x[n, :L]).sigmoid()
        want = q * (q / PRIOR).log() + (1 - q) * ((1 - q) / (1 - PRIOR)).log()
        torch.testing.assert_close(kl[0, n], want.sum())


@pytest.mark.parametrize("program", [model_of, guide_of])
def test_what_lies_beyond_the_end_does_not_matter(program):
    program, (y, x, lengths) = program(), data_of()
    z = torch.bernoulli(torch.full((N, T), 0.5))
    want = traces.log_joint(program, {"z": z}, y, x, lengths, per_datum=True)
    wide, other = torch.full((N, T + 3), -7), torch.ones(N, T + 3)
    inside = torch.arange(T) < lengths[:, None]
    wide[:, :T] = torch.where(inside, x, 10**6)
    other[:, :T] = torch.where(inside, z, 1 - z)
    found = traces.log_joint(program, {"z": other}, y, wide, lengths, per_datum=True)
    torch.testing.assert_close(found, want)
    order = torch.tensor([2, 0, 3, 1])
    again = traces.log_joint(
        program, {"z": z[order]}, y[order], x[order], lengths[order], per_datum=True
    )
    torch.testing.assert_close(again, want[order])


@pytest.mark.parametrize("program", [model_of, guide_of])
def test_nothing_is_drawn_beyond_the_end(program):
    y, x, lengths = data_of()
    with pyro.plate("particles", 200, dim=-2):
        z = poutine.trace(program()).get_trace(y, x, lengths).nodes["z"]["value"]
    inside = torch.arange(T) < lengths[:, None]
    assert z.shape == (200, N, T)
    assert (z[:, ~inside] == 0).all()
    assert ((z.mean(0) > 0) & (z.mean(0) < 1))[inside].all()


def test_gradients_come_from_words_of_the_sentence_alone():
    model, guide, (y, x, lengths) = model_of(), guide_of(), data_of()
    x[:] = torch.where(torch.arange(T) < lengths[:, None], x.clamp(max=V - 2), V - 1)
    z = torch.ones(N, T)
    for program, weight in ((model, model.reader.embedding), (guide, guide.embedding)):
        traces.log_joint(program, {"z": z}, y, x, lengths, per_datum=True).sum().backward()
        assert weight.weight.grad.isfinite().all()
        assert (weight.weight.grad[V - 1] == 0).all()
        assert weight.weight.grad[1 : V - 1].abs().sum() > 0


def test_particles_are_as_many_runs():
    P, model, guide, data = 5, model_of(), guide_of(), data_of()
    traces.check_particles(model, guide, *data)
    z = traces.draw(model, guide, *data, num_particles=P, moving=False)
    scores = traces.weigh(model, guide, z, *data)
    values = z.trace.nodes["z"]["value"]
    assert values.shape == (P, N, T)
    for program, found in zip((model, guide), scores, strict=True):
        for p in range(P):
            want = traces.log_joint(program, {"z": values[p]}, *data, per_datum=True)
            torch.testing.assert_close(found[p], want)


def test_a_rationale_may_be_soft():
    model, (y, x, lengths) = model_of(), data_of()
    z = torch.rand(N, T, requires_grad=True)
    with pyro.validation_enabled(False):
        log_p = traces.log_joint(model, {"z": z}, y, x, lengths, per_datum=True)
        sites = traces.replay(model, {"z": z.detach()[None].expand(3, -1, -1)}, y, x, lengths)
    for n, L in enumerate(lengths):
        torch.testing.assert_close(log_p[n], log_joint(model, y[n], x[n, :L], z[n, :L]))
    (slope,) = torch.autograd.grad(log_p.sum(), z)
    inside = torch.arange(T) < lengths[:, None]
    assert (slope[inside] != 0).all()
    assert (slope[~inside] == 0).all()
    assert sites["y"].value.shape == (3, N)


def test_a_rationale_without_words_says_the_same_of_all_sentences():
    model, (y, x, lengths) = model_of(), data_of()
    none = {"z": torch.zeros(2, N, T)}
    log_p = traces.pointwise(model, none, torch.full_like(y, 1), x, lengths)["y"]
    assert log_p.isfinite().all()
    torch.testing.assert_close(log_p, log_p[:1, :1].expand(2, N))


def test_the_classifier_reads_every_word():
    model, (y, x, lengths) = model_of(), data_of()
    full = Classifier(V, C, E, H)
    full.reader.load_state_dict(model.reader.state_dict())
    found = traces.log_joint(full, {}, y, x, lengths, per_datum=True)
    for n, L in enumerate(lengths):
        want = log_likelihood(model, y[n], x[n, :L], torch.ones(L))
        torch.testing.assert_close(found[n], want)


@pytest.mark.parametrize("program", [model_of, lambda: Classifier(V, C, E, H)])
def test_a_story_returns_its_classes_or_a_dream(program):
    program, (y, *rest) = program(), data_of()
    data = torch.zeros_like(y), *rest
    assert poutine.trace(program)(*data) is data[0]
    dreams = torch.stack([poutine.uncondition(program)(*data) for _ in range(50)])
    assert dreams.shape == (50, N)
    assert dreams.dtype == data[0].dtype
    assert dreams.unique().tolist() == [0, 1, 2]


# ---- inference ----


def test_fit_raises_the_bound():
    torch.manual_seed(0)
    model, guide = Rationale(V, C, E, H), RationaleGuide(V, E, H)
    x = torch.randint(1, V, (40, T))
    y, lengths = (x[:, 0] > 3).long() + (x[:, 0] > 6), torch.full((40,), T)
    objective = partial(reweighted_wake_sleep, num_particles=8)
    fit = pplvm.fit(model, guide, y, x, lengths, objective=objective, num_steps=60, lr=0.03)
    bound = fit.history.bound
    assert np.mean(bound[-10:]) > np.mean(bound[:10]) + 0.2


@pytest.mark.parametrize("phi", ["wake", "sleep", "both"])
def test_one_datum_and_sentences_of_one_word(phi):
    objective = partial(reweighted_wake_sleep, num_particles=4, phi=phi)
    for data in (
        (torch.tensor([2]), torch.tensor([[4]]), torch.tensor([1])),
        (torch.tensor([0, 2]), torch.tensor([[4], [5]]), torch.tensor([1, 1])),
        (torch.tensor([0, 2]), torch.tensor([[4, 0], [5, 0]]), torch.tensor([1, 1])),
    ):
        fit = pplvm.fit(model_of(), guide_of(), *data, objective=objective, num_steps=3)
        assert np.isfinite(fit.history.bound).all()
        assert fit.draws(num_draws=3)["z"].shape == (1, 3, *data[1].shape)
        assert fit.predict(num_draws=3)["y"].shape == (3, len(data[0]))


def test_rationales_are_the_words_that_tell(found):
    summary, reviews = found
    inside = torch.arange(reviews.x.shape[1]) < reviews.lengths[:, None]
    telling = summary.selected[inside & reviews.telling]
    rest = summary.selected[inside & ~reviews.telling]
    assert (telling[:, None] > rest).double().mean() > 0.8
    assert telling.mean() > rest.mean() + 0.05
    most = summary.selected.argmax(-1, keepdim=True)
    assert reviews.telling.gather(1, most).double().mean() > 0.85
    assert summary.accuracy > 0.9
    assert summary.full > 0.9
    assert summary.share == pytest.approx(0.3, abs=0.05)  # the prior's


@pytest.fixture(scope="module")
def found():
    """What is learned of the made-up reviews, on those held out."""
    torch.manual_seed(0)
    train, test = small_reviews("train"), small_reviews("test")
    size = len(train.vocabulary), 2, 20, 20
    model, guide = Rationale(*size), RationaleGuide(size[0], 20, 20)
    objective = partial(reweighted_wake_sleep, num_particles=8)
    options = {"batch_size": 100, "compile": "off", "lr": 0.02}
    fit = pplvm.fit(model, guide, *train.data, objective=objective, num_steps=300, **options)
    full = pplvm.fit(Classifier(*size), lambda *data: None, *train.data, num_steps=200, **options)
    return rationale_summary(fit.model, fit.guide, *test.data, full=full.model), test


# ---- arguments ----


@pytest.mark.parametrize("prior", [0, 1, -0.1, 1.5, math.nan])
def test_a_prior_is_a_share(prior):
    with pytest.raises(ValueError, match="'prior' should be above 0 and below 1") as info:
        Rationale(V, C, prior=prior)
    one_sentence(info)


def changed(**changes) -> tuple[Tensor, Tensor, Tensor]:
    parts = dict(zip(("y", "x", "lengths"), data_of(), strict=True))
    for name, change in changes.items():
        if isinstance(change, tuple):
            where, value = change
            parts[name] = parts[name].clone()
            parts[name][where] = value
        else:
            parts[name] = change(parts[name])
    return tuple(parts.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": ((0, 2), V)}, "'x' has word 9 in row 0, but there are words 1 to 8"),
        ({"x": ((2, 0), 0)}, "'x' has word 0 in row 2"),
        ({"x": ((3, 1), -1)}, "'x' has word -1 in row 3"),
        ({"x": lambda x: x.double()}, "'x' should be numbers of words"),
        ({"x": lambda x: x[..., None]}, "'x' should be numbers of words"),
        ({"y": (2, C)}, "'y' is 3 in row 2: give classes from 0 to 2"),
        ({"y": (1, -1)}, "'y' is -1 in row 1"),
        ({"y": lambda y: y.double()}, "'y' should be a class for each of 4 sentences"),
        ({"y": lambda y: y[:, None]}, "'y' should be a class for each of 4 sentences"),
        ({"lengths": (1, 0)}, "'lengths' is 0 in row 1: leave out"),
        ({"lengths": (2, T + 1)}, "'lengths' is 6 in row 2"),
    ],
)
def test_what_there_is_not_is_refused(changes, message):
    data = changed(**changes)
    programs = [(model_of(), guide_of()), (Classifier(V, C, E, H), lambda *data: None)]
    for model, guide in programs:
        with pytest.raises(ValueError, match=message) as info:
            pplvm.fit(model, guide, *data, objective=pplvm.objectives.elbo, num_steps=1)
        one_sentence(info)
    if "y" not in changes:  # which the guide does not look at
        with pytest.raises(ValueError, match=message):
            guide_of().check_data(*data)


def test_a_guide_of_fewer_words_is_refused():
    y, x, lengths = data_of()
    x[0, 0] = V - 1
    small = RationaleGuide(V - 1, E, H)
    objective = partial(reweighted_wake_sleep, num_particles=2)
    with pytest.raises(ValueError, match=r"'x' has word 8 in row 0, .* 'num_words'"):
        pplvm.fit(model_of(), small, y, x, lengths, objective=objective, num_steps=1)
