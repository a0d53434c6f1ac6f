"""Documents of an E step, laid side by side: rows of about the same length, padded to the longest.

Shapes: N documents, B of them in a block, T different words of the longest of a block.
"""

__all__ = ["Block", "blocks", "check_counts", "lengths", "log_coefficients", "word_totals"]

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

_READ, _ENTRIES = 4096, 32768  # documents at a time, entries of a block: a few MB of caches


class Block(NamedTuple):
    """Documents of about the same length."""

    rows: Tensor  # (B,): their places
    words: Tensor  # (B, T), int64: 0 where there is none
    counts: Tensor  # (B, T): 0 where there is none


def blocks(counts: csr_array, dtype: torch.dtype) -> Iterator[Block]:
    """Yields all documents (N, V), which are read a few thousand at a time."""
    for start in range(0, counts.shape[0], _READ):
        part = counts[start : start + _READ]
        lengths = np.diff(part.indptr)
        order = np.argsort(lengths, kind="stable")
        for rows in _cut(order, lengths):
            yield _padded(part[rows], torch.from_numpy(start + rows), dtype)


def _cut(order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yields stretches of documents of rising length with no more than so many entries."""
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * lengths[order[last]] <= _ENTRIES:
            last += 1
        yield order[first:last]
        first = last


def _padded(part: csr_array, rows: Tensor, dtype: torch.dtype) -> Block:
    lengths = np.diff(part.indptr)
    inside = np.arange(max(1, lengths.max())) < lengths[:, None]  # (B, T)
    words, counts = np.zeros(inside.shape, np.int64), np.zeros(inside.shape)
    words[inside], counts[inside] = part.indices, part.data
    return Block(rows, torch.from_numpy(words), torch.from_numpy(counts).to(dtype))


def lengths(counts: csr_array) -> Tensor:
    """Returns the numbers of tokens of documents (N, V): (N,), float64.

    A sum of scipy over all of a corpus copies it into memory.
    """
    parts = [np.asarray(part.sum(1), float).ravel() for part in _parts(counts)]
    return torch.from_numpy(np.concatenate([np.zeros(0), *parts]))


def word_totals(counts: csr_array) -> Tensor:
    """Returns the numbers of tokens of words, of documents (N, V): (V,), float64."""
    totals = np.zeros(counts.shape[1])
    for part in _parts(counts):
        totals += np.asarray(part.sum(0), float).ravel()
    return torch.from_numpy(totals)


def _parts(counts: csr_array) -> Iterator[csr_array]:
    for start in range(0, counts.shape[0], _READ):
        yield counts[start : start + _READ]


def log_coefficients(counts: csr_array) -> Tensor:
    """Returns the log of the multinomial coefficient of each document, (N,) in float64."""
    found = []
    for part in _parts(counts):
        part = part.astype(np.float64)
        logs = part.copy()
        logs.data = torch.from_numpy(part.data + 1).lgamma().numpy()
        totals = torch.from_numpy(np.asarray(part.sum(1)).reshape(-1))
        found.append((totals + 1).lgamma() - torch.from_numpy(np.asarray(logs.sum(1)).reshape(-1)))
    return torch.cat(found)


def check_counts(counts: csr_array, num_words: int | None = None) -> csr_array:
    """Returns counts in sparse rows, or raises a ``ValueError`` that says what is wrong with them.

    Args:
        counts: A sparse matrix (N, V) of any format.
        num_words: V, if it is known.
    """
    if not hasattr(counts, "tocsr"):
        raise ValueError(
            f"'counts' should be a sparse matrix of scipy, got {type(counts).__name__}: use "
            "scipy.sparse.csr_array, or pplvm.text.bag_of_words."
        )
    counts = counts if counts.format == "csr" else csr_array(counts)
    if num_words is not None and counts.shape[1] != num_words:
        raise ValueError(
            f"'counts' has {counts.shape[1]} words, but the topics have {num_words}: count the words "
            "of the same vocabulary."
        )
    if min(counts.shape) == 0:
        raise ValueError(f"'counts' is empty, got shape {counts.shape}: give documents with words.")
    for start in range(0, counts.shape[0], _READ):
        part = counts[start : start + _READ]
        bad = ~((part.data >= 0) & (part.data == np.floor(part.data)) & np.isfinite(part.data))
        if bad.any():
            first = int(np.searchsorted(part.indptr, bad.argmax(), side="right")) - 1
            raise ValueError(
                f"'counts' has {part.data[bad.argmax()]} in document {start + first}: counts are 0, "
                "1, 2, …, so give no weights such as tf-idf."
            )
    return counts
