"""LDA by scikit-learn, as a topic model: variational EM, in batch or online.

References:
    | Online learning for latent Dirichlet allocation (Hoffman, Blei & Bach, 2010)
    | https://papers.nips.cc/paper/3902-online-learning-for-latent-dirichlet-allocation

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["ScikitTopics", "scikit_lda"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.special import digamma
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ScikitTopics:
    """Topics that scikit-learn's LatentDirichletAllocation found, float64."""

    components: Tensor  # (K, V): the concentrations of q(beta)
    alpha: float  # of the prior of proportions, the same for all topics

    @cached_property
    def topics(self) -> Tensor:
        """The mean probabilities of words, (K, V), rows sum to 1."""
        return self.components / self.components.sum(1, keepdim=True)

    def proportions(self, counts: csr_array) -> Tensor:
        """Returns the mean proportions given the words of documents (N, V): (N, K)."""
        return torch.from_numpy(self._estimator.transform(counts))

    def word_probs(self, theta: Tensor) -> Tensor:
        """Returns the probabilities (N, V) of words at proportions (N, K)."""
        return theta @ self.topics

    @cached_property
    def _estimator(self) -> LatentDirichletAllocation:
        """Builds an estimator as `fit` would have left it."""
        lam = self.components.numpy()
        estimator = LatentDirichletAllocation(len(lam), doc_topic_prior=self.alpha)
        estimator.components_, estimator.n_features_in_ = lam, lam.shape[1]
        estimator.doc_topic_prior_ = self.alpha
        estimator.exp_dirichlet_component_ = np.exp(
            digamma(lam) - digamma(lam.sum(1, keepdims=True))
        )
        return estimator


def scikit_lda(
    counts: csr_array,
    num_topics: int,
    *,
    alpha: float | None = None,
    eta: float | None = None,
    online: bool = False,
    seed: int = 0,
) -> ScikitTopics:
    """Learns LDA of documents (N, V).

    In batch, until perplexity changes by less than 0.1, or a hundred times through the documents;
    online five times, 256 documents a step. All of these are arbitrary.

    Args:
        counts: The documents.
        num_topics: K.
        alpha: The concentration of proportions; by default 1 / K, as that of topics.
        eta: The concentration of topics.
        online: Whether to learn by minibatches.
        seed: Of the first topics.
    """
    alpha = 1 / num_topics if alpha is None else alpha
    estimator = LatentDirichletAllocation(
        num_topics,
        doc_topic_prior=alpha,
        topic_word_prior=eta,
        learning_method="online" if online else "batch",
        max_iter=5 if online else 100,
        evaluate_every=0 if online else 5,
        batch_size=256,
        random_state=seed,
    ).fit(counts)
    return ScikitTopics(torch.from_numpy(estimator.components_.copy()), float(alpha))
