r"""Guide for :mod:`models.vae`: an encoder :math:`(m, \log s) = g_\phi(x)` and

.. math:: q(z \mid x) = \mathcal N\big(m, \mathrm{diag}(s^2)\big).

Shapes as in the model.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class VAEGuide(nn.Module):
    """Creates the encoder; arguments as in the model."""

    def __init__(
        self, image_shape: Sequence[int], latent_dim: int = 20, hidden_dim: int = 400
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(image_shape), hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> None:
        """Samples z given x, of shape (N, *image_shape)."""
        m, log_s = self.encoder(x).chunk(2, dim=-1)  # (N, L) each
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(m, log_s.exp()).to_event(1))  # (*, L)
