"""Raw texts as counts of words, read once and never held as a whole.

Words are those of scikit-learn's ``CountVectorizer``.

Shapes: N documents, V words of the vocabulary, W different words before any is left out.
"""

__all__ = ["bag_of_words"]

import contextlib
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, vstack
from sklearn.feature_extraction.text import CountVectorizer

from pplvm.text.corpus import Corpus, checked, read_corpus
from pplvm.text.npz import PART
from pplvm.text.sources import Columns, Document, documents
from pplvm.text.writer import CorpusWriter

BLOCK = 4096  # documents

Bound = Callable[[int], float]  # maps N to a number of documents


def bag_of_words(
    source: str | os.PathLike | Iterable[str],
    *,
    column: str | None = None,
    title: str | None = None,
    groups: Sequence[str] = (),
    vocabulary: Sequence[str] | None = None,
    lowercase: bool = True,
    stop_words: str | Sequence[str] | None = None,
    min_df: float = 1,
    max_df: float = 1.0,
    max_words: int | None = None,
    token_pattern: str = r"(?u)\b\w\w+\b",
    encoding: str = "utf-8",
    errors: str = "strict",
    out: str | os.PathLike | None = None,
) -> Corpus:
    """Counts the words of documents. Those without words are kept, as rows of zeros.

    Args:
        source: A folder of .txt files, each a document, at any depth, in the order of their names;
            one .txt; a .csv with a header or a .jsonl, either of which may be gzipped (.gz); or
            strings, which are gone through once.
        column: Of a .csv or .jsonl: where the texts are.
        title: Of a .csv or .jsonl: where the titles are; by default, they are the row numbers.
            Files of a folder have their paths in it for titles.
        groups: Of a .csv or .jsonl: columns to keep as the corpus's groups, whole numbers or
            numbers if all their values are.
        vocabulary: The words to count, in this order, such as those of an earlier corpus: others
            are left out, and their tokens counted by document in the corpus's ``unseen``. By
            default all words are counted but for what the next options leave out, in the order of
            the alphabet.
        lowercase: Whether "The" is "the".
        stop_words: Words to leave out: a list, or "english" for scikit-learn's list.
        min_df: Leave out words of fewer documents: a number (int) or a share (float).
        max_df: Leave out words of more documents, likewise.
        max_words: Keep so many words at most, those with most tokens; first ones if they tie.
        token_pattern: A regular expression: what a word is. By default two letters, digits or
            underscores at least, an arbitrary choice of scikit-learn's.
        encoding: Of the files.
        errors: What to do with documents whose bytes are not of the encoding: "strict" raises,
            "skip" leaves them out with a warning that says which.
        out: A .npz to write the corpus to, batch by batch, for corpora larger than memory, which is
            then what :func:`read_corpus` returns for it. The W words themselves should fit.

    Raises:
        ValueError: if a file cannot be read or decoded, an option makes no sense, or no word is left.
    """
    low, high = _check_options(min_df, max_df, max_words, errors)
    analyze = _analyzer(lowercase, stop_words, token_pattern)
    tally = _Tally(vocabulary, errors == "skip")
    stream = documents(source, Columns(column, title, tuple(groups)), encoding)
    with contextlib.ExitStack() as stack:
        folder = None
        if out is not None:
            beside = checked(out).parent
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".words-", dir=beside))
        raw = _gathered(tally.blocks(stream, analyze), tally, folder)  # (N, W)
        tally.warn(encoding)
        words, keep = np.array(list(tally.number), dtype=object), np.arange(raw.shape[1])
        if vocabulary is None:
            keep = _chosen(raw, words, low, high, max_words)
        words, parts = words[keep].tolist(), tally.described(groups)
        if out is None:
            return Corpus(raw[:, keep], words, *parts)
        with CorpusWriter(out, words) as writer:
            _write(writer, raw, keep, *parts)
    return read_corpus(out)


class _Tally:
    """What is known of the documents so far, besides their counts."""

    def __init__(self, vocabulary: Sequence[str] | None, skips: bool) -> None:
        self.growing, self.skips = vocabulary is None, skips
        given = [] if vocabulary is None else list(map(str, vocabulary))
        self.number = {word: v for v, word in enumerate(given)}  # of its column
        if len(self.number) < len(given):
            repeated = Counter(given).most_common(1)[0][0]
            raise ValueError(f"'vocabulary' has '{repeated}' more than once: name each word once.")
        if vocabulary is not None and not self.number:
            raise ValueError("'vocabulary' is empty: give at least one word, or leave it out.")
        self.titles: list[str] = []
        self.groups: list[tuple[str, ...]] = []  # of each document
        self.unseen: list[int] = []
        self.skipped: list[str] = []

    def blocks(
        self, stream: Iterable[Document], analyze: Callable[[str], list[str]]
    ) -> Iterator[csr_array]:
        """Yields the counts of some documents after others, as wide as there are words by then."""
        rows: list[dict[int, int]] = []
        for text, title, groups, where in stream:
            if text is None:
                if not self.skips:
                    raise ValueError(
                        f"{where} cannot be decoded: give its 'encoding', or leave such documents out "
                        "with errors='skip'."
                    )
                self.skipped.append(title)
                continue
            rows.append(self._count(analyze(text)))
            self.titles.append(title)
            self.groups.append(groups)
            if len(rows) == BLOCK:
                yield _stacked(rows, len(self.number))
                rows = []
        yield _stacked(rows, len(self.number))

    def _count(self, words: list[str]) -> dict[int, int]:
        """Returns how often a document has each of its words, by their numbers."""
        counts = Counter(words)
        if self.growing:
            for word in counts:
                self.number.setdefault(word, len(self.number))
        row = {self.number[word]: n for word, n in counts.items() if word in self.number}
        self.unseen.append(len(words) - sum(row.values()))
        return row

    def warn(self, encoding: str) -> None:
        """Says what was left out, and whether nothing else was there."""
        if self.skipped:
            names = ", ".join(f"'{title}'" for title in self.skipped[:5])
            more = f" and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
            warnings.warn(
                f"left out {len(self.skipped)} of {len(self.skipped) + len(self.titles)} documents that "
                f"are not {encoding}: {names}{more}",
                stacklevel=3,
            )
        if not self.titles:
            raise ValueError("'source' has no documents: check it, or give its 'encoding'.")

    def described(
        self, names: Sequence[str]
    ) -> tuple[list[str], dict[str, np.ndarray], np.ndarray | None]:
        """Returns titles, groups by name, and unseen tokens."""
        columns = zip(*self.groups, strict=True)
        groups = {name: _typed(values) for name, values in zip(names, columns, strict=True)}
        return self.titles, groups, None if self.growing else np.array(self.unseen)


