r"""Latent Dirichlet allocation: documents that mix K topics, each in proportions of its own.

.. math:: \beta_k \sim \mathrm{Dir}(\eta, \dots, \eta), \qquad
    \theta_d \sim \mathrm{Dir}(\alpha, \dots, \alpha), \qquad
    z_{dt} \mid \theta_d \sim \mathrm{Cat}(\theta_d), \qquad
    x_{dt} \mid z_{dt}, \beta \sim \mathrm{Cat}(\beta_{z_{dt}}),

and, with the topics :math:`z` of the tokens summed out, a bag of words for each document:

.. math:: x_d \mid \theta_d, \beta \sim \mathrm{Mult}\big(n_d, \theta_d^\top \beta\big).

:class:`LDA` is the second form and takes counts, :class:`LDATokens` the first and takes tokens.
Densities of counts have the multinomial coefficient (:mod:`models.counts`), those of tokens have not.
How many tokens a document has is given, not modelled: a dream has those of its datum.

References:
    | Latent Dirichlet allocation (Blei, Ng & Jordan, 2003)
    | https://www.jmlr.org/papers/v3/blei03a.html

    | Online learning for latent Dirichlet allocation (Hoffman, Blei & Bach, 2010)
    | https://papers.nips.cc/paper/3902-online-learning-for-latent-dirichlet-allocation

Shapes: N documents, V words of the vocabulary, K topics, T tokens of the longest document; * is (N,)
or (P, N).
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.bags import check_counts
from pplvm.models.counts import Multinomial
from pplvm.models.sequences import check_lengths


class LDA(nn.Module):
    """Creates the model of bags of words.

    Args:
        num_words: V.
        num_topics: K, an arbitrary default.
        alpha: The concentration α of proportions, a number for all topics; by default 1 / K, which is
            arbitrary, as is that of eta.
        eta: The concentration η of topics, a number for all words; by default 1 / K.
        learn_alpha: Whether to learn α, a number for each topic.
        learn_eta: Whether to learn η, one number.

    Raises:
        ValueError: if a concentration is not above 0.
    """

    def __init__(
        self,
        num_words: int,
        num_topics: int = 20,
        *,
        alpha: float | None = None,
        eta: float | None = None,
        learn_alpha: bool = False,
        learn_eta: bool = False,
    ) -> None:
        super().__init__()
        V, K = num_words, num_topics
        self.num_words, self.num_topics = V, K
        log_alpha = torch.full((K,), _log("alpha", 1 / K if alpha is None else alpha))
        log_eta = torch.full((), _log("eta", 1 / K if eta is None else eta))
        # Not learned, they are saved and moved along all the same.
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=learn_alpha)  # (K,)
        self.log_eta = nn.Parameter(log_eta, requires_grad=learn_eta)  # ()

    def sample_topics(self) -> Tensor:
        """Samples beta, (K, V) or (P, K, V)."""
        with pyro.plate("topics", self.num_topics, dim=-1):
            eta = self.log_eta.exp().expand(self.num_words)
            return pyro.sample("beta", dist.Dirichlet(eta))

    def mean_proportions(self) -> Tensor:
        """Returns the mean proportions before any word is seen, (K,)."""
        return self.log_alpha.softmax(-1)

    def check_data(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless x is of shape (N, V) and of counts."""
        check_counts(x, self.num_words)

    def forward(self, x: Tensor) -> Tensor:
        """Observes counts x, of shape (N, V), and returns them; unconditioned, returns a dream."""
        beta = self.sample_topics()
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(self.log_alpha.exp()))  # (*, K)
            return pyro.sample("x", Multinomial(x.sum(-1), theta @ beta), obs=x)  # (*, V)


class LDATokens(LDA):
    """Creates the model of tokens in their order, each with a topic; arguments as in :class:`LDA`.

    The latent z has shape (T, N), or (P, T, N) under particles, where theta has (P, 1, N, K) and beta
    (P, 1, K, V). A guide that lacks z leaves it to be summed out.
    """

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not, or words there are none of."""
        check_tokens(x, lengths, self.num_words)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes tokens and returns them; unconditioned, returns a dream, 0 beyond the lengths.

        Args:
            x: Of shape (N, T), words 0 to V - 1; what lies beyond the lengths is not looked at.
            lengths: How many tokens each document has, (N,).
        """
        beta = self.sample_topics()
        each = torch.eye(self.num_topics, dtype=beta.dtype, device=beta.device)
        inside = _inside(x, lengths)  # (N, T)
        tokens = pyro.plate("tokens", x.shape[1], dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", dist.Dirichlet(self.log_alpha.exp()))
            with tokens, pyro.poutine.mask(mask=inside.T):
                z = pyro.sample("z", dist.Categorical(theta))  # (T, N)
                # A product where beta[z] would do, were there not topics for each particle.
                words = dist.Categorical(each[z] @ beta)
                seen = torch.where(inside, x, 0).T  # (T, N)
                x_t = pyro.sample("x", words, obs=seen)
        return x if x_t is seen else x_t.T * inside


def bag(x: Tensor, lengths: Tensor, num_words: int) -> Tensor:
    """Returns the counts (N, V) of the tokens (N, T) within their lengths."""
    counts = torch.zeros(len(x), num_words, device=x.device)
    inside = _inside(x, lengths)
    return counts.scatter_add_(1, torch.where(inside, x, 0), inside.to(counts.dtype))


def check_tokens(x: Tensor, lengths: Tensor, num_words: int) -> None:
    """Raises a ``ValueError`` unless documents (N, T) have lengths (N,) and words 0 to V - 1."""
    if x.ndim != 2 or x.is_floating_point():
        raise ValueError(
            f"'x' has shape {tuple(x.shape)} and dtype {x.dtype}: give the numbers of words, whole "
            "ones, of shape (N, T)."
        )
    check_lengths(x, lengths)
    wrong = _inside(x, lengths) & ((x < 0) | (x >= num_words))
    if wrong.any():
        row, t = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"'x' is {x[row, t].item()} in row {row}, token {t}: words are 0 to {num_words - 1}."
        )


def _inside(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (N, T)


def _log(name: str, concentration: float) -> float:
    if not 0 < concentration < math.inf:
        raise ValueError(f"'{name}' is {concentration}: give a concentration above 0.")
    return math.log(concentration)
