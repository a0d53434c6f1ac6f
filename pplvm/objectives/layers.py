r"""Binary and one-hot latents by their logits: noise, draws, means, and gradients layer by layer.

Logits :math:`\alpha` and standard noise make a draw, hard or soft:

.. math:: \zeta = \alpha + \epsilon, \qquad b = \mathrm{hard}(\zeta), \qquad
    s = \mathrm{soft}(\zeta / \lambda),

with logistic noise, the step function and the sigmoid for a binary latent; with Gumbel noise, the
maximum and the softmax for a one-hot one.

The estimators that use this have in common that they find, for one layer at a time and given the layers
before it, the gradient g in :math:`\alpha` of the mean of f; the surrogate
:math:`\langle g, \alpha \rangle` hands it to whatever made the logits.

References:
    | The Concrete Distribution (Maddison et al., 2017)
    | https://arxiv.org/abs/1611.00712

    | Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017)
    | https://arxiv.org/abs/1611.01144

Shapes: N data, P particles; * is that of the logits of a layer.
"""

__all__ = ["hard", "layerwise", "mean", "noise", "score", "soft", "uniform"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pplvm.traces import Layer, Rule, play
from pplvm.types import Estimate


def uniform(layer: Layer) -> Tensor:
    """Draws uniform numbers within (0, 1), (*)."""
    eps = torch.finfo(layer.logits.dtype).eps
    return torch.rand_like(layer.logits).clamp(eps, 1 - eps)


def noise(layer: Layer, u: Tensor) -> Tensor:
    """Maps uniform numbers to standard logistic or Gumbel ones."""
    return u.logit() if layer.binary else -(-u.log()).log()


def hard(layer: Layer, z: Tensor) -> Tensor:
    """Maps logits with noise to the states 0 and 1 that they mean, (*)."""
    if layer.binary:
        return (z > 0).to(z.dtype)
    return one_hot(z.argmax(-1), z.shape[-1]).to(z.dtype)


def soft(layer: Layer, z: Tensor, temperature: float | Tensor) -> Tensor:
    """Maps logits with noise to soft values, (*)."""
    return (z / temperature).sigmoid() if layer.binary else (z / temperature).softmax(-1)


def mean(layer: Layer) -> Tensor:
    """Returns the probabilities of a layer, (*)."""
    return soft(layer, layer.logits, 1.0)


def score(layer: Layer, value: Tensor) -> Tensor:
    """Returns the gradient of log q(value) in the logits, (*)."""
    return value - mean(layer).detach()


# What a layer's estimator is given: its place, the layer as it was drawn, its uniform numbers, f at the
# draws, and f as a function of this layer's value and a rule for the layers after it.
Gradient = Callable[[int, Layer, Tensor, Tensor, Callable[..., Tensor]], Tensor]


def layerwise(
    gradient: Gradient,
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int,
    kl_weight: float,
    kinds: Sequence[str] = ("Bernoulli", "OneHotCategorical"),
) -> Estimate:
    """Returns the estimate of the ELBO whose layers have their gradients from an estimator."""
    drawn: list[Tensor] = []

    def draw_hard(_: int, layer: Layer) -> Tensor:
        drawn.append(uniform(layer))
        return hard(layer, layer.logits.detach() + noise(layer, drawn[-1]))

    options = {"num_particles": num_particles, "kinds": kinds}
    at_draws = play(model, guide, draw_hard, *data, held=True, **options)
    value = at_draws.log_lik - kl_weight * at_draws.kl  # (P, N)
    loss = -value.mean()
    for i, layer in enumerate(at_draws.layers):

        def f(chosen: Tensor, later: Rule, i: int = i, layer: Layer = layer) -> Tensor:
            rule = _choose(at_draws.layers[:i], i, chosen, later)
            # What was drawn before this layer belongs to its logits.
            found = play(model, guide, rule, *data, fixed=layer.earlier, **options)
            return found.log_lik - kl_weight * found.kl

        g = gradient(i, layer, drawn[i], value.detach(), f)
        loss = loss - (layer.counted(g.detach()) * layer.logits).sum() / value.numel()
    bound = (at_draws.log_lik - at_draws.kl).mean(0)
    return Estimate(loss=loss, bound=bound.detach())


def _choose(before: Sequence[Layer], place: int, chosen: Tensor, later: Rule) -> Rule:
    def rule(i: int, layer: Layer) -> Tensor:
        if i < place:
            return before[i].value
        return chosen if i == place else later(i, layer)

    return rule
