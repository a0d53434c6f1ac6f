r"""Documents in two halves, to predict the one from the other: document completion.

.. math:: x^{(1)}_n \sim \mathrm{Hypergeometric}(x_n, \lceil |x_n| / 2 \rceil), \qquad
    x^{(2)}_n = x_n - x^{(1)}_n

References:
    | Evaluation methods for topic models (Wallach et al., 2009)
    | https://doi.org/10.1145/1553374.1553515

Shapes: N documents, V words of the vocabulary.
"""

__all__ = ["document_halves"]

import numpy as np
from scipy.sparse import csr_array, csr_matrix


def document_halves(counts: csr_array | csr_matrix, seed: int = 0) -> tuple[csr_array, csr_array]:
    """Splits the tokens of each document at random into those observed and those held out.

    Of a document with an odd number of tokens one more is observed, so that a document with one
    has nothing held out.

    Args:
        counts: Whole numbers (N, V).
        seed: Of the draws.

    Returns:
        Two arrays (N, V) of int32 whose sum is ``counts``.

    Raises:
        ValueError: if a count is negative or not whole.
    """
    given = csr_array(counts)
    if not np.isfinite(given.data).all() or (given.data != np.rint(given.data).clip(0)).any():
        raise ValueError("'counts' should be whole numbers from 0 on: give counts of words.")
    whole = csr_array(given, dtype=np.int64, copy=True)
    whole.sum_duplicates()
    random, observed = np.random.default_rng(seed), np.zeros_like(whole.data)
    for start, end in zip(whole.indptr[:-1], whole.indptr[1:], strict=True):
        row = whole.data[start:end]
        if len(row):
            half = -(-row.sum() // 2)
            observed[start:end] = random.multivariate_hypergeometric(row, half, method="marginals")
    halves = []
    for data in (observed, whole.data - observed):
        half = csr_array(
            (data.astype(np.int32), whole.indices, whole.indptr), whole.shape, copy=True
        )
        half.eliminate_zeros()
        halves.append(half)
    return halves[0], halves[1]
