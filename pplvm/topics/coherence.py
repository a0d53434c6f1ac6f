r"""How well the most probable words of topics go together, and how much topics differ.

With p the shares of documents that have a word, or both of two, the coherence of a pair is

.. math:: \mathrm{NPMI}(v, w) = \log \frac{p(v, w)}{p(v)\, p(w)} \Big/ \big(-\log p(v, w)\big),

-1 for words that never meet. :func:`npmi` is its mean over the pairs of a topic's words. :func:`c_v`
compares, by their cosine, the vectors of NPMI that each word has with all of a topic's words to their
sum, which agreed best with people's judgement.

Bags of words have no order, so that words meet in documents. Published values are often of words that
meet in a window of 10 (NPMI) or 110 tokens (C_v) in another corpus, and cannot be compared with these.

References:
    | Normalized (pointwise) mutual information in collocation extraction (Bouma, 2009)
    | https://svn.spraakdata.gu.se/repos/gerlof/pub/www/Docs/npmi-pfd.pdf

    | Machine reading tea leaves (Lau, Newman & Baldwin, 2014): NPMI of topics
    | https://aclanthology.org/E14-1056

    | Exploring the space of topic coherence measures (Röder, Both & Hinneburg, 2015): C_v
    | https://doi.org/10.1145/2684822.2685324

    | Topic modeling in embedding spaces (Dieng, Ruiz & Blei, 2020): diversity
    | https://arxiv.org/abs/1907.04907

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["c_v", "diversity", "npmi", "top_words"]

from collections.abc import Sequence

import numpy as np
import torch
from gensim.corpora import Dictionary
from gensim.models import CoherenceModel
from scipy.sparse import csr_array
from torch import Tensor


def npmi(topics: Tensor, counts: csr_array, num_words: int = 10) -> Tensor:
    """Returns the mean NPMI of the pairs of each topic's words, (K,), in documents (N, V).

    Args:
        topics: The probabilities of words, (K, V).
        counts: The documents in which words meet, best other ones than those that topics are of.
        num_words: How many of the most probable words; ten are usual. Of one word there is no pair,
            and the answer is NaN.
    """
    present = csr_array(counts > 0).astype(float).tocsc()
    N, found = counts.shape[0], []
    for words in _most_probable(topics, num_words).tolist():
        some = present[:, words]
        together = (some.T @ some).toarray() / N  # shares of documents; the diagonal: of one word
        alone, pairs = together.diagonal(), np.triu_indices(len(words), 1)
        p, apart = together[pairs], np.outer(alone, alone)[pairs]
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.log(p / apart) / -np.log(p)
        each = np.where(p == 0, -1.0, np.where(p == 1, 0.0, each))  # 1: in all documents, both
        found.append(each.mean() if len(each) else np.nan)
    return torch.tensor(found)


def c_v(topics: Tensor, counts: csr_array, num_words: int = 10) -> Tensor:
    """Returns gensim's C_v of each topic, (K,), in documents (N, V); arguments as of :func:`npmi`.

    It is NaN for topics with a word that is in none of the documents.
    """
    top = _most_probable(topics, num_words)
    names = [[str(w) for w in row] for row in top.tolist()]
    asked = np.zeros(counts.shape[1], bool)
    asked[top.unique().numpy()] = True
    rest = "rest"  # what else a document has: it is there, even if it has none of the words
    texts = []
    for n in range(counts.shape[0]):
        words = counts.indices[counts.indptr[n] : counts.indptr[n + 1]]
        texts.append([*map(str, words[asked[words]].tolist()), rest])
    known = Dictionary([sorted(set().union(*names)), [rest]])
    longest = max(map(len, texts))  # a window that holds any document
    model = CoherenceModel(
        topics=names, texts=texts, dictionary=known, coherence="c_v", window_size=longest + 1,
        topn=top.shape[1], processes=1,
    )  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):  # of words that are nowhere
        found = model.get_coherence_per_topic()
    return torch.tensor(np.array(found, dtype=float))


def diversity(topics: Tensor, num_words: int = 25) -> float:
    """Returns the share of different words among the most probable ones of all topics, (K, V)."""
    top = _most_probable(topics, num_words)
    return len(top.unique()) / top.numel()


def top_words(
    topics: Tensor, vocabulary: Sequence[str], num_words: int = 10
) -> list[list[tuple[str, float]]]:
    """Returns the most probable words of each topic, (K, V), with their probabilities."""
    found = torch.as_tensor(topics).topk(min(num_words, topics.shape[1]))
    return [
        [(vocabulary[w], p) for w, p in zip(words, probs, strict=True)]
        for words, probs in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _most_probable(topics: Tensor, num_words: int) -> Tensor:
    """Returns the numbers of words, (K, num_words), or as many as there are."""
    return torch.as_tensor(topics).topk(min(num_words, topics.shape[1])).indices
