r"""Guide for :mod:`models.neural_mixture`: a classifier :math:`g_\phi` of one hidden layer and

.. math:: q(z \mid x) = \mathrm{Cat}\big(\mathrm{softmax}(g_\phi(x))\big).

Shapes as in the model.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class NeuralMixtureGuide(nn.Module):
    """Creates the classifier of D features into K states; H is an arbitrary default."""

    def __init__(self, obs_dim: int, num_states: int, hidden_dim: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(obs_dim, hidden_dim),
            nn.Tanh(),
            nn.Linear(hidden_dim, num_states),
        )

    def forward(self, x: Tensor) -> None:
        """Samples z given x, of shape (N, D)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))  # (*,)
