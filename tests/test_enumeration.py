"""Exact posteriors of discrete latents against a list of all their joint states.

The list runs each story once for each joint state, as it stands, and knows nothing of loops.
"""

import itertools
import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats as laws
from torch import Tensor

import pplvm
from pplvm import traces
from pplvm.traces import loops_are_even

LENGTHS = torch.tensor([3, 1, 2])
X = torch.tensor([[0.3, -0.9, 1.4], [1.0, 0.2, -0.5], [-1.2, 0.8, 0.1]], dtype=torch.float64)
BITS = (torch.arange(3 * 3 * 4).reshape(3, 3, 4) * 7 % 5 > 2).double()
A = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.05, 0.15, 0.8]], dtype=torch.float64)
LONG = torch.tensor([[0.3, -0.9, 1.4, 0.1, 2.2], [1.0, 0.2, -0.5, -1.3, 0.4]], dtype=torch.float64)
PI = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
MU = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
B = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
LOGITS = torch.tensor(
    [[0.1, -1.0, 2.0, 0.3], [-0.4, 0.6, 0.2, -2.0], [1.0, 1.1, -0.7, 0.0]], dtype=torch.float64
)


class Row(NamedTuple):
    model: callable
    data: tuple[Tensor, ...]
    even: bool  # whether its loops may be run for all later steps at once
    names: tuple[str, ...]  # of the latents in its answer


# ---- stories whose loops do the same at each step but the first ----


def hmm(x):
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], 0.8), obs=x[:, t])
    return x


def ragged(x, lengths):
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", dist.Categorical(A[z] if t > 0 else PI))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=LOGITS[z]).to_event(1), obs=x[:, t])
    return x


def counts(x):
    """A time axis first, states of a Bernoulli, and Poisson emissions of which one rate is zero."""
    rate = torch.tensor([[0.0, 1.0, 2.0, 0.5], [1.5, 0.2, 3.0, 1.0]])
    with pyro.plate("data", x.shape[1], dim=-1):
        z = torch.zeros(())
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z[{t}]", dist.Bernoulli(0.2 + 0.5 * z))
            pyro.sample(f"x[{t}]", dist.Poisson(rate[z.long()]).to_event(1), obs=x[t])
    return x


def tones(x):
    """A plate inside the loop, which no latent is in."""
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            with pyro.plate(f"tones_{t}", 4, dim=-2):
                logits = LOGITS.T[torch.arange(4)[:, None], z]
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits), obs=x[:, t].T)
    return x


def alone(x):
    """One series, with no plate; the inputs of a step are the data of the one before."""
    z = 0
    for t in pyro.markov(range(1, len(x))):
        p = A[z] + 0.1 * x[t - 1].abs()[..., None]
        z = pyro.sample(f"z{t}", dist.Categorical(p / p.sum(-1, keepdim=True)))
        pyro.sample(f"x{t}", dist.Normal(MU[z] + 0.3 * x[t - 1], 1.0), obs=x[t])
    return x


def mixed(x):
    """Each series has a kind, by which its states move."""
    moves = torch.stack((A, A.T / A.T.sum(-1, keepdim=True)))
    with pyro.plate("data", len(x), dim=-1):
        kind = pyro.sample("kind", dist.Bernoulli(0.3))
        c, z = kind.long(), 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else moves[c, z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + 0.2 * c, 1.0), obs=x[:, t])
    return x


def factorial(x):
    """Two chains side by side, of three states and of two."""
    with pyro.plate("data", len(x), dim=-1):
        z = w = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            w = pyro.sample(f"w_{t}", dist.Categorical(B[0] if t == 0 else B[w]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + w, 0.7), obs=x[:, t])
    return x


def coupled(x):
    """The second chain hears the first; what is seen depends on two steps."""
    with pyro.plate("data", len(x), dim=-1):
        previous = w = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[previous]))
            w = pyro.sample(f"w_{t}", dist.Categorical(B[0] if t == 0 else B[w]))
            v = pyro.sample(f"v_{t}", dist.Bernoulli(0.2 + 0.3 * w + 0.1 * z))
            loc = MU[z] + v - (0.0 if t == 0 else 0.5 * previous)
            pyro.sample(f"x_{t}", dist.Normal(loc, 0.7), obs=x[:, t])
            previous = z
    return x


