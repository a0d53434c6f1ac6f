r"""Variational autoencoder of binary images:

.. math:: z \sim \mathcal N(0, I), \qquad x \mid z \sim \mathrm{Bern}\big(f_\theta(z)\big),

with a multi-layer perceptron :math:`f_\theta` of one hidden layer.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114

Shapes: N images of (height, width) or any other shape, D pixels, L latent dimensions, H hidden
units; * is (N,) or (P, N).
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class VAE(nn.Module):
    """Creates the model of images of a shape, such as (28, 28)."""

    def __init__(
        self, image_shape: Sequence[int], latent_dim: int = 20, hidden_dim: int = 400
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim = tuple(image_shape), latent_dim
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, math.prod(image_shape)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, *image_shape), and returns it; or returns a dream."""
        prior = dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)  # (*, L)
            logits = self.decoder(z).unflatten(-1, self.image_shape)  # (*, height, width)
            pixels = dist.Bernoulli(logits=logits).to_event(len(self.image_shape))
            return pyro.sample("x", pixels, obs=x)
