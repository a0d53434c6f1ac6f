"""The same fits on a GPU; skipped where there is none."""

import pytest
import torch

import pplvm
from pplvm.guides.factor_analysis import LinearGaussian
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("objective", [elbo, iwae, wake_sleep, reweighted_wake_sleep])
def test_a_fit_on_a_gpu_reaches_the_same_bound(objective):
    x = torch.randn(64, 1) * torch.tensor([1.0, -1.0, 0.5, 2.0]) + torch.randn(64, 4)
    pair = FactorAnalysis(4, 1), LinearGaussian(4, 1)
    fits = {
        device: pplvm.fit(
            *pair, x, objective=objective, num_steps=500, batch_size=20, device=device
        )
        for device in ("cpu", "cuda")
    }
    assert next(fits["cuda"].model.parameters()).device.type == "cuda"
    cpu, gpu = (fit.log_marginal(num_particles=100).value.mean() for fit in fits.values())
    assert abs(cpu - gpu) < 0.1


def test_a_fit_on_a_gpu_is_resumed_bit_for_bit(tmp_path):
    x = torch.randn(64, 4)
    pair = FactorAnalysis(4, 1), LinearGaussian(4, 1)
    options = {"batch_size": 20, "device": "cuda", "seed": 1}
    whole = pplvm.fit(*pair, x, num_steps=40, **options)
    path = tmp_path / "checkpoint"
    pplvm.fit(*pair, x, num_steps=21, checkpoint=path, **options)
    resumed = pplvm.fit(*pair, x, num_steps=40, checkpoint=path, resume=True, **options)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
