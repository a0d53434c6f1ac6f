r"""Guide for :mod:`models.document_model`: the mean embedding of a document's tokens, in a network
of one hidden layer:

.. math:: h = \frac 1n \sum_{i=1}^n E_{x_i}, \qquad
    q(z \mid x) = \mathrm{Bern}\big(\sigma(g_\phi(h))\big),

where h of a document without tokens is 0. Shapes as in the model, H hidden units, E embedding dims.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class DocumentModelGuide(nn.Module):
    """Creates the inference network.

    Args:
        num_words: V.
        latent_dim: K; it and the next two are arbitrary defaults.
        embedding_dim: E.
        hidden_dim: H.
    """

    def __init__(
        self,
        num_words: int,
        latent_dim: int = 10,
        embedding_dim: int = 64,
        hidden_dim: int = 64,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(num_words, embedding_dim))  # (V, E)
        self.encoder = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim),
            nn.Tanh(),
            nn.Linear(hidden_dim, latent_dim),
        )

    def forward(self, x: Tensor) -> None:
        """Samples z given counts x, of shape (N, V)."""
        x = x.to(self.embeddings.dtype)
        n = x.sum(-1, keepdim=True).clamp(min=1.0)  # (N, 1); an empty document is divided by 1
        logits = self.encoder(x @ self.embeddings / n)  # (N, K)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))  # (*, K)
