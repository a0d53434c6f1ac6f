r"""Guide for :mod:`models.rationale`: words are selected apart, each in view of the whole sentence,

.. math::
    \overrightarrow h_i = \mathrm{GRU}_\phi(e_{x_1}, \dots, e_{x_i}), \qquad
    \overleftarrow h_i = \mathrm{GRU}'_\phi(e_{x_T}, \dots, e_{x_i}), \qquad
    q(z_i \mid x) = \mathrm{Bern}\big(\sigma(
        w^\top [\overrightarrow h_i, \overleftarrow h_i] + b)\big).

It does not see the class, so that it also selects words of sentences whose class is to be
predicted. What it learns of one sentence is thus the mean of the posteriors over the classes
that such a sentence has.

References:
    | Learning phrase representations using RNN encoder-decoder (Cho et al., 2014), on the GRU
    | https://arxiv.org/abs/1406.1078

Shapes as in the model, H hidden units in each direction.
"""

import pyro
import torch
from torch import Tensor, nn

from pplvm.models.rationale import check_sentences, selection, within


class RationaleGuide(nn.Module):
    """Creates the encoder of V words, the padding counted; E and H are arbitrary defaults."""

    def __init__(self, num_words: int, embedding_dim: int = 50, hidden_dim: int = 50) -> None:
        super().__init__()
        self.num_words = num_words
        self.embedding = nn.Embedding(num_words, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)  # as in the model
        self.there = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.back = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.select = nn.Linear(2 * hidden_dim, 1)

    def check_data(self, y: Tensor, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for words that there are not, and for empty sentences."""
        check_sentences(x, lengths, self.num_words)

    def logits(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the logit of selecting each of the words x, (N, T); any beyond the lengths."""
        inside = within(x, lengths)
        steps = torch.arange(x.shape[1], device=x.device)
        # A sentence is turned round within its length, so that padding comes last both ways and
        # no state that counts has seen it. Turning twice is as not turning.
        turned = torch.where(inside, lengths[:, None] - 1 - steps, steps).long()[..., None]
        e = self.embedding(x * inside)  # (N, T, E)
        there, _ = self.there(e)  # (N, T, H)
        back, _ = self.back(e.take_along_dim(turned, 1))
        both = torch.cat((there, back.take_along_dim(turned, 1)), -1)  # (N, T, 2 H)
        return self.select(both).squeeze(-1)

    def forward(self, y: Tensor, x: Tensor, lengths: Tensor) -> None:
        """Samples z given x, (N, T), and lengths, (N,); the classes y do not matter."""
        logits = self.logits(x, lengths)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", selection(logits, within(x, lengths)))  # (*, T)
