"""The documents that a command of topic models is about: by name, or texts of a folder or a file."""

__all__ = ["Documents", "Reading", "documents", "held_out"]

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pplvm import datasets
from pplvm.naming import nearest
from pplvm.text import Corpus, bag_of_words, read_corpus
from pplvm.topics.documents import lengths

NAMED: dict[str, Callable[[], Corpus]] = {
    "small-corpus": datasets.small_corpus,
    "small-topics": lambda: datasets.small_topics().corpus,
    "reuters": datasets.reuters,
    "20-newsgroups": datasets.newsgroups20,
    "state-of-the-union": datasets.state_of_the_union,
}
# How texts are cut into words, as bag_of_words has it. Arbitrary defaults.
TEXT = {"lowercase": True, "stop_words": "english", "token_pattern": r"(?u)\b[^\W\d_]{2,}\b"}


class Reading(NamedTuple):
    """What to read of texts, as :func:`pplvm.text.bag_of_words` has it."""

    column: str | None = None
    groups: Sequence[str] = ()
    min_df: int = 2
    max_df: float = 0.9
    max_words: int | None = None
    encoding: str = "utf-8"
    errors: str = "strict"


class Documents(NamedTuple):
    """Documents as counts, how texts were cut into words, and sentences on what was read."""

    corpus: Corpus
    text: Mapping[str, Any]  # empty if they came as counts
    notes: list[str]


def documents(
    data: str,
    reading: Reading,
    *,
    vocabulary: Sequence[str] | None = None,
    text: Mapping[str, Any] | None = None,
) -> Documents:
    """Reads documents by name or from a folder or file, and counts their words.

    Args:
        data: A data set's name, a folder of .txt, a .txt, a .csv, a .jsonl, or a .npz of counts.
        reading: What to read of texts.
        vocabulary: The words to count; by default those of the documents.
        text: How to cut texts into words, as a saved model says it; by default :data:`TEXT`.

    Raises:
        ValueError: if there is nothing to read, or if counts are of other words.
    """
    path = Path(data).expanduser()
    if path.suffix == ".npz" or ("." not in data and "/" not in data and not path.exists()):
        corpus = read_corpus(path) if path.suffix == ".npz" else nearest(data, NAMED, "data set")()
        if vocabulary is not None and tuple(vocabulary) != corpus.vocabulary:
            raise ValueError(
                f"'{data}' has counts of {len(corpus.vocabulary)} words, which are not the "
                f"{len(vocabulary)} of the topics: give texts, or counts of the same words."
            )
        return Documents(corpus, {}, _notes(corpus))
    if not path.exists():
        raise ValueError(f"'{data}' is not there: check the path.")
    text = dict(text or TEXT)
    column, groups, *kept, encoding, errors = reading
    options = dict(zip(("min_df", "max_df", "max_words"), kept, strict=True))
    table = path.name.removesuffix(".gz").endswith((".csv", ".jsonl"))
    if table and column is None:
        raise ValueError(f"'--column' is missing: say which column of '{path}' has the texts.")
    with warnings.catch_warnings(record=True, action="always") as told:
        corpus = bag_of_words(
            path, column=column, groups=groups, vocabulary=vocabulary, encoding=encoding,
            errors=errors, **text, **({} if vocabulary is not None else options),
        )  # fmt: skip
    return Documents(corpus, text, [*(str(w.message) for w in told), *_notes(corpus)])


def held_out(corpus: Corpus, share: float, seed: int) -> tuple[Corpus, Corpus | None]:
    """Returns the documents to learn from, and those that are held out, if any.

    Raises:
        ValueError: if the share is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"'--held-out' should be from 0 to below 1, got {share}.")
    N = len(corpus)
    num = min(round(share * N), N - 1)
    if num < 1:
        return corpus, None
    order = np.random.default_rng(seed).permutation(N)
    return corpus.rows(np.sort(order[num:])), corpus.rows(np.sort(order[:num]))


def _notes(corpus: Corpus) -> list[str]:
    N, V = corpus.counts.shape
    n = lengths(corpus.counts)
    tokens = int(n.sum())
    found = [
        f"read {_number(N, 'document')}: {_number(tokens, 'token')}, a vocabulary of "
        f"{_number(V, 'word')}"
    ]
    if empty := int((n == 0).sum()):
        found.append(f"{_number(empty, 'document')} without a word of it, kept all the same")
    if corpus.unseen is not None and (unseen := int(corpus.unseen.sum())):
        share = 100 * unseen / (unseen + tokens)
        found.append(f"{_number(unseen, 'token')} ({share:.1f} %) of words that are not in it")
    return found


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
