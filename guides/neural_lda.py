r"""Guide for :mod:`models.neural_lda`: an encoder of counts and

.. math:: (m, \log s^2) = \mathrm{BN}\big(g_\phi(\log(1 + x))\big), \qquad
    q(h \mid x) = \mathcal N\big(a m, a^2 \mathrm{diag}(s^2)\big).

Without batch normalisation of its outputs most topics die at the start of training, when the encoder
tells no document from another. As it holds the variance of m over documents at 1, a is the scale of the
prior, or proportions could not be as uneven as that has them. Shapes as in the model.

References:
    | Autoencoding variational inference for topic models (Srivastava & Sutton, 2017)
    | https://arxiv.org/abs/1703.01488
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pplvm.models.bags import Encoder, check_counts, mean_softmax
from pplvm.models.neural_lda import prior_scale


class NeuralLDAGuide(nn.Module):
    """Creates the encoder.

    Args:
        num_words: V.
        num_topics: K; it and the next two are arbitrary defaults.
        hidden_dims: The widths of the encoder's layers.
        dropout: The share of the last layer's units that are left out in training. Draws then differ in
            more than their latents, so that objectives of several particles refuse it.
        alpha: That of the model, whose scale is then a; or None for 1.
    """

    def __init__(
        self,
        num_words: int,
        num_topics: int = 20,
        hidden_dims: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.num_words = num_words
        self.register_buffer("scale", prior_scale(num_topics, alpha))  # (K,): a
        self.encoder = Encoder(num_words, hidden_dims, 2 * num_topics, dropout)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and scale of h, (N, K) each, given counts x, (N, V)."""
        m, log_v = self.encoder(x).chunk(2, dim=-1)
        return self.scale * m, self.scale * (0.5 * log_v).exp()

    def check_data(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless x is of shape (N, V) and of counts."""
        check_counts(x, self.num_words)

    def forward(self, x: Tensor) -> None:
        """Samples h given counts x, of shape (N, V)."""
        m, s = self.gaussian(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("h", dist.Normal(m, s).to_event(1))  # (*, K)

    def proportions(self, x: Tensor) -> Tensor:
        """Returns the mean proportions (N, K) of documents, counts (N, V), at fixed points."""
        return mean_softmax(*self.gaussian(x))
