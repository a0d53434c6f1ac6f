"""Renumbered draws: known permutations are undone, and no density changes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pplvm
from pplvm import traces

X = torch.tensor([-2.1, -1.8, -2.4, -1.5, -1.9, -2.2, -1.2, 1.7, 2.2, 2.5, 2.0]).double()


def mixture(x):
    pi = pyro.sample("pi", dist.Dirichlet(2.0 * torch.ones(2)))
    with pyro.plate("components", 2, dim=-1):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(pi))
        return pyro.sample("x", dist.Normal(mu[k], 0.4), obs=x)


def series(x):
    A = pyro.sample("A", dist.Dirichlet(torch.ones(2, 2) + 2 * torch.eye(2)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(torch.ones(2) / 2 if z is None else A[z]))
        pyro.sample(f"x{t}", dist.Normal(mu[z], 0.7), obs=x[t])


def made(values: dict[str, Tensor], model=mixture) -> pplvm.Draws:
    plates = {"pi": (), "mu": ("components",), "k": ("data",)}
    return pplvm.Draws(values, plates, {}, model, (X,))


@pytest.mark.parametrize("told", [False, True])
def test_what_says_nothing_does_not_count(told):
    """Means are far apart for what they vary, beside five numbers that are the same noise for all."""
    random = torch.Generator().manual_seed(0)
    mu = torch.tensor([-1.0, 1.0]) + 0.12 * torch.randn(2, 500, 2, generator=random)
    noise = torch.randn(2, 500, 2, 5, generator=random)
    order = torch.rand(2, 500, 2, generator=random).argsort(-1)
    shuffled = {
        "mu": mu.gather(2, order),
        "tau": noise.gather(2, order[..., None].expand_as(noise)),
    }
    reference = made({"mu": mu, "tau": noise}) if told else None
    got = pplvm.align(made(shuffled), {"mu": 0, "tau": 0}, reference=reference)
    back = (got["mu"][0, 0] > 0).long()
    assert torch.equal(got["mu"], mu[:, :, back])
    assert torch.equal(got["tau"], noise[:, :, back])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 3))
def test_known_permutations_are_undone(seed, K, D):
    random = torch.Generator().manual_seed(seed)
    centre = 10.0 * torch.arange(K)[:, None].expand(K, D)
    mu = centre + torch.randn(2, 7, K, D, generator=random)
    A = torch.randn(2, 7, K, K, generator=random) + 10.0 * torch.arange(K).diag()
    k = torch.randint(K, (2, 7, 4), generator=random)
    order = torch.rand(2, 7, K, generator=random).argsort(-1)
    shuffled = {
        "mu": mu.gather(2, order[..., None].expand_as(mu)),
        "A": A.gather(2, order[..., None].expand_as(A)).gather(3, order[:, :, None].expand_as(A)),
        "k": order.argsort(-1).gather(2, k),
    }
    got = pplvm.align(made(shuffled), {"mu": 0, "A": (0, 1)}, ["k"])
    # All numbered alike, if not as they were: the first draw says how.
    back = (got["mu"][0, 0, :, 0] / 10).round().long()
    assert sorted(back.tolist()) == list(range(K))
    assert torch.equal(got["mu"], mu[:, :, back])
    assert torch.equal(got["A"], A[:, :, back][..., back])
    assert torch.equal(back[got["k"]], k)


@pytest.fixture(scope="module")
def chains() -> pplvm.Draws:
    return pplvm.nuts(mixture, X, num_chains=8, num_warmup=200, num_samples=100, compile="graph")


def test_chains_of_a_mixture_agree_once_aligned(chains):
    aligned = pplvm.align(chains, {"pi": 0, "mu": 0}, ["k"])
    before, after = (
        max(array_stats.rhat(d["mu"][..., i].numpy()) for i in range(2)) for d in (chains, aligned)
    )
    assert before > 1.5
    assert after < 1.05
    means = aligned["mu"].double().flatten(0, 1).mean(0).sort().values
    assert torch.allclose(means, torch.tensor([-1.87, 2.1]).double(), atol=0.1)


def test_no_density_changes(chains):
    aligned = pplvm.align(chains, {"pi": 0, "mu": 0}, ["k"])
    assert not torch.equal(aligned["k"], chains["k"])

    def joint(draws: pplvm.Draws, s: int) -> Tensor:
        values = {name: v[s % 8, s] for name, v in draws.values.items()}
        return traces.log_joint(mixture, values, X, per_datum=False)

    for s in range(0, 100, 7):
        assert torch.allclose(joint(aligned, s), joint(chains, s))


@pytest.mark.slow
def test_states_of_a_series_are_aligned_with_their_moves():
    chains = pplvm.nuts(
        series, X, num_chains=6, num_warmup=150, num_samples=60, compile="graph", seed=2
    )
    z = [f"z{t}" for t in range(len(X))]
    aligned = pplvm.align(chains, {"A": (0, 1), "mu": 0}, z)
    for s in range(0, 60, 9):
        before, after = (
            traces.log_joint(
                series, {n: v[s % 6, s] for n, v in d.values.items()}, X, per_datum=False
            )
            for d in (chains, aligned)
        )
        assert torch.allclose(before, after)
    assert aligned["mu"].flatten(0, 1).std(0).max() < chains["mu"].flatten(0, 1).std(0).max()


def test_a_reference_says_which_is_which(chains):
    aligned = pplvm.align(chains, {"mu": 0})
    back = torch.tensor([1, 0])
    other = made({"mu": aligned["mu"][:, :, back]})
    again = pplvm.align(chains, {"mu": 0}, reference=other)
    assert torch.equal(again["mu"], other["mu"])


@pytest.mark.parametrize(
    ("axes", "labels", "message"),
    [
        ({"mu": 1}, [], r"axes\['mu'\] is 1, but site 'mu' has shape \(2,\)"),
        ({"nu": 0}, [], "no site 'nu'"),
        ({}, [], "'axes' is empty"),
        ({"mu": 0, "k": 0}, [], "different numbers of components: {'mu': 2, 'k': 11}"),
        ({"mu": 0}, ["pi"], "site 'pi' has values .* not the numbers of 2 components"),
    ],
)
def test_what_cannot_be_aligned_is_named(chains, axes, labels, message):
    with pytest.raises(ValueError, match=message):
        pplvm.align(chains, axes, labels)
