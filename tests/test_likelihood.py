"""The diagnostics of importance weights, against weights whose tail is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pplvm
from pplvm.likelihood import pareto_khat, summarise


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_is_the_shape_of_pareto_weights(k):
    """Within 4 standard errors over 40 repeats: a false alarm in 16,000 runs of a case."""
    u = torch.rand(4000, 40, generator=torch.Generator().manual_seed(0))
    khat = pareto_khat(-k * u.log())  # w = u^-k has a Pareto tail of shape k
    assert abs(khat.mean() - k) < 4 * khat.std() / math.sqrt(40) + 0.03  # its prior pulls to 0.5


def test_khat_tells_a_wide_proposal_from_a_narrow_one():
    """A Gaussian target under a Gaussian proposal of sd s has tail shape 1 - s², if positive."""
    z = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0))
    log_w = {s: 0.5 * z**2 - 0.5 * (s * z) ** 2 for s in (1.5, 0.5)}
    assert pareto_khat(log_w[1.5]).max() < 0.0
    assert pareto_khat(log_w[0.5]).mean() == pytest.approx(0.75, abs=0.15)  # slow in the tail


def test_equal_weights_are_perfect():
    out = summarise(torch.full((100, 3), -2.0))
    assert torch.allclose(out.value, torch.full((3,), -2.0))
    assert torch.allclose(out.ess, torch.full((3,), 100.0))
    assert (out.error < 1e-6).all()
    assert (out.khat == -math.inf).all()


def test_one_weight_that_rules_all_is_worth_one_draw():
    log_w = torch.zeros(1000, 1)
    log_w[0] = 50.0
    out = summarise(log_w)
    assert out.ess.item() == pytest.approx(1.0)
    assert out.value.item() == pytest.approx(50 - math.log(1000))
    assert out.khat.item() == math.inf


def test_weights_that_tie_at_the_cut_off_are_no_warning():
    """Nearly equal weights of float32 have few distinct values."""
    log_w = -120.0 + 1e-5 * torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)).float()
    khat = pareto_khat(log_w.float().double())
    assert not (khat > 0.7).any()


# ---- guides that draw one state alone: against the sum over all states ----


class Switches(nn.Module):
    """Two switches a datum, together or in a plate each: x is Gaussian about their weighted sum."""

    def __init__(self, sd: float, apart: bool = False) -> None:
        super().__init__()
        self.sd, self.apart = sd, apart

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x), dim=-1):
            if self.apart:
                z = [pyro.sample(f"z{i}", dist.Bernoulli(x.new_tensor(0.4))) for i in range(2)]
                at = 2.0 * z[0] + 3.0 * z[1]
            else:
                p = x.new_full((2,), 0.4)
                z = pyro.sample("z", dist.Bernoulli(p).to_event(1))
                at = 2.0 * z[..., 0] + 3.0 * z[..., 1]
            return pyro.sample("x", dist.Normal(at, self.sd), obs=x)


def log_joint(x: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """Returns the states, (4, 2), and log p(x, z), (N, 4)."""
    states = torch.cartesian_prod(*[torch.arange(2.0)] * 2)
    prior = dist.Bernoulli(torch.tensor(0.4)).log_prob(states).sum(-1)
    return states, prior + dist.Normal(states @ torch.tensor([2.0, 3.0]), sd).log_prob(x[:, None])


class Switched(nn.Module):
    """Draws both switches by one logit; at -50 they are never on."""

    def __init__(self, logit: float, apart: bool = False) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((2,), logit))
        self.apart = apart

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            if self.apart:
                for i in range(2):
                    pyro.sample(f"z{i}", dist.Bernoulli(logits=self.logits[i]))
            else:
                pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))


@pytest.mark.parametrize("apart", [True, False])
def test_a_state_that_is_never_drawn_is_no_perfect_proposal(apart):
    """At x = 2 and 3 another state is likelier than the one drawn; at -9 there is none to miss."""
    x = torch.tensor([2.0, 3.0, -9.0])
    truth = log_joint(x, 0.5)[1].logsumexp(-1)
    found = pplvm.log_marginal(Switches(0.5, apart), Switched(-50.0, apart), x, num_particles=200)
    assert (truth - found.value)[:2].min() > 5  # nats too low,
    assert found.error.max() < 1e-6  # and sure of it,
    assert found.ess.min() > 199
    assert found.sole.tolist() == [True, True, False]  # but that is now said
    assert found.khat[:2].isnan().all()
    torch.testing.assert_close(found.value[2], truth[2], atol=1e-3, rtol=0)
    assert found.khat[2] == -math.inf


def test_states_that_are_too_many_to_list_are_in_doubt():
    x = torch.tensor([-9.0])
    found = pplvm.log_marginal(Switches(0.5), Switched(-50.0), x, num_particles=3)
    assert found.sole.all()  # four states, three particles


class Exactly(nn.Module):
    """Draws the first switch by its exact posterior, the second given the first by its own."""

    def forward(self, x: Tensor) -> None:
        _, both = log_joint(x, 2.0)
        p = both.softmax(-1).unflatten(-1, (2, 2))  # (N, z0, z1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z0", dist.Bernoulli(p.sum(-1)[:, 1]))
            given = torch.where(z > 0.5, p[:, 1, 1] / p[:, 1].sum(-1), p[:, 0, 1] / p[:, 0].sum(-1))
            pyro.sample("z1", dist.Bernoulli(given))


def test_a_perfect_proposal_draws_several_states_at_one_weight():
    x = torch.tensor([0.5, 2.5, 4.0])
    truth = log_joint(x, 2.0)[1].logsumexp(-1)
    found = pplvm.log_marginal(Switches(2.0, apart=True), Exactly(), x, num_particles=300)
    torch.testing.assert_close(found.value, truth, atol=1e-6, rtol=0)
    assert not found.sole.any()
    assert (found.khat == -math.inf).all()


def test_continuous_latents_beside_it_do_not_hide_that_a_discrete_one_stands_still():
    def model(x: Tensor) -> Tensor:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.5)))
            u = pyro.sample("u", dist.Normal(x.new_tensor(0.0), 1.0))
            return pyro.sample("x", dist.Normal(4.0 * z + u, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(x.new_tensor([0.0, 0.5])))
            pyro.sample("u", dist.Normal(0.5 * x, 1.0))

    found = pplvm.log_marginal(model, guide, torch.tensor([2.0, 2.0]), num_particles=100)
    assert found.sole.tolist() == [True, False]
    assert found.khat.isnan().tolist() == [True, False]


@pytest.mark.parametrize("logit", [-50.0, 0.0])
def test_a_comparison_says_so(logit):
    x = torch.tensor([2.0, 3.0, 2.5, 2.2])
    options = {"objective": pplvm.objectives.score_function, "num_steps": 1, "lr": 1e-9}
    fit = pplvm.fit(Switches(0.5), Switched(logit), x, **options)
    row = pplvm.compare({"fit": fit}, num_draws=50, num_particles=100)["fit"]
    said = [worry for worry in row.worries if "draws one state only for 4 of 4" in worry]
    assert len(said) == (logit == -50.0)
    assert math.isnan(row.khat) == (logit == -50.0)
    assert not any("k̂" in worry for worry in row.worries if logit == -50.0)
