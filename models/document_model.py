r"""Documents with K binary latents each, a bag of words apiece:

.. math:: z_k \sim \mathrm{Bern}(\pi_k), \qquad
    x_i \mid z \sim \mathrm{Cat}\big(\mathrm{softmax}(W z + b)\big), \quad i = 1, \dots, n.

Each latent that is on makes some words likelier and others less so, all of them together: unlike
the topics of a topic model they do not share the tokens out among themselves.

A document is given as the counts of its words. Their density has the multinomial coefficient, as
:class:`models.counts.Multinomial` has it, which is a constant of the data: subtract it to compare
with the density of the tokens :math:`x_1, \dots, x_n` in their order. The number n of tokens is
given, not modelled: a dream has that of its datum.

With many more words than documents W fits them by heart. A Normal prior of sd s on its elements, at the
mode, is a ``weight_decay`` of 1 / (N s^2) in torch's Adam for that parameter alone: that of the guide's
would quieten the guide, whose latents then stay where they start.

References:
    | Variational inference and deep generative models, a tutorial (Aziz & Schulz, 2018)
    | https://github.com/vitutorial/VITutorial

    | Neural variational inference and learning in belief networks, its models of documents
      (Mnih & Gregor, 2014)
    | https://arxiv.org/abs/1402.0030

Shapes: N documents, V words of the vocabulary, K latents; * is (N,) or (P, N).
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.counts import Multinomial


class DocumentModel(nn.Module):
    """Creates the model of documents.

    Args:
        num_words: V.
        latent_dim: K, an arbitrary default.
        prior: The probability of each latent, such as 0.5, or None to learn them all, from 0.5 on.
        frequencies: How often each word comes in the documents that are learned from, (V,), all
            above 0, such as counts + 1; or None, for the same of all. The model starts there: b is
            their logarithm and a parameter that starts at 0, so that a prior of it is one around
            them.

    Raises:
        ValueError: if the prior is not between 0 and 1, or the frequencies are none.
    """

    def __init__(
        self,
        num_words: int,
        latent_dim: int = 10,
        prior: float | None = None,
        frequencies: Tensor | None = None,
    ) -> None:
        super().__init__()
        if prior is not None and not 0.0 < prior < 1.0:
            raise ValueError(
                f"'prior' is {prior}: give a probability between 0 and 1, or None to learn it."
            )
        p = 0.5 if prior is None else prior
        logits = torch.full((latent_dim,), math.log(p / (1.0 - p)))
        if prior is None:
            self.prior = nn.Parameter(logits)  # (K,): logits
        else:
            self.register_buffer("prior", logits)  # not learned, but saved and moved along
        self.words = nn.Linear(latent_dim, num_words)  # W, (V, K), and the parameter of b, (V,)
        common = None
        if frequencies is not None:
            common = _logarithms(frequencies, num_words).to(self.words.weight)
            nn.init.zeros_(self.words.bias)
        self.register_buffer("common", common)  # (V,)

    def logits(self, z: Tensor) -> Tensor:
        """Returns W z + b, (*, V), of latents z, (*, K)."""
        return self.words(z) if self.common is None else self.words(z) + self.common

    def forward(self, x: Tensor) -> Tensor:
        """Observes counts x, of shape (N, V), and returns them; unconditioned, returns a dream."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))  # (*, K)
            bag = Multinomial(x.sum(-1), logits=self.logits(z))  # (*, V)
            return pyro.sample("x", bag, obs=x)


def _logarithms(frequencies: Tensor, num_words: int) -> Tensor:
    """Returns logarithms that are 0 on average."""
    f = torch.as_tensor(frequencies).double()
    if f.shape != (num_words,) or not (f.isfinite() & (f > 0)).all():
        raise ValueError(
            f"'frequencies' should be ({num_words},) numbers above 0, got {tuple(f.shape)}, the least "
            f"{f.min().item() if f.numel() else None}: add 1 to counts, since words that are not "
            "among these documents may be among others."
        )
    return f.log() - f.log().mean()
