"""Words spelt by a recurrent network: densities character by character, ends, padding, dreams.

Shapes: N words, T characters, V of the alphabet, K factors, P particles.
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
from pplvm.guides.latent_factor_words import LatentFactorWordsGuide
from pplvm.models.latent_factor_words import LatentFactorWords, Words
from pplvm.objectives import reweighted_wake_sleep, wake_sleep

N, T, V, K, E, H = 5, 4, 3, 2, 3, 4
LENGTHS = torch.tensor([4, 1, 3, 0, 2])


def build() -> tuple[LatentFactorWords, LatentFactorWordsGuide, Tensor, Tensor]:
    """Returns a model and a guide in which no parameter is as it starts, and words."""
    pair = LatentFactorWords(V, K, E, H), LatentFactorWordsGuide(V, K, E, H)
    with torch.no_grad():
        for p in itertools.chain(*(part.parameters() for part in pair)):
            p.add_(0.5 * torch.randn_like(p))
    x = torch.randint(1, V + 1, (N, T)) * (torch.arange(T) < LENGTHS[:, None])
    return (*pair, x, LENGTHS)


def bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    return (z * logsigmoid(logits) + (1 - z) * logsigmoid(-logits)).sum(-1)


def recur(gru: torch.nn.GRU, e: Tensor, h: Tensor) -> Tensor:
    """One step of a gated recurrent unit, as Cho et al. and torch's documentation have it."""
    r_i, u_i, n_i = (gru.weight_ih_l0 @ e + gru.bias_ih_l0).chunk(3)
    r_h, u_h, n_h = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
    u = (u_i + u_h).sigmoid()
    return (1 - u) * (n_i + (r_i + r_h).sigmoid() * n_h).tanh() + u * h


def log_word(model: LatentFactorWords, characters: list, z: Tensor, end: bool = True) -> Tensor:
    """log p(x | z) of one word, with its end or as the beginning of a word."""
    net = model.speller
    h, total, before = (net.start.weight @ z + net.start.bias).tanh(), torch.zeros(()), 0
    for character in [*characters, 0] if end else characters:
        h = recur(net.gru, net.embeddings.weight[before] + net.factors.weight @ z, h)
        total = total + (net.out.weight @ h + net.out.bias).log_softmax(-1)[character]
        before = character
    return total


def log_p(model: LatentFactorWords, x: Tensor, lengths: Tensor, z: Tensor) -> Tensor:
    words = [row[:n].tolist() for row, n in zip(x, lengths, strict=True)]
    spelt = [log_word(model, word, row) for word, row in zip(words, z, strict=True)]
    return bernoulli(z, model.prior) + torch.stack(spelt)


def log_q(guide: LatentFactorWordsGuide, x: Tensor, lengths: Tensor, z: Tensor) -> Tensor:
    means = []
    for row, n in zip(x, lengths, strict=True):
        both = []
        for gru, word in ((guide.onwards, row[:n]), (guide.backwards, row[:n].flip(0))):
            h, found = torch.zeros(H), [torch.zeros(H)]
            for character in word:
                h = recur(gru, guide.embeddings.weight[character], h)
                found.append(h)
            both.append(sum(found) / max(1, n))
        means.append(torch.cat(both))
    return bernoulli(z, torch.stack(means) @ guide.out.weight.T + guide.out.bias)


def joint(trace: poutine.Trace) -> Tensor:
    """Returns the sum of the log-densities of all sites, (*)."""
    trace.compute_log_prob()
    names = {*trace.stochastic_nodes, *trace.observation_nodes} - {"data", "particles"}
    return sum(trace.nodes[name]["log_prob"] for name in names)


def at(program, data: tuple[Tensor, ...], z: Tensor) -> Tensor:
    return joint(poutine.trace(poutine.condition(program, {"z": z})).get_trace(*data))


# ---- densities ----


def test_densities_are_those_by_hand():
    model, guide, *data = build()
    for program, by_hand in ((model, log_p), (guide, log_q)):
        trace = poutine.trace(program).get_trace(*data)
        z = trace.nodes["z"]["value"]
        assert z.shape == (N, K)
        torch.testing.assert_close(joint(trace), by_hand(program, *data, z))


def test_words_and_their_beginnings_are_all_there_is():
    """The words of up to T characters, and all that go on, have probabilities that add up to 1."""
    model, *_ = build()
    z, total = torch.tensor([1.0, 0.0]), 0.0
    for n in range(T + 1):
        rows = list(itertools.product(range(1, V + 1), repeat=n))
        x = torch.tensor([[*row, *[0] * (T - n)] for row in rows])
        total = total + Words(model.speller, z.expand(len(rows), K), T).log_prob(x).exp().sum()
    longer = itertools.product(range(1, V + 1), repeat=T + 1)
    total = total + sum(log_word(model, list(word), z, end=False).exp() for word in longer)
    assert total.item() == pytest.approx(1.0)


def test_log_marginals_are_sums_over_all_factors():
    """By importance sampling from the guide; false alarm: 5 words at 5 standard errors, 3e-6."""
    model, guide, *data = build()
    states = torch.cartesian_prod(*[torch.arange(2.0)] * K).to(torch.get_default_dtype())
    want = torch.stack([log_p(model, *data, z.expand(N, -1)) for z in states]).logsumexp(0)
    found = pplvm.log_marginal(model, guide, *data, num_particles=2000)
    assert ((found.value - want).abs() < 5 * found.error + 1e-6).all()