def twice(x):
    """Two loops, with sites that see no latent, and of these some that are the same at each step."""
    with pyro.plate("data", len(x), dim=-1):
        for name in ("a", "b"):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"{name}_{t}", dist.Categorical(PI if t == 0 else A[z]))
                pyro.sample(f"x_{name}_{t}", dist.Normal(MU[z], 1.0), obs=x[:, t])
                pyro.sample(f"idle_{name}_{t}", dist.Normal(0.0, 1.0), obs=x[:, t])
                pyro.factor(f"same_{name}_{t}", x[:, 0])
    return x


# ---- loops that have to be run step by step ----


def recurrent(x):
    """A state of the story itself is handed on."""
    with pyro.plate("data", len(x), dim=-1):
        h, z = torch.zeros(len(x)), 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + h, 1.0), obs=x[:, t])
            h = (0.5 * h + x[:, t]).tanh()
    return x


def moody(x):
    """The last step is another."""
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], 2.0 if t == 2 else 1.0), obs=x[:, t])
    return x


def listed(x):
    scales = [0.5, 1.0, 1.5]
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], scales[t]), obs=x[:, t])
    return x


def late(x):
    """The scale of its last steps is another, which the loop itself does not show."""
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t, s in zip(pyro.markov(range(x.shape[1])), [0.8] * 4 + [2.0], strict=True):
            z = pyro.sample(f"z_{t}", dist.Categorical(B[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], s), obs=x[:, t])
    return x


def silent(x):
    """A state of the story itself, of which the first steps have nothing to tell."""
    with pyro.plate("data", len(x), dim=-1):
        h, z = torch.zeros(len(x)), 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(B[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + h, 1.0), obs=x[:, t])
            h = (h + x[:, t]).tanh()
    return x


def two_masks(x):
    with pyro.plate("data", len(x), dim=-1):
        z = w = 0
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=t < LENGTHS):
                z = pyro.sample(f"z_{t}", dist.Categorical(B[z]))
            with pyro.poutine.mask(mask=t < LENGTHS + 1):
                w = pyro.sample(f"w_{t}", dist.Categorical(B[w]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + w, 0.8), obs=x[:, t])
    return x


def own_mask(x):
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(B[z]).mask(t < LENGTHS))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], 0.8), obs=x[:, t])
    return x


def remembered(x):
    """What is seen depends on the step before, and is there where the latent is masked."""
    with pyro.plate("data", len(x), dim=-1):
        z = before = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=t < LENGTHS):
                z = pyro.sample(f"z_{t}", dist.Categorical(B[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z] + 0.5 * before, 0.8), obs=x[:, t])
            before = z
    return x


def renamed(x):
    """A loop whose sites have the numbers of other steps, and two whose names are alike."""
    with pyro.plate("data", len(x), dim=-1):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t + 1}", dist.Categorical(B[z]))
            pyro.sample(f"x_{t + 1}", dist.Normal(MU[z], 0.8), obs=x[:, t])
    return x


def change(x):
    with pyro.plate("data", len(x), dim=-1):
        for steps, moves in ((range(2), B), (range(2, 4), B.T / B.T.sum(-1, keepdim=True))):
            z = 0
            for t in pyro.markov(steps):
                z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
                pyro.sample(f"x_{t}", dist.Normal(MU[z], 0.8), obs=x[:, t])
    return x


# ---- no loops ----


def mixture(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(PI))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[k]))
        pyro.sample("x", dist.Normal(MU[k] + b, 1.0).to_event(0), obs=x[:, 0])
    return x


def shared(x):
    c = pyro.sample("c", dist.Categorical(PI))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.OneHotCategorical(A[c]))
        pyro.sample("x", dist.Normal((MU * k).sum(-1), 1.0), obs=x[:, 0])
    return x


