r"""Guide for :mod:`models.sigmoid_belief_network`: the same layers the other way up,

.. math:: q(z_1 \mid x) = \mathrm{Bern}\big(\sigma(g_1(x - \bar x))\big), \qquad
    q(z_{l+1} \mid z_l) = \mathrm{Bern}\big(\sigma(g_{l+1}(z_l))\big),

from the image up to the top. What is subtracted is the mean image :math:`\bar x`, if one is given:
units then start out undecided about an image that is like any other.

Shapes as in the model.
"""

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.sigmoid_belief_network import flat_mean, layer_sizes, link


class SigmoidBeliefNetworkGuide(nn.Module):
    """Creates the recognition network; arguments and errors as in the model."""

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
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(link(below, above, hidden_dim) for below, above in pairs)
        known = torch.zeros(sizes[0]) if mean is None else flat_mean(mean, image_shape)
        self.register_buffer("mean", known)  # (D,): not learned, but saved and moved along

    def forward(self, x: Tensor) -> None:
        """Samples z1, z2, … given x, of shape (N, *image_shape)."""
        below = x.flatten(-len(self.image_shape)) - self.mean  # (N, D)
        with pyro.plate("data", len(x), dim=-1):
            for number, layer in enumerate(self.layers, start=1):
                units = dist.Bernoulli(logits=layer(below)).to_event(1)
                below = pyro.sample(f"z{number}", units)  # (*, L)
