r"""Expectation maximisation for stories whose discrete latents can be summed out.

.. math::
    \text{E:}\quad q(z) = p_{\theta_i}(z \mid x), \qquad
    \text{M:}\quad \theta_{i + 1} = \arg\max_\theta \mathbb E_{q(z)} \log p_\theta(x, z)

The E step is exact. The expectation is a sum of the story's own log-densities, each weighed by the
posterior probability of its states, which is the gradient of log p(x) by that log-density; so the
gradient of the expectation at :math:`\theta_i` is that of :math:`\log p_\theta(x)`. The M step is by
L-BFGS, as far as a few iterations get: whatever raises the expectation raises log p(x) at least as
much.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird & Rubin, 1977)
    | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
"""

__all__ = ["EM", "em"]

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pplvm import traces
from pplvm.batches import Array, as_tensors, check_count, check_data
from pplvm.contract import check
from pplvm.parameters import Scope, double_by_default, moved


@dataclass(frozen=True, eq=False)
class EM:
    """What EM learned."""

    model: nn.Module  # at the parameters learned
    log_marginal: tuple[
        float, ...
    ]  # log p(x) in nats, of all data, before each step and at the end
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def em(
    model: nn.Module,
    *data: Array,
    num_steps: int = 200,
    num_inner: int = 20,
    tolerance: float = 1e-6,
) -> EM:
    """Learns the parameters of a story by maximum likelihood.

    Args:
        model: A module whose latents are all discrete, with states that can be listed. It stays as
            it is: a copy learns.
        data: Its arguments, first axis N, all of them in every step.
        num_steps: The most steps.
        num_inner: The most iterations of L-BFGS in an M step.
        tolerance: It ends when log p(x) rises by less, in nats per datum.
    """
    start = time.perf_counter()
    check_count("num_steps", num_steps)
    check_count("num_inner", num_inner)
    if not isinstance(model, nn.Module):
        raise ValueError(f"'model' should be a module with parameters, got {type(model).__name__}.")
    N = check_data(data)
    data = as_tensors(data, model)
    with Scope(0).parameters():  # what a PyroModule declares is forgotten again
        check(model, None, *data)
    kinds = [p.dtype for p in model.parameters()]
    model = copy.deepcopy(model).double()  # in float32 small steps would be lost
    data = tuple(x.double() if x.is_floating_point() else x for x in data)
    learned = [p for p in model.parameters() if p.requires_grad]
    if not learned:
        raise ValueError("'model' has no parameter to learn: leave requires_grad on.")
    history, stopped = [], "num_steps"
    with Scope(0).parameters(), double_by_default(), pyro.validation_enabled(False):
        with moved(learned):
            even = traces.loops_are_even(model, *data)
        listed = traces.Listed(model, *data, even=even)
        for _ in range(num_steps + 1):
            listed = listed.again()
            total, weights = listed.weights()
            history.append(total.item())
            if not math.isfinite(history[-1]):
                raise ValueError(
                    f"log p(x) is {history[-1]} after {len(history) - 1} steps: start from parameters "
                    "at which the data are possible, and keep scales away from 0."
                )
            if len(history) > 1 and history[-1] < history[-2] - 1e-8 * (1 + abs(history[-2])):
                raise ValueError(
                    f"log p(x) fell from {history[-2]:.6f} to {history[-1]:.6f} in step "
                    f"{len(history) - 1}: the story draws, or is not the same in every run."
                )
            if len(history) > 1 and history[-1] - history[-2] < tolerance * N:
                stopped = "tolerance"
                break
            if len(history) <= num_steps:
                _maximise(listed, weights, learned, num_inner, N)
    for p, kind in zip(model.parameters(), kinds, strict=True):
        p.data = p.data.to(kind)
    settings = {"method": "EM", "num_steps": len(history) - 1, "stopped": stopped}
    return EM(model, tuple(history), settings, time.perf_counter() - start)


def _maximise(
    listed: traces.Listed, weights: list[Tensor], learned: list[Tensor], num_inner: int, N: int
) -> None:
    """Takes the M step, at weights of the E step."""
    optimizer = torch.optim.LBFGS(learned, max_iter=num_inner, line_search_fn="strong_wolfe")
    expected = listed.averaged(weights)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -expected() / N
        value.backward()
        return value

    optimizer.step(loss)
    for p in learned:
        p.grad = None
