"""What is known of a topic model at the documents that it was learnt from, in a few numbers.

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["Overview", "check_words", "overview"]

from dataclasses import dataclass

from torch import Tensor

from pplvm.text.corpus import Corpus
from pplvm.topics import summaries
from pplvm.topics.coherence import diversity, npmi
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