STORIES = {
    "hmm": Row(hmm, (X,), True, ("z",)),
    "one step": Row(hmm, (X[:, :1],), False, ("z_0",)),
    "two steps": Row(hmm, (X[:, :2],), True, ("z",)),
    "one datum": Row(hmm, (X[:1],), True, ("z",)),
    "ragged": Row(ragged, (BITS, LENGTHS), True, ("z",)),
    "counts": Row(counts, ((3 * BITS).movedim(1, 0),), True, ("z",)),
    "tones": Row(tones, (BITS,), True, ("z",)),
    "alone": Row(alone, (X.flatten()[:5],), True, ("z",)),
    "mixed": Row(mixed, (X,), True, ("kind", "z")),
    "factorial": Row(factorial, (X,), True, ("w", "z")),
    "coupled": Row(coupled, (X[:, :2],), True, ("v", "w", "z")),
    "twice": Row(twice, (X,), True, ("a", "b")),
    "recurrent": Row(recurrent, (X,), False, ("z_0", "z_1", "z_2")),
    "moody": Row(moody, (X,), False, ("z_0", "z_1", "z_2")),
    "listed": Row(listed, (X,), False, ("z_0", "z_1", "z_2")),
    "late": Row(late, (LONG,), False, tuple(f"z_{t}" for t in range(5))),
    "silent": Row(
        silent, (LONG * (torch.arange(5) > 2),), False, tuple(f"z_{t}" for t in range(5))
    ),
    "two masks": Row(two_masks, (X,), False, ("w_0", "w_1", "w_2", "z_0", "z_1", "z_2")),
    "own mask": Row(own_mask, (X,), False, ("z_0", "z_1", "z_2")),
    "remembered": Row(remembered, (X,), False, ("z_0", "z_1", "z_2")),
    "renamed": Row(renamed, (X,), False, ("z_1", "z_2", "z_3")),
    "change": Row(change, (LONG[:, :4],), True, ("z", "z_2")),
    "mixture": Row(mixture, (X,), False, ("b", "k")),
}
each_story = pytest.mark.parametrize("story", STORIES)


# Stories with masks, and how many states their latents have.
MASKED = {ragged: 3, two_masks: 2, own_mask: 2, remembered: 2}


def sites_of(exact: pplvm.enumeration.Enumerated) -> list[tuple[str, str, int | None]]:
    """Returns each site with the name of its latent and its step."""
    return [
        (site, name, t if len(v.sites) > 1 else None)
        for name, v in exact.listed.variables.items()
        for t, site in enumerate(v.sites)
    ]


def listing(row: Row) -> tuple[list[str], list[tuple[int, ...]], Tensor]:
    """Returns the latents, their joint states (R, …) and their log-densities (R, N)."""
    sites = {n: s for n, s in traces.look(row.model, *row.data).items() if s.kind == "latent"}
    states = [s.fn.enumerate_support(expand=False).flatten() for s in sites.values()]
    per_datum = any(traces.in_data_plate(s) for s in sites.values())
    scores, joint = [], list(itertools.product(*(range(len(k)) for k in states)))
    for at in joint:
        values = {
            n: k[i].expand(s.value.shape).clone()
            for (n, s), k, i in zip(sites.items(), states, at, strict=True)
        }
        score = traces.log_joint(row.model, values, *row.data, per_datum=per_datum).reshape(-1)
        for n in sites:  # masked, they sum to one all the same
            if row.model in MASKED and n.startswith(("z_", "w_")):
                hidden = LENGTHS + n.startswith("w_") * (row.model is two_masks) <= int(n[2:])
                score = score - hidden * math.log(MASKED[row.model])
        scores.append(score)
    return list(sites), joint, torch.stack(scores)


@each_story
def test_the_posterior_is_that_of_the_listing(story):
    row = STORIES[story]
    exact = pplvm.exact(row.model, *row.data)
    assert tuple(sorted(exact.marginals)) == row.names
    names, joint, scores = listing(row)
    total = scores.logsumexp(0)
    assert torch.allclose(exact.log_marginal, total, rtol=1e-10)
    weights = (scores - total).exp()  # (R, N)
    for site, name, t in sites_of(exact):
        i, p = names.index(site), exact.marginals[name]
        p = p if t is None else p.select(-2, t)
        want = torch.zeros(len(total), p.shape[-1])
        for at, weight in zip(joint, weights, strict=True):
            want[:, at[i]] += weight
        assert torch.allclose(p.reshape(want.shape), want, atol=1e-10)
        k = exact.states[name].double()
        assert torch.allclose(exact.mean[site].reshape(-1), want @ k)
        assert torch.allclose(exact.sd[site].reshape(-1) ** 2, want @ k**2 - (want @ k) ** 2)


@each_story
def test_pairs_are_those_of_the_listing(story):
    row = STORIES[story]
    exact = pplvm.exact(row.model, *row.data)
    names, joint, scores = listing(row)
    weights, variables = scores.softmax(0), exact.listed.variables

    def together(one, other):  # (N, K, K') of two sites
        i, j = names.index(one), names.index(other)
        want = torch.zeros(scores.shape[1], *(1 + max(at[k] for at in joint) for k in (i, j)))
        for at, weight in zip(joint, weights, strict=True):
            want[:, at[i], at[j]] += weight
        return want

    compared = 0
    for one, other in itertools.product(variables, repeat=2):
        first, second = variables[one].sites, variables[other].sites
        if one == other and len(first) == 1:
            continue
        if len(first) != len(second) or (story == "change" and one != other) or story == "twice":
            continue
        got = exact.pairwise(one, None if one == other else other)
        if len(first) == 1:
            want = together(first[0], second[0])
        elif one == other:
            want = torch.stack([together(*pair) for pair in itertools.pairwise(first)], 1)
        else:
            want = torch.stack([together(*p) for p in zip(first, second, strict=True)], 1)
        assert torch.allclose(got.reshape(want.shape), want, atol=1e-10)
        compared += 1
    assert compared or story in ("twice", "one step", "change")


