r"""The evidence lower bound, by the score function where draws have no pathwise gradient.

With :math:`f = \log p_\theta(x, z) - \log q_\phi(z \mid x)` and any baseline b that does not depend
on :math:`z_i`,

.. math:: \nabla_\phi \mathbb{E} f = \mathbb{E} \nabla_\phi f +
    \textstyle\sum_i \mathbb{E}\, (f_i - b)\, \nabla_\phi \log q_\phi(z_i \mid \cdot),

where the second sum is over the latents without a pathwise gradient, each with those terms of f that
depend on it. Divergences are in closed form where Pyro has one.

"leave_one_out" takes as b, for each of P draws, the mean of what the P - 1 others found. With
``rao_blackwell``, the sum over states replaces the score function wherever these are few.

References:
    | Simple statistical gradient-following algorithms (Williams, 1992)
    | https://doi.org/10.1007/BF00992696

    | Black Box Variational Inference (Ranganath et al., 2014)
    | https://arxiv.org/abs/1401.0118

    | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019)
    | https://openreview.net/forum?id=r1lgTGL5DE

    | Rao-Blackwellized Stochastic Gradients for Discrete Distributions (Liu et al., 2019)
    | https://arxiv.org/abs/1810.04777

Shapes: S = PK particles for K listed states, else S = P.
"""

__all__ = ["score_function"]

import math
from collections.abc import Callable

from torch import Tensor

from pplvm.traces import Choice, Integrand, draw_choices, integrand, listed_states
from pplvm.types import Estimate


def score_function(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    baseline: float | str = 0.0,
    rao_blackwell: bool = False,
    kl_weight: float = 1.0,
) -> Estimate:
    r"""Williams, for each datum and latent. Unbiased for every baseline.

    Args:
        model: The model :math:`p_\theta(x, z)`.
        guide: The guide :math:`q_\phi(z \mid x)`; reparameterisable latents have pathwise gradients.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P averaged for each datum.
        baseline: A number, in nats, or "leave_one_out" for at least 2 particles. :class:`NVIL`
            learns better ones.
        rao_blackwell: Whether the states of the guide's discrete latents are enumerated, as many
            latents as there are up to 256 joint states; each of them is one more particle.
        kl_weight: The weight of the divergence in the loss, as ``elbo`` has it.
    """
    check_baseline(baseline, num_particles)
    listed = listed_states(guide, *data) if rao_blackwell else None
    z = draw_choices(model, guide, *data, num_particles=num_particles, listed=listed)
    parts = integrand(model, guide, z, *data, kl_weight=kl_weight)
    loss = -elbo_of(parts, num_particles, kl_weight).mean()
    for choice in parts.choices:
        b = leave_one_out(choice, num_particles) if baseline == "leave_one_out" else baseline
        signal = choice.signal - weighted(b, choice, parts.weight)
        loss = loss - steer(choice, signal, num_particles, parts.kl.shape[1])
    return Estimate(loss=loss, bound=elbo_of(parts, num_particles).detach())


def elbo_of(parts: Integrand, num_particles: int, kl_weight: float = 1.0) -> Tensor:
    """Returns the mean of the integrand over draws, and over listed states by their weights, (N,)."""
    f = parts.log_lik - kl_weight * parts.kl  # (S, N)
    return (f if parts.weight is None else parts.weight * f).sum(0) / num_particles


def steer(choice: Choice, signal: Tensor, num_particles: int, size: int) -> Tensor:
    """Returns what has the score-function gradient of a latent, as a mean over draws and data."""
    return (signal * choice.log_q).sum() / (num_particles * size)


def weighted(b: Tensor | float, choice: Choice, weight: Tensor | None) -> Tensor | float:
    """Returns a baseline for each listed state, in a shape that broadcasts to that of the signal."""
    if weight is None:
        return b
    w = weight.detach()  # (S, N) or (S, 1)
    return b * (w if choice.signal.shape[1] > 1 else w.mean(1, keepdim=True))


def leave_one_out(choice: Choice, num_particles: int) -> Tensor:
    """Returns for each draw the mean signal of the others, (S, N) or (S, 1)."""
    found = choice.signal.unflatten(0, (num_particles, -1)).sum(1)  # (P, N)
    others = (found.sum(0) - found) / (num_particles - 1)
    return others.repeat_interleave(len(choice.signal) // num_particles, dim=0)


def check_baseline(baseline: float | str, num_particles: int) -> None:
    """Raises a ``ValueError`` for a baseline that there is not, or not for so few particles."""
    if isinstance(baseline, str) and baseline != "leave_one_out":
        raise ValueError(
            f"'baseline' should be a number or 'leave_one_out', got '{baseline}': NVIL has those "
            "that are learned."
        )
    if baseline == "leave_one_out" and num_particles < 2:
        raise ValueError(
            f"'num_particles' should be at least 2 for baseline='leave_one_out', got {num_particles}."
        )
    number = isinstance(baseline, (int, float)) and math.isfinite(baseline)
    if not isinstance(baseline, str) and not number:
        raise ValueError(f"'baseline' should be a finite number, got {baseline}.")
