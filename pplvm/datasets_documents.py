r"""Documents that are made up: by a story of subjects that come and go, and by LDA.

In the story of subjects, five of them come and go: each is present in a document with probability
0.4, on its own, and multiplies the probability of its own ten words by 20. The 80 words of the
vocabulary have probabilities that fall as 1, 1/2, 1/3, … before that.

The other documents are drawn from latent Dirichlet allocation, at topics that are known:

.. math:: \beta_k \sim \mathrm{Dir}(0.1), \qquad \theta_n \sim \mathrm{Dir}(0.2), \qquad
    w_{nt} \sim \mathrm{Cat}(\textstyle\sum_k \theta_{nk} \beta_k).

Their numbers are arbitrary. Draws are made of uniform ones, whose stream NumPy keeps.

References:
    | Latent Dirichlet Allocation (Blei, Ng & Jordan, 2003)
    | https://www.jmlr.org/papers/v3/blei03a.html

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["SmallTopics", "small_corpus", "small_topics"]

import itertools
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.stats import gamma
from torch import Tensor

from pplvm.datasets_text import BACK, CONSONANTS, FRONT
from pplvm.text import Corpus

SUBJECTS, WORDS_EACH, VOCABULARY, DOCUMENTS = 5, 10, 80, 200
FEWEST, MOST = 20, 60  # tokens

TOPICS, TOPIC_WORDS, TOPIC_DOCUMENTS = 5, 100, 500
SHORTEST, LONGEST = 50, 100  # tokens
ETA, ALPHA = 0.1, 0.2


class SmallTopics(NamedTuple):
    """Documents, and what they were drawn from."""

    corpus: Corpus
    topics: Tensor  # (K, V), float32, rows sum to 1
    proportions: Tensor  # (N, K), float32, rows sum to 1


def small_corpus() -> Corpus:
    """Returns documents made up by this module's story: counts (200, 80), 20 to 60 tokens each.

    The same at each call. The first fifty words belong to the five subjects, ten to each; a title
    names the subjects that are present, such as "0+3".
    """
    random = np.random.default_rng(0)
    present = random.random((DOCUMENTS, SUBJECTS)) < 0.4
    common = 1.0 / (1.0 + np.argsort(random.random(VOCABULARY)))  # in an order of its own
    belongs = np.arange(VOCABULARY) // WORDS_EACH == np.arange(SUBJECTS)[:, None]  # (5, V)
    p = common * np.where(present @ belongs, 20.0, 1.0)  # (N, V)
    titles = ["+".join(map(str, here.nonzero()[0])) or "none" for here in present]
    return Corpus(_tokens(p, FEWEST, MOST, random), _vocabulary(VOCABULARY), tuple(titles))


def small_topics() -> SmallTopics:
    """Returns documents drawn from LDA with K = 5: counts (500, 100), 50 to 100 tokens each.

    The same at each call. A title, and the group "topic", tell the topic of the largest proportion.
    """
    random = np.random.default_rng(0)
    topics = _dirichlet((TOPICS, TOPIC_WORDS), ETA, random)
    proportions = _dirichlet((TOPIC_DOCUMENTS, TOPICS), ALPHA, random)
    counts = _tokens(proportions @ topics, SHORTEST, LONGEST, random)
    largest = proportions.argmax(1)
    titles = tuple(f"mostly {k}" for k in largest)
    corpus = Corpus(counts, _vocabulary(TOPIC_WORDS), titles, {"topic": largest})
    return SmallTopics(corpus, *(torch.from_numpy(x).float() for x in (topics, proportions)))


def _tokens(p: np.ndarray, fewest: int, most: int, random: np.random.Generator) -> csr_array:
    """Draws between so many words for each row (N, V) of weights, and counts them."""
    counts = np.zeros(p.shape, np.int32)
    for row, weights in zip(counts, p, strict=True):
        total = fewest + int((most - fewest + 1) * random.random())
        # ``choice`` may draw another in other versions of NumPy.
        tokens = np.searchsorted(
            weights.cumsum() / weights.sum(), random.random(total), side="right"
        )
        np.add.at(row, tokens.clip(max=len(row) - 1), 1)
    return csr_array(counts)


def _dirichlet(
    shape: tuple[int, int], concentration: float, random: np.random.Generator
) -> np.ndarray:
    draws = gamma(concentration).ppf(random.random(shape))
    return draws / draws.sum(1, keepdims=True)


def _vocabulary(size: int) -> tuple[str, ...]:
    syllables = itertools.product(CONSONANTS, FRONT + BACK, "nrs")
    return tuple("".join(parts) for parts in itertools.islice(syllables, size))