def test_padding_changes_nothing():
    model, guide, x, lengths = build()
    z = torch.bernoulli(torch.full((N, K), 0.5))
    wide = torch.cat((x, torch.zeros_like(x)), 1)
    beyond = torch.arange(2 * T) >= lengths[:, None]
    dirty = torch.where(beyond, torch.randint(V + 1, wide.shape), wide)
    assert not torch.equal(dirty, wide)
    for program in (model, guide):
        want = at(program, (x, lengths), z)
        for data in ((wide, lengths), (dirty, lengths), (wide.int(), lengths.int())):
            torch.testing.assert_close(at(program, data, z), want)


@pytest.mark.parametrize("row", range(N))
def test_a_word_alone_is_as_it_is_among_others(row):
    model, guide, x, lengths = build()
    z = torch.bernoulli(torch.full((N, K), 0.5))
    one = slice(row, row + 1)
    n = max(1, int(lengths[row]))
    for program in (model, guide):
        lone = at(program, (x[one, :n], lengths[one]), z[one])
        torch.testing.assert_close(lone, at(program, (x, lengths), z)[one])


def test_particles_are_as_many_runs():
    model, guide, *data = build()
    traces.check_particles(model, guide, *data)
    P = 3
    with pyro.plate("particles", P, dim=-2):
        trace = poutine.trace(guide).get_trace(*data)
        both = joint(poutine.trace(poutine.replay(model, trace=trace)).get_trace(*data))
    want = [log_p(model, *data, z) for z in trace.nodes["z"]["value"]]
    torch.testing.assert_close(both, torch.stack(want))


def test_soft_factors_are_weighed_as_they_are():
    model, guide, *data = build()
    soft = torch.rand(2, N, K)
    with pyro.validation_enabled(False), pyro.plate("particles", 2, dim=-2):
        for program, by_hand in ((model, log_p), (guide, log_q)):
            want = torch.stack([by_hand(program, *data, z) for z in soft])
            torch.testing.assert_close(at(program, tuple(data), soft), want)


# ---- dreams and gradients ----


def test_a_dream_has_lengths_of_its_own():
    model, _, *data = build()
    held = model(*data)
    assert held[0] is data[0]
    assert held[1] is data[1]
    x, lengths = poutine.uncondition(model)(*data)
    assert x.shape == (N, T)
    assert (x.dtype, lengths.dtype) == (torch.long, torch.long)
    inside = torch.arange(T) < lengths[:, None]
    assert torch.equal(x > 0, inside)
    assert x.max() <= V
    with pyro.plate("particles", 2, dim=-2):
        x, lengths = poutine.uncondition(model)(*data)
    assert x.shape == (2, N, T)
    assert lengths.shape == (2, N)


def test_dreams_follow_the_model():
    """False alarm: 40 words at 5 standard errors, 2e-5."""
    model, *_ = build()
    S, steps = 20_000, 3
    z = torch.tensor([0.0, 1.0])
    dream = Words(model.speller, z.expand(S, K), steps).sample()
    code = dream @ torch.tensor([16, 4, 1])
    for n in range(steps + 1):
        for word in itertools.product(range(1, V + 1), repeat=n):
            x = torch.tensor([*word, *[0] * (steps - n)])
            share = (code == x @ torch.tensor([16, 4, 1])).double().mean()
            p = log_word(model, list(word), z, end=n < steps).exp()  # the longest are cut
            assert abs(share - p) < 5 * (p * (1 - p) / S).sqrt(), word


@pytest.mark.parametrize("objective", [wake_sleep, reweighted_wake_sleep])
def test_gradients_reach_every_parameter(objective):
    model, guide, *data = build()
    objective(model, guide, *data).loss.backward()
    for program in (model, guide):
        for parameter, p in program.named_parameters():
            assert p.grad is not None, parameter
            assert p.grad.isfinite().all(), parameter
            assert p.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("objective", [wake_sleep, reweighted_wake_sleep])
def test_learning_raises_the_bound(objective):
    x, lengths = torch.tensor([[1, 2, 1, 2], [3, 3, 0, 0]]).repeat(20, 1), torch.tensor([4, 2] * 20)
    fit = pplvm.fit(
        LatentFactorWords(V, K, E, 16),
        LatentFactorWordsGuide(V, K, E, 16),
        x,
        lengths,
        objective=objective,
        num_steps=60,
        lr=0.03,
    )
    bound = torch.tensor(fit.history.bound)
    assert bound[-10:].mean() > bound[:10].mean() + 1.0


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda x, n: (x, n + 1), ["'lengths' is 5 in row 0", "0 to 4"]),
        (lambda x, n: (x, n[:2].repeat(2)), ["'lengths' has shape"]),
        (lambda x, n: (x + (x == x[0, 0]) * V, n), ["'x' is", "row 0, step 0", "1 to 3"]),
        (lambda x, n: (x, n * 0 + 4), ["'x' is 0 in row 1, step 1"]),
        (lambda x, n: (x - 4 * (x > 0), n), ["'x' is -"]),
        (lambda x, n: (x.double(), n), ["'x'", "torch.float64", "whole"]),
        (lambda x, n: (x[..., None], n), ["'x'", "(5, 4, 1)"]),
    ],
)
def test_words_that_there_are_not_are_refused(change, parts):
    model, guide, *data = build()
    data = change(*data)
    for program in (model, guide):
        with pytest.raises(ValueError, match=r"'lengths'|'x'") as info:
            program.check_data(*data)
        one_sentence(info, *parts)
    if len(data[1]) == len(data[0]):
        with pytest.raises(ValueError, match=r"'lengths'|'x'"):
            pplvm.fit(model, guide, *data, objective=reweighted_wake_sleep, num_steps=1)
