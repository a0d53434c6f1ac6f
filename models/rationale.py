r"""Sentiment of a sentence from some of its words, and which ones is latent:

.. math:: z_i \sim \mathrm{Bern}(p), \quad i = 1, \dots, T, \qquad
    y \mid x, z \sim \mathrm{Cat}\Big(\mathrm{softmax}\, f_\theta\Big(
        \frac{\sum_i z_i e_{x_i}}{\max(1, \sum_i z_i)}\Big)\Big),

with embeddings :math:`e` of words and a multi-layer perceptron :math:`f_\theta` of one hidden
layer. The words whose :math:`z_i` is 1 are the rationale: nothing else reaches the classifier. The
sentences x are given, not modelled. The classes come first among the data: they are what is
observed, and a dream takes their place.

What is read is the mean of the words that are selected, not of all words, so that a word says
as much in a long sentence as in a short one, and more the fewer others are selected beside it. A
rationale without words is the zero vector. A rationale may also be soft, with values in [0, 1], as
continuous relaxations of it are.

How sure of a word a posterior can be has a limit:

.. math:: \frac{p(z_i = 1 \mid x, y)}{p(z_i = 0 \mid x, y)} =
    \frac{p}{1 - p} \cdot \frac{p(y \mid x, z_i = 1)}{p(y \mid x, z_i = 0)},

where the second factor is hardly above 2 for two classes that are as frequent: p = 0.3 becomes
0.46 at most, and all other words stay at 0.3. Words stand out by their rank, then. Sharper
rationales come from an objective that weighs the divergence less than the likelihood; there may be
a code in them, such as to select words of one class alone, so that none says that it is the other.

References:
    | Rationalizing neural predictions (Lei, Barzilay & Jaakkola, 2016)
    | https://arxiv.org/abs/1606.04155

    | Interpretable neural predictions with differentiable binary variables (Bastings, Aziz & Titov,
      2019), where it is a latent variable model
    | https://arxiv.org/abs/1905.08160

Shapes: N sentences, T words of the longest of them, V words of the vocabulary, C classes, E dims
of an embedding, H hidden units; * is (N,) or (P, N).
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.sequences import check_lengths

# The logit of words beyond the end: no draw will ever select them, yet gradients stay finite.
NEVER = -50.0


class Rationale(nn.Module):
    """Creates a model of the classes of sentences; E and H are arbitrary defaults.

    Args:
        num_words: V, the padding counted, which is word 0.
        num_classes: C.
        embedding_dim: E.
        hidden_dim: H.
        prior: p, the share of words that a rationale is expected to have.

    Raises:
        ValueError: if the prior is not between 0 and 1.
    """

    def __init__(
        self,
        num_words: int,
        num_classes: int,
        embedding_dim: int = 50,
        hidden_dim: int = 50,
        prior: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise ValueError(
                f"'prior' should be above 0 and below 1, got {prior}: it is the share of words "
                "that a rationale is expected to have."
            )
        self.num_words, self.num_classes = num_words, num_classes
        self.prior_logit = math.log(prior) - math.log1p(-prior)
        self.reader = Reader(num_words, num_classes, embedding_dim, hidden_dim)

    def check_data(self, y: Tensor, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for words and classes that there are not, and empty sentences."""
        check_sentences(x, lengths, self.num_words)
        check_classes(y, x, self.num_classes)

    def forward(self, y: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes y and returns it; unconditioned, returns a dream.

        Args:
            y: The class of each sentence, 0 to C - 1, (N,).
            x: Words, 1 to V - 1, (N, T); what stands beyond the end of a sentence is not read.
            lengths: How many words each sentence has, (N,).
        """
        inside = within(x, lengths)
        logits = self.reader.embedding.weight.new_full(inside.shape, self.prior_logit)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", selection(logits, inside))  # (*, T)
            logits = self.reader(x, inside, z)  # (*, C)
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class Classifier(nn.Module):
    """Creates the same story without latents: the whole sentence is read. Arguments as above."""

    def __init__(
        self, num_words: int, num_classes: int, embedding_dim: int = 50, hidden_dim: int = 50
    ) -> None:
        super().__init__()
        self.num_words, self.num_classes = num_words, num_classes
        self.reader = Reader(num_words, num_classes, embedding_dim, hidden_dim)

    def check_data(self, y: Tensor, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for words and classes that there are not, and empty sentences."""
        check_sentences(x, lengths, self.num_words)
        check_classes(y, x, self.num_classes)

    def forward(self, y: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes y and returns it; unconditioned, returns a dream. Shapes as above."""
        inside = within(x, lengths)
        with pyro.plate("data", len(x), dim=-1):
            logits = self.reader(x, inside, inside)  # (N, C)
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


class Reader(nn.Module):
    """Creates the network from the words that are selected to the logits of the classes."""

    def __init__(
        self, num_words: int, num_classes: int, embedding_dim: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding_dim)
        # Words that are rarely seen stay near where they start, so let them say little there.
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.classify = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim),
            nn.Tanh(),
            nn.Linear(hidden_dim, num_classes),
        )

    def forward(self, x: Tensor, inside: Tensor, z: Tensor) -> Tensor:
        """Returns logits (*, C) of words x, (N, T), selected by z, (*, T), inside the sentences."""
        e = self.embedding(x * inside)  # (N, T, E)
        z = (z * inside).to(e.dtype)  # (*, T)
        total = torch.einsum("...nt,nte->...ne", z, e)  # (*, E), and no tensor (*, T, E)
        return self.classify(total / z.sum(-1, keepdim=True).clamp(min=1.0))


def within(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns where the words of x, (N, T), are inside their sentences: (N, T) of bool."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def selection(logits: Tensor, inside: Tensor) -> dist.TorchDistribution:
    """Returns the distribution of a rationale, given logits (N, T) and where there are words.

    Beyond the end of a sentence its draws are 0, and its density is 1 whatever stands there.
    """
    logits = torch.where(inside, logits, NEVER)
    return dist.Bernoulli(logits=logits).mask(inside).to_event(1)


def check_sentences(x: Tensor, lengths: Tensor, num_words: int) -> None:
    """Raises a ``ValueError`` unless x, (N, T), has words 1 to V - 1, and some in each row."""
    if x.ndim != 2 or x.is_floating_point():
        raise ValueError(
            f"'x' should be numbers of words, (N, T) and of an integer dtype, got {tuple(x.shape)} "
            f"of {x.dtype}: give the place of each word in the vocabulary."
        )
    check_lengths(x, lengths)
    if (lengths < 1).any():
        row = int((lengths < 1).nonzero()[0])
        raise ValueError(
            f"'lengths' is 0 in row {row}: leave out sentences without a word, of which there is "
            "nothing to select."
        )
    wrong = within(x, lengths) & ((x < 1) | (x >= num_words))
    if wrong.any():
        row, i = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"'x' has word {x[row, i].item()} in row {row}, but there are words 1 to "
            f"{num_words - 1}, 0 being padding: encode it as an unknown word, or build model and "
            "guide with more 'num_words'."
        )


def check_classes(y: Tensor, x: Tensor, num_classes: int) -> None:
    """Raises a ``ValueError`` unless there is a class, 0 to C - 1, for each of N sentences."""
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"'y' should be a class for each of {len(x)} sentences, of an integer dtype, got "
            f"{tuple(y.shape)} of {y.dtype}: y comes first, then x and lengths."
        )
    wrong = (y < 0) | (y >= num_classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"'y' is {y[row].item()} in row {row}: give classes from 0 to {num_classes - 1}, or "
            "build the model with more 'num_classes'."
        )
