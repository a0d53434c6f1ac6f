"""What a fit of a topic model found, asked as every answer about topics is.

Shapes: N documents, V words of the vocabulary, K topics, B documents of a minibatch.
"""

__all__ = ["FittedTopics"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from pplvm.batches import check_count
from pplvm.fit import Fit
from pplvm.parameters import module_of


@dataclass(frozen=True, eq=False)
class FittedTopics:
    """A :class:`~pplvm.topics.TopicModel` of a fit.

    Its guide has ``proportions``, its model ``mean_proportions``, and one of them ``topics``, as those
    of ``models.lda`` and ``models.neural_lda`` have. Counts are made dense by the minibatch.

    Args:
        fit: The fit, of counts or of tokens.
        batch_size: B, arbitrary. A guide with parameters for each document wants all at once.

    Raises:
        ValueError: if the fit is of another story, or none, or if B is no whole number above 0.
    """

    fit: Fit
    batch_size: int = 1000

    def __post_init__(self) -> None:
        """Checks that the fit is of a topic model."""
        check_count("batch_size", self.batch_size)
        if not hasattr(self.fit, "guide"):
            raise ValueError(
                f"'fit' should be what pplvm.fit returned, got {type(self.fit).__name__}: an answer of "
                "another kind is asked for its topics itself."
            )
        asked = (
            (self._guide, "proportions"), (self._model, "mean_proportions"), (self._source, "topics"),
        )  # fmt: skip
        if not all(hasattr(program, name) for program, name in asked):
            raise ValueError(
                f"'fit' is of {type(self._model).__name__} and {type(self._guide).__name__}, which are "
                "asked for no topics: give a fit of models.lda or models.neural_lda."
            )

    @cached_property
    def topics(self) -> Tensor:
        """The probabilities of words, (K, V), rows sum to 1."""
        with torch.no_grad():
            return self._source.topics().cpu()

    def proportions(self, counts: csr_array) -> Tensor:
        """Returns the mean proportions given the words of documents (N, V), new ones too: (N, K).

        Without a word they are those of the prior; a network would make something even of nothing.
        """
        counts, rows = csr_array(counts), []
        p = next(self._guide.parameters())
        with torch.no_grad():
            for start in range(0, counts.shape[0], self.batch_size):
                dense = counts[start : start + self.batch_size].toarray()  # (B, V)
                x = torch.as_tensor(dense.astype(np.float64)).to(p)
                self._guide.check_data(x)
                theta = self._guide.proportions(x)  # (B, K)
                empty = (x == 0).all(-1, keepdim=True)
                rows.append(torch.where(empty, self._model.mean_proportions(), theta).cpu())
        return torch.cat(rows) if rows else self.topics.new_empty(0, len(self.topics))

    def word_probs(self, theta: Tensor) -> Tensor:
        """Returns the probabilities (N, V) of words at proportions (N, K)."""
        if not hasattr(self._model, "word_probs"):
            return theta @ self.topics
        p = next(self._model.parameters())
        with torch.no_grad():
            return self._model.word_probs(theta.to(p)).cpu()

    @property
    def _model(self) -> torch.nn.Module | None:
        return module_of(self.fit.model)

    @property
    def _guide(self) -> torch.nn.Module | None:
        return module_of(self.fit.guide)

    @property
    def _source(self) -> torch.nn.Module | None:
        return self._model if hasattr(self._model, "topics") else self._guide
