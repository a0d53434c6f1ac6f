r"""What is known of a topic model at the documents that it was learnt from, in a few numbers.

The coherence of a topic is the mean normalised pointwise mutual information of the pairs among its
most probable words, with p the shares of documents that have a word, or both,

.. math:: \mathrm{NPMI}(v, w) = \log \frac{p(v, w)}{p(v) p(w)} / (-\log p(v, w)),

and -1 for words that never meet.

References:
    | Normalized (pointwise) mutual information in collocation extraction (Bouma, 2009)
    | https://svn.spraakdata.gu.se/repos/gerlof/pub/www/Docs/npmi-pfd.pdf

    | Topic modeling in embedding spaces (Dieng, Ruiz & Blei, 2020): diversity
    | https://arxiv.org/abs/1907.04907

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["Overview", "check_words", "diversity", "npmi", "overview"]

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from pplvm.text.corpus import Corpus
from pplvm.topics import summaries
from pplvm.topics.types import TopicModel


@dataclass(frozen=True, eq=False)
class Overview:
    """Numbers of a topic model that outlive the documents: they are kept with it."""

    shares: Tensor  # (V,): of words in all tokens
    prevalence: Tensor  # (K,): of topics in all tokens
    coherence: Tensor  # (K,): NPMI of the ten most probable words
    diversity: float
    num_documents: int
    num_tokens: int
    warnings: tuple[str, ...]
    perplexity: float | None = None  # of held-out documents
    num_held_out: int = 0


def overview(model: TopicModel, corpus: Corpus, theta: Tensor | None = None) -> Overview:
    """Returns what a report and a saved model say of topics.

    Args:
        model: The topics.
        corpus: The documents that they were learnt from.
        theta: The proportions of these documents, (N, K), if they are at hand.

    Raises:
        ValueError: if model and corpus differ in the number of words.
    """
    check_words(model, corpus)
    topics = model.topics.detach().cpu()
    if theta is None:
        theta = model.proportions(corpus.counts).detach().cpu()
    n = summaries.lengths(corpus.counts)
    return Overview(
        shares=summaries.word_shares(corpus.counts),
        prevalence=summaries.prevalence(theta, n),
        coherence=npmi(topics, corpus.counts),
        diversity=diversity(topics),
        num_documents=len(corpus),
        num_tokens=int(n.sum()),
        warnings=tuple(summaries.warnings(topics, theta, corpus.counts)),
    )


def check_words(model: TopicModel, corpus: Corpus) -> None:
    """Raises a ``ValueError`` if topics and documents differ in the number of words."""
    V = model.topics.shape[1]
    if corpus.counts.shape[1] != V:
        raise ValueError(
            f"'corpus' has {corpus.counts.shape[1]} words, but the topics have {V}: count the words of "
            "the vocabulary that the topics were learnt with."
        )


# ---- coherence and diversity ----


def npmi(topics: Tensor, counts: csr_array, num_words: int = 10) -> Tensor:
    """Returns the coherence of each topic in documents (N, V): (K,); NaN of topics of one word."""
    present = (counts > 0).astype(float).tocsc()
    N, found = counts.shape[0], []
    for words in topics.topk(min(num_words, topics.shape[1])).indices.tolist():
        some = present[:, words]
        together = (
            some.T @ some
        ).toarray() / N  # shares of documents, those of single words within
        alone, pairs = together.diagonal(), np.triu_indices(len(words), 1)
        p, apart = together[pairs], np.outer(alone, alone)[pairs]
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.log(p / apart) / -np.log(p)
        each = np.where(p == 0, -1.0, np.where(p == 1, 0.0, each))  # 0: in all documents, both
        found.append(each.mean() if len(each) else np.nan)
    return torch.tensor(found)


def diversity(topics: Tensor, num_words: int = 25) -> float:
    """Returns the share of different words among the most probable ones of all topics."""
    top = topics.topk(min(num_words, topics.shape[1])).indices
    return len(top.unique()) / top.numel()
