r"""Guide for :mod:`models.naive_bayes`: a classifier :math:`g_\phi` of one hidden layer and

.. math:: q(k \mid x) = \mathrm{Cat}\Big(\mathrm{softmax}\big(g_\phi(\log(1 + x))\big)\Big).

The logarithm keeps counts of any size in reach. Shapes as in the model, H hidden units.
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn


class NaiveBayesGuide(nn.Module):
    """Creates the classifier of D features into K classes; H is an arbitrary default."""

    def __init__(self, obs_dim: int, num_classes: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(obs_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, num_classes),
        )

    def forward(self, x: Tensor) -> None:
        """Samples k given x, of shape (N, D)."""
        logits = self.encoder(x.log1p())  # (N, K)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(logits=logits))  # (*,)
