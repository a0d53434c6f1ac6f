r"""Sigmoid belief network of binary images, M layers of binary units one above the other:

.. math:: z_M \sim \mathrm{Bern}\big(\sigma(b)\big), \qquad
    z_l \mid z_{l+1} \sim \mathrm{Bern}\big(\sigma(f_l(z_{l+1}))\big), \qquad
    x \mid z_1 \sim \mathrm{Bern}\big(\sigma(f_0(z_1))\big),

with the logistic function :math:`\sigma` and linear maps :math:`f_l`, or in the non-linear network
multi-layer perceptrons of two hidden layers of tanh.

The story is told from the top, M, down to the image. What is said of z holds for values between 0
and 1 as well: a relaxation puts such in the place of the units.

References:
    | Connectionist learning of belief networks (Neal, 1992)
    | https://doi.org/10.1016/0004-3702(92)90065-6

    | Neural variational inference and learning in belief networks (Mnih & Gregor, 2014)
    | https://arxiv.org/abs/1402.0030

    | The non-linear network: REBAR: Low-variance, unbiased gradient estimates for discrete latent
      variable models (Tucker et al., 2017)
    | https://arxiv.org/abs/1703.07370

Shapes: N images of (height, width) or any other shape, D pixels, L units of a layer, H hidden
units of a perceptron; * is (N,) or (P, N).
"""

import itertools
import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class SigmoidBeliefNetwork(nn.Module):
    """Creates the model of images of a shape, such as (28, 28).

    Args:
        image_shape: Of one image.
        latent_dims: How many units each layer has, L of "z1", next to the image, first.
        hidden_dim: H of the non-linear network, or None for the linear one.
        mean: The mean image, at whose log-odds the bias of the pixels starts; those of pixels
            that hardly ever differ are drawn back to 0.01 and 0.99, an arbitrary choice.

    Raises:
        ValueError: if there is a layer without units, or the mean has another shape.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dims: Sequence[int] = (200,),
        hidden_dim: int | None = None,
        *,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        sizes = layer_sizes(image_shape, latent_dims)  # (D, L of z1, …, L of zM)
        self.prior = nn.Parameter(torch.zeros(sizes[-1]))  # b, (L,): logits
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(link(above, below, hidden_dim) for below, above in pairs)
        if mean is not None:
            last = self.layers[0] if hidden_dim is None else self.layers[0][-1]
            odds = flat_mean(mean, image_shape).clamp(0.01, 0.99).logit()
            last.bias = nn.Parameter(odds)

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, *image_shape), and returns it; or returns a dream."""
        logits = self.prior  # (L,)
        with pyro.plate("data", len(x), dim=-1):
            for number, layer in reversed(list(enumerate(self.layers, start=1))):
                units = dist.Bernoulli(logits=logits).to_event(1)
                z = pyro.sample(f"z{number}", units)  # (*, L)
                logits = layer(z)  # (*, L) of the layer below, at last (*, D)
            logits = logits.unflatten(-1, self.image_shape)  # (*, height, width)
            pixels = dist.Bernoulli(logits=logits).to_event(len(self.image_shape))
            return pyro.sample("x", pixels, obs=x)


def layer_sizes(image_shape: Sequence[int], latent_dims: Sequence[int]) -> tuple[int, ...]:
    """Returns how many units there are, those of the image first, if every layer has some."""
    sizes = (math.prod(image_shape), *latent_dims)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"'latent_dims' is {tuple(latent_dims)} for images of shape {tuple(image_shape)}: give "
            "the units of one layer or more, at least 1 each, such as (200,)."
        )
    return sizes


def link(fan_in: int, fan_out: int, hidden_dim: int | None) -> nn.Module:
    """Returns the map from one layer to logits of the next: linear unless it has hidden units."""
    if hidden_dim is None:
        return nn.Linear(fan_in, fan_out)
    return nn.Sequential(
        nn.Linear(fan_in, hidden_dim),
        nn.Tanh(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.Tanh(),
        nn.Linear(hidden_dim, fan_out),
    )


def flat_mean(mean: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Returns a mean image as a new (D,) of the dtype that parameters have."""
    if tuple(mean.shape) != tuple(image_shape):
        raise ValueError(
            f"'mean' has shape {tuple(mean.shape)}, but images have {tuple(image_shape)}: give the "
            "mean of the images, x.mean(0)."
        )
    return mean.detach().flatten().to(torch.get_default_dtype(), copy=True)