def _stacked(rows: Sequence[dict[int, int]], num_words: int) -> csr_array:
    indices = np.array([v for row in rows for v in row], dtype=np.int32)
    data = np.array([n for row in rows for n in row.values()], dtype=np.int32)
    indptr = np.cumsum([0, *map(len, rows)])
    return csr_array((data, indices, indptr), shape=(len(rows), num_words))


def _gathered(blocks: Iterable[csr_array], tally: _Tally, folder: str | None) -> csr_array:
    """Returns all blocks as wide as the last one, in memory or in a file of a folder."""
    if folder is not None:
        path = Path(folder, "raw.npz")
        with CorpusWriter(path) as writer:
            for block in blocks:
                writer.append(block)
            writer.vocabulary = range(len(tally.number))
        return read_corpus(path).counts
    held = list(blocks)
    for block in held:
        block.resize(block.shape[0], len(tally.number))
    return vstack(held, format="csr")


def _write(
    writer: CorpusWriter, raw: csr_array, keep: np.ndarray, titles: list[str],
    groups: dict[str, np.ndarray], unseen: np.ndarray | None,
) -> None:  # fmt: skip
    """Writes the columns to keep, block by block."""
    for i in range(0, len(titles), BLOCK):
        rows = slice(i, i + BLOCK)
        cut = {name: values[rows] for name, values in groups.items()}
        left = None if unseen is None else unseen[rows]
        writer.append(raw[rows][:, keep], titles[rows], cut, left)


def _chosen(
    raw: csr_array, words: np.ndarray, low: Bound, high: Bound, most: int | None
) -> np.ndarray:
    """Returns the columns (V,) to keep of counts (N, W), in the order of the alphabet."""
    N, W = raw.shape
    if not W:
        raise ValueError(
            f"none of {N} documents has a word: relax 'token_pattern', or shorten 'stop_words'."
        )
    documents_of, tokens_of = np.zeros(W), np.zeros(W)
    for i in range(0, raw.nnz, PART):
        v = raw.indices[i : i + PART]
        documents_of += np.bincount(v, minlength=W)
        tokens_of += np.bincount(v, weights=raw.data[i : i + PART], minlength=W)
    rare, common = documents_of < low(N), documents_of > high(N)
    if (rare | common).all():
        advice = ["lower 'min_df'"] * bool(rare.any()) + ["raise 'max_df'"] * bool(common.any())
        raise ValueError(
            f"none of {W} words is left: {rare.sum()} are in fewer documents than 'min_df' allows, "
            f"{common.sum()} in more than 'max_df' does; {' or '.join(advice)}."
        )
    keep = sorted(np.flatnonzero(~(rare | common)), key=words.__getitem__)
    if most is not None:  # the sort is stable, so that ties go by the alphabet
        first = set(sorted(keep, key=lambda v: -tokens_of[v])[:most])
        keep = [v for v in keep if v in first]
    return np.array(keep)


def _analyzer(
    lowercase: bool, stop_words: str | Sequence[str] | None, token_pattern: str
) -> Callable[[str], list[str]]:
    if isinstance(stop_words, str) and stop_words != "english":
        raise ValueError(f"'stop_words' should be 'english' or a list, got '{stop_words}'.")
    listed = stop_words if stop_words is None or isinstance(stop_words, str) else list(stop_words)
    counter = CountVectorizer(lowercase=lowercase, stop_words=listed, token_pattern=token_pattern)
    try:
        return counter.build_analyzer()
    except (re.error, ValueError) as error:
        raise ValueError(
            f"'token_pattern' is no regular expression of a word ({error}): got {token_pattern!r}."
        ) from error


def _check_options(low: float, high: float, most: int | None, errors: str) -> tuple[Bound, Bound]:
    for name, value in (("min_df", low), ("max_df", high)):
        whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
        if not whole and not (isinstance(value, float) and 0 <= value <= 1):
            raise ValueError(
                f"'{name}' should be a number of documents, from 1 on, or a share of them between "
                f"0.0 and 1.0, got {value!r}."
            )
    if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 1):
        raise ValueError(f"'max_words' should be at least 1 and whole, got {most!r}.")
    if errors not in ("strict", "skip"):
        raise ValueError(f"'errors' should be 'strict' or 'skip', got {errors!r}.")
    least, largest = (
        (lambda N, value=value: value if isinstance(value, Integral) else value * N)
        for value in (low, high)
    )
    return least, largest


def _typed(values: Sequence[str]) -> np.ndarray:
    """Returns values as whole numbers or numbers if all of them are."""
    for kind in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            return np.array([kind(value) for value in values], np.dtype(kind))
    return np.array(values, dtype=str)
