r"""Guide for :mod:`models.latent_factor_words`: a word is read from both ends,

.. math:: \overrightarrow{h}_t = \mathrm{GRU}(\overrightarrow{h}_{t-1}, E_{x_t}), \qquad
    \overleftarrow{h}_t = \mathrm{GRU}'(\overleftarrow{h}_{t+1}, E_{x_t}), \qquad
    q(z \mid x) = \mathrm{Bern}\Big(\sigma\Big(U \, \tfrac 1n \textstyle\sum_t
    [\overrightarrow{h}_t, \overleftarrow{h}_t] + u\Big)\Big),

with the mean over the n characters of the word, which is 0 for a word without any.

Shapes as in the model.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.latent_factor_words import check_words


class LatentFactorWordsGuide(nn.Module):
    """Creates the network that reads; arguments as in the model, H units in each direction."""

    def __init__(
        self,
        num_characters: int,
        latent_dim: int = 10,
        embedding_dim: int = 32,
        hidden_dim: int = 64,
    ) -> None:
        super().__init__()
        self.num_characters = num_characters
        self.embeddings = nn.Embedding(num_characters + 1, embedding_dim)
        self.onwards = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.backwards = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.out = nn.Linear(2 * hidden_dim, latent_dim)

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not, or characters there are none of."""
        check_words(x, lengths, self.num_characters)

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        """Samples z given words x, of shape (N, T), and lengths, (N,)."""
        steps, lengths = torch.arange(x.shape[1], device=x.device), lengths.long()
        inside = steps < lengths[:, None]  # (N, T)
        # Turned round within its length, padding stays behind a word: neither direction reads it
        # before it has read the word, as the second of a two-way GRU would.
        turned = torch.where(inside, lengths[:, None] - 1 - steps, 0)  # (N, T)
        x = torch.where(inside, x, 0).long()
        first, _ = self.onwards(self.embeddings(x))  # (N, T, H)
        last, _ = self.backwards(self.embeddings(x.gather(1, turned)))
        h = torch.cat((first, last), -1) * inside[..., None]  # (N, T, 2 H)
        mean = h.sum(1) / lengths.clamp(min=1)[:, None]  # (N, 2 H)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.out(mean)).to_event(1))  # (*, K)
