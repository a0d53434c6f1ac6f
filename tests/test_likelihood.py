"""The diagnostics of importance weights, against weights whose tail is known."""

import math

import pytest
import torch

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
