"""Documents as bags of words: counts in sparse rows, words for columns.

Shapes: N documents, V words of the vocabulary.
"""

__all__ = ["Corpus"]

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as bags of words; the counts may lie on the disk."""

    counts: csr_array  # (N, V)
    vocabulary: tuple[str, ...]  # V words
    titles: tuple[str, ...]  # of N documents
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)  # (N,) each, such as "year"

    def __len__(self) -> int:
        return self.counts.shape[0]
