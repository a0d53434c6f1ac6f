"""A topic model of known arrays, and documents drawn from it."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from pplvm.text.corpus import Corpus

WORDS = [
    "sea",
    "ship",
    "sail",
    "port",
    "tax",
    "debt",
    "bill",
    "bank",
    "law",
    "court",
    "judge",
    "oath",
]


class Known:
    """Topics whose every document has the proportions of words that belong to each topic."""

    def __init__(self, topics: Tensor) -> None:
        self.topics = topics

    def proportions(self, counts: csr_array) -> Tensor:
        weights = torch.from_numpy(counts.toarray().astype(float)) @ self.topics.T + 1e-3
        return weights / weights.sum(1, keepdim=True)

    def word_probs(self, theta: Tensor) -> Tensor:
        return theta @ self.topics


def known(K: int = 3) -> Known:
    """Returns K topics that share a little: each prefers four of the twelve words in a row."""
    topics = torch.full((K, len(WORDS)), 0.01, dtype=torch.float64)
    for k in range(K):
        topics[k, 4 * k : 4 * k + 4] = torch.tensor([0.5, 0.3, 0.2, 0.1], dtype=torch.float64)
    return Known(topics / topics.sum(1, keepdim=True))


def corpus(N: int = 40, seed: int = 0) -> Corpus:
    """Returns documents of 5 to 30 tokens, mostly of one of three topics each."""
    random = np.random.default_rng(seed)
    theta = random.dirichlet(np.full(3, 0.2), N)
    counts = np.stack(
        [random.multinomial(random.integers(5, 30), p) for p in theta @ known().topics.numpy()]
    )
    groups = {
        "year": np.arange(1900, 1900 + N),
        "party": np.array(["whig", "tory"])[np.arange(N) % 2],
    }
    titles = tuple(f"Speech {d} <of the sea & the law>" for d in range(N))
    return Corpus(csr_array(counts), tuple(WORDS), titles, groups)