def test_pairs_of_one_datum_and_of_what_all_share():
    exact = pplvm.exact(shared, X)
    pairs = exact.pairwise("c", "k")  # (N, K, K')
    assert torch.allclose(pairs.sum(-2), exact.marginals["k"])
    assert torch.allclose(pairs.sum(-1), exact.marginals["c"].expand(3, 3))
    assert not torch.allclose(pairs, exact.marginals["c"][:, None] * exact.marginals["k"][:, None])
    with pytest.raises(ValueError, match="'kind' and 'z' have no joint probabilities here"):
        pplvm.exact(mixed, X).pairwise("kind", "z")
    with pytest.raises(ValueError, match="no latent 'q' here"):
        exact.pairwise("q")


@each_story
def test_no_joint_state_is_more_probable(story):
    row = STORIES[story]
    exact = pplvm.exact(row.model, *row.data)
    names, joint, scores = listing(row)
    best = exact.most_probable()
    found = {s: best[n] if t is None else best[n].select(-1, t) for s, n, t in sites_of(exact)}
    for n in range(scores.shape[1]):
        at = tuple(int(found[name].reshape(-1)[n]) for name in names)
        assert torch.allclose(scores[joint.index(at), n], scores[:, n].max(), rtol=1e-10)


@pytest.mark.parametrize("story", ["ragged", "mixed", "factorial", "coupled", "moody", "mixture"])
def test_joint_draws_come_as_often_as_they_should(story):
    """False alarm: three data of six stories at 1e-4 each, 2e-3."""
    row, S = STORIES[story], 20_000
    drawn = pplvm.exact(row.model, *row.data).draws(S, seed=1)
    names, joint, scores = listing(row)
    p = scores.softmax(0)  # (R, N)
    for n in range(p.shape[1]):
        states = torch.stack([drawn[name].reshape(S, -1)[:, n].long() for name in names], 1)
        sizes = [1 + max(at[i] for at in joint) for i in range(len(names))]
        place = torch.tensor([math.prod(sizes[i + 1 :]) for i in range(len(names))])
        count = torch.bincount((states * place).sum(1), minlength=len(joint)).double()
        want = S * p[:, n]
        rare = want < 5
        got = torch.cat((count[~rare], count[rare].sum()[None]))
        want = torch.cat((want[~rare], want[rare].sum()[None]))
        if want[-1] < 5:
            want[0], got[0] = want[0] + want[-1], got[0] + got[-1]
            got, want = got[:-1], want[:-1]
        assert laws.chisquare(got, want).pvalue > 1e-4


@each_story
def test_loops_are_run_at_once_where_they_are_even(story):
    row = STORIES[story]
    assert loops_are_even(row.model, *row.data) == row.even
    runs = []

    def counted(*data):
        runs.append(1)
        return row.model(*data)

    pplvm.exact(counted, *row.data)
    assert len(runs) < 25


def test_latents_that_the_data_share_are_one_sum():
    exact = pplvm.exact(shared, X)
    by_hand = torch.tensor(
        [
            PI[c].log()
            + sum((A[c] * dist.Normal(MU, 1.0).log_prob(x).exp()).sum().log() for x in X[:, 0])
            for c in range(3)
        ]
    )  # fmt: skip
    assert torch.allclose(exact.log_marginal, by_hand.logsumexp(0)[None])
    assert torch.allclose(exact.marginals["c"], by_hand.softmax(0))
    assert exact.marginals["k"].shape == (3, 3)
    assert exact.most_probable()["k"].shape == (3, 3)
    assert exact.draws(10)["k"].shape == (1, 10, 3, 3)
    assert exact.mean["k"].shape == (3, 3)


