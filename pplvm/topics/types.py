"""What every answer about topics can be asked, however it was found.

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["TopicModel"]

from typing import Protocol

from scipy.sparse import csr_array
from torch import Tensor


class TopicModel(Protocol):
    """Topics, and the proportions in which documents have them."""

    topics: Tensor  # (K, V): the probabilities of words, rows sum to 1

    def proportions(self, counts: csr_array) -> Tensor:
        """Returns the mean proportions given the words of documents (N, V), new ones too: (N, K)."""

    def word_probs(self, theta: Tensor) -> Tensor:
        """Returns the probabilities (N, V) of words at proportions (N, K)."""
