r"""Topic models with Gaussian latents: documents mix K topics in proportions that are a softmax,

.. math:: h \sim \mathcal N(0, s^2 I), \qquad \theta = \mathrm{softmax}(h), \qquad
    x \mid \theta \sim \mathrm{Mult}\big(n, p(\theta)\big),

of words whose probabilities are those of one of

.. math::
    \text{mixture} &:& p = \textstyle\sum_k \theta_k\, \mathrm{softmax}(W_k) \\
    \text{product} &:& p = \mathrm{softmax}\big(\mathrm{BN}(\theta^\top W)\big) \\
    \text{linear} &:& p = \mathrm{softmax}\big((\log\theta - \overline{\log\theta})^\top W + b\big).

The mixture is AVI-LDA, GSM where s = 1: the tokens' topics are summed out. The product is ProdLDA,
whose experts are normalised over documents (:mod:`models.bags`). The linear one is NVDM: the
logarithm of θ, less its mean over topics, is h less its mean, a Gaussian of K - 1 dims. With embeddings,
:math:`W = A R^\top` of topics A and words R: ETM, where it is a mixture.

The scale s is that of the Laplace approximation to Dir(α) in the basis of the softmax,
:math:`s^2 = (1 - 1 / K) / \alpha`, or 1. A learned prior is :math:`\mathcal N(\mu, C C^\top)`, in which
topics may go together: what GSM has as a linear layer before its softmax.

References:
    | Autoencoding variational inference for topic models (Srivastava & Sutton, 2017), AVI-LDA, ProdLDA
    | https://arxiv.org/abs/1703.01488

    | Discovering discrete latent topics with neural variational inference (Miao et al., 2017), GSM
    | https://arxiv.org/abs/1706.00359

    | Neural variational inference for text processing (Miao et al., 2016), NVDM
    | https://arxiv.org/abs/1511.06038

    | Topic modeling in embedding spaces (Dieng, Ruiz & Blei, 2020), ETM
    | https://arxiv.org/abs/1907.04907

    | LDAvis: a method for visualizing and interpreting topics (Sievert & Shirley, 2014), relevance
    | https://aclanthology.org/W14-3110

Shapes: N documents, V words of the vocabulary, K topics, E embedding dims; * is (N,) or (P, N).
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.bags import BatchNorm, check_counts, normal_points
from pplvm.models.counts import Multinomial

LIKELIHOODS = ("mixture", "product", "linear")

# How much faster than all else the topics of a mixture are learned, which keeps them from staying alike:
# as fast, two of five merged at every third seed of a corpus with known topics. The value is arbitrary,
# and does not suffice on 20 Newsgroups, where of 50 topics many share their likeliest words.
_FASTER = 10.0

_OWN = 0.03  # the share of a topic that is a document's own at the start; arbitrary


class NeuralLDA(nn.Module):
    """Creates the model of bags of words.

    Args:
        num_words: V.
        num_topics: K, an arbitrary default; at least 2.
        likelihood: "mixture", "product" or "linear".
        alpha: α of the Dirichlet that the prior approximates, or None for a standard Gaussian.
        embedding_dim: E of embeddings for topics and words, or None for a free W.
        dropout: The share of a document's topics that are left out in training, of a product. Draws
            then differ in more than their latents, so that objectives of several particles refuse it.
        learn_prior: Whether the mean and covariance of h are learned, from 0 and s² I on.

    Raises:
        ValueError: if an option is none of these.
    """

    def __init__(
        self,
        num_words: int,
        num_topics: int = 20,
        *,
        likelihood: str = "mixture",
        alpha: float | None = None,
        embedding_dim: int | None = None,
        dropout: float = 0.0,
        learn_prior: bool = False,
    ) -> None:
        super().__init__()
        _check_options(num_topics, likelihood, alpha)
        V, K, E = num_words, num_topics, embedding_dim
        self.num_words, self.likelihood = V, likelihood
        self.register_buffer("scale", prior_scale(K, alpha))  # (K,): s
        if learn_prior:
            self.mu = nn.Parameter(torch.zeros(K))
            self.log_diagonal = nn.Parameter(self.scale.log())  # (K,): of C
            self.below = nn.Parameter(torch.zeros(K, K))  # of C; its other entries are not used
        if E is None:
            self.W = nn.Parameter(torch.randn(K, V) * (2 / (K + V)) ** 0.5)  # Glorot & Bengio
        else:
            self.A = nn.Parameter(torch.randn(K, E) / E**0.5)
            self.R = nn.Parameter(torch.randn(V, E))
        self.dropout = nn.Dropout(dropout)
        if likelihood == "product":
            self.norm = BatchNorm(V, scaled=True)
        if likelihood == "linear":
            self.b = nn.Parameter(torch.zeros(V))

    def prior(self) -> tuple[Tensor, Tensor]:
        """Returns the mean (K,) of h and C, (K, K), lower triangular, of its covariance C C^T."""
        if not hasattr(self, "mu"):
            return torch.zeros_like(self.scale), self.scale.diag()
        return self.mu, self.below.tril(-1) + self.log_diagonal.exp().diag()

    def weights(self) -> Tensor:
        """Returns W, (K, V)."""
        if not hasattr(self, "W"):
            return self.A @ self.R.T
        return _FASTER * self.W if self.likelihood == "mixture" else self.W

    def word_logits(self, theta: Tensor) -> Tensor:
        """Returns the logits (*, V) of words at proportions (*, K)."""
        W = self.weights()
        if self.likelihood == "mixture":
            return (theta @ W.softmax(-1)).log()
        if self.likelihood == "product":
            return self.norm(self.dropout(theta) @ W)
        log_theta = theta.clamp(min=torch.finfo(theta.dtype).tiny).log()
        return (log_theta - log_theta.mean(-1, keepdim=True)) @ W + self.b

    def word_probs(self, theta: Tensor) -> Tensor:
        """Returns the probabilities (N, V) of words at proportions (N, K)."""
        return self.word_logits(theta).softmax(-1)

    def topics(self) -> Tensor:
        """Returns the words of each topic, (K, V), rows that sum to 1.

        Those of a document that is of one topic alone; where the likelihood is linear, which has no
        such document, of one whose h is 1 there and 0 elsewhere. Where it is a product, common words
        lead all such documents, and topics are twice as far from the average one, as
        :math:`p_k(w)^2 / p(w)`: the relevance of words at λ = 1/2.
        """
        one = torch.eye(len(self.scale)).to(self.scale)
        if self.likelihood == "product":
            return (2 * self.word_logits(one) - self.norm.bias).softmax(-1)
        return self.word_probs(one.softmax(-1) if self.likelihood == "linear" else one)

    def mean_proportions(self) -> Tensor:
        """Returns the mean proportions before any word is seen, (K,); if learned, at fixed points."""
        if not hasattr(self, "mu"):
            return torch.full_like(self.scale, 1 / len(self.scale))
        mu, C = self.prior()
        return (mu + normal_points(len(mu)).to(mu) @ C.T).softmax(-1).mean((0, 1))

    def start_near(self, x: Tensor) -> None:
        """Has common words common, and each topic of a mixture near a document, before it is learned.

        Args:
            x: Counts of random documents, (M, V) with M at least K; of a mixture the first K are those.
                Words start with their frequencies in all of them.
        """
        self.check_data(x)
        K = len(self.scale)
        if len(x) < K:
            raise ValueError(f"'x' has {len(x)} documents: give at least as many as topics, {K}.")
        common = x.sum(0) + 0.5  # (V,)
        common = common / common.sum()
        with torch.no_grad():
            if self.likelihood == "mixture" and hasattr(self, "W"):
                own = x[:K] / x[:K].sum(-1, keepdim=True).clamp(min=1)  # (K, V)
                self.W.copy_(torch.lerp(common, own, _OWN).log() / _FASTER)
            elif self.likelihood != "mixture":
                bias = self.b if self.likelihood == "linear" else self.norm.bias
                bias.copy_(common.log())

    def check_data(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless x is of shape (N, V) and of counts."""
        check_counts(x, self.num_words)

    def forward(self, x: Tensor) -> Tensor:
        """Observes counts x, of shape (N, V), and returns them; unconditioned, returns a dream."""
        with pyro.plate("data", len(x), dim=-1):
            if hasattr(self, "mu"):
                prior = dist.MultivariateNormal(self.mu, scale_tril=self.prior()[1])
            else:
                prior = dist.Normal(0.0, self.scale).to_event(1)
            h = pyro.sample("h", prior)  # (*, K)
            words = Multinomial(x.sum(-1), logits=self.word_logits(h.softmax(-1)))
            return pyro.sample("x", words, obs=x)  # (*, V)


def prior_scale(num_topics: int, alpha: float | None) -> Tensor:
    """Returns s of a Dirichlet's concentration α, or 1 for None, K times."""
    s = 1.0 if alpha is None else math.sqrt((1 - 1 / num_topics) / alpha)
    return torch.full((num_topics,), s)


def _check_options(num_topics: int, likelihood: str, alpha: float | None) -> None:
    if num_topics < 2:
        raise ValueError(f"'num_topics' is {num_topics}: give at least 2.")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"'likelihood' should be one of {LIKELIHOODS}, got '{likelihood}'.")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"'alpha' is {alpha}: give a concentration above 0, or None.")