def test_gradients_of_the_sum_are_those_of_the_listing():
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def model(x):
        z = 0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[0 if t == 0 else z]))
                pyro.sample(f"x_{t}", dist.Normal(MU[z], 0.8), obs=x[:, t])
        return x

    at_once = traces.Listed(model, X)
    (got,) = torch.autograd.grad(at_once.log_marginal().sum(), logits)
    scores = listing(Row(model, (X,), True, ("z",)))[2]
    (want,) = torch.autograd.grad(scores.logsumexp(0).sum(), logits)
    assert at_once.graph.chains
    assert torch.allclose(got, want)


def test_a_long_series_is_no_long_program():
    """A thousand steps cost as many runs of the story as three do, none of them of a thousand steps."""
    x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    steps = []

    def model(x):
        z = 0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                steps.append(t)
                z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
                pyro.sample(f"x_{t}", dist.Normal(MU[z], 0.8), obs=x[:, t])
        return x

    listed = traces.Listed(model, x)
    alpha = PI.log() + dist.Normal(MU, 0.8).log_prob(x[:, 0, None])
    for t in range(1, 1000):
        moved = (alpha[:, :, None] + A.log()).logsumexp(1)
        alpha = moved + dist.Normal(MU, 0.8).log_prob(x[:, t, None])
    assert torch.allclose(listed.log_marginal(), alpha.logsumexp(1), rtol=1e-10)
    assert (
        len(steps) < 2100
    )  # of which a look and a plain run, to judge the loop by, take a thousand


# ---- errors ----


def continuous(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(m * k, 1.0), obs=x[:, 0])
    return x


def bits(x):
    z = 0
    with pyro.plate("data", len(x), dim=-1):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A[z]))
            pyro.sample(f"x_{t}", dist.Bernoulli(PI[z]), obs=x[:, t])
    return x


def outside(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(PI))
    pyro.sample("total", dist.Normal(MU[k].sum(-1), 1.0), obs=x[0, 0])
    return x


def mingled(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(PI))
        pyro.sample("x", dist.Normal(MU[k] - MU[k].mean(), 1.0), obs=x[:, 0])
    return x


def forgetful(x):
    """A loop that says it has no memory, and has."""
    z = 0
    with pyro.plate("data", len(x), dim=-1):
        for t in pyro.markov(range(x.shape[1]), history=0):
            z = pyro.sample(f"z_{t}", dist.Categorical(A[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], 1.0), obs=x[:, t])
    return x


def branching(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(PI))
        loc = 3.0 if (k > 0).any() else 0.0
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])
    return x


def unnormalised(x):
    """A matrix that was transposed: one of its rows sums to 1.05, none of the columns does."""
    z = 0
    with pyro.plate("data", len(x), dim=-1):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(PI if t == 0 else A.T[z]))
            pyro.sample(f"x_{t}", dist.Normal(MU[z], 1.0), obs=x[:, t])
    return x


def weights(x):
    """Weights of a mixture that do not sum to one are torch's way to say proportions."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(MU[k], 1.0), obs=x[:, 0])
    return x


def impossible(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Poisson(0.0 * k), obs=(x[:, 0] != X[0, 0]).double())
    return x


def endless(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])
    return x


def crowded(x):
    with pyro.plate("data", len(x), dim=-1):
        z = [pyro.sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(45)]
        pyro.sample("x", dist.Normal(sum(z), 1.0), obs=x[:, 0])
    return x


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (continuous, X, "site 'm' .Normal. is continuous and others are discrete"),
        (outside, X, "site 'total' has another log-density where the states"),
        (mingled, X, "site 'x' has another log-density where the states"),
        (forgetful, X, "site 'z_2' has another log-density where the states"),
        (branching, X[:1], "site 'x' has another log-density where the states"),
        (
            unnormalised,
            X,
            "site 'z_1' .Categorical. has probabilities, in a row of its transitions",
        ),
        (impossible, X, "log p.x. is -inf for 2 of 3 data, the first in row 1"),
        (endless, X, "site 'k' .Poisson. is discrete, with states that cannot be listed"),
        (
            bits,
            BITS[..., 0].index_fill(1, torch.tensor([2]), 0.5),
            "site 'x_2' observes 0.5",
        ),
        (crowded, X, "'z0', 'z1', 'z2', … together takes a table of .* numbers"),
    ],
)
def test_what_cannot_be_summed_is_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        pplvm.exact(model, data)


def test_weights_of_a_mixture_need_not_sum_to_one():
    want = dist.Normal(MU, 1.0).log_prob(X[:, :1]).logsumexp(-1) - math.log(3)
    assert torch.allclose(pplvm.exact(weights, X).log_marginal, want)
