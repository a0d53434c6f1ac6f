"""The documents that a command of topic models is about: by name, or texts of a folder or a file."""

__all__ = ["Documents", "documents", "held_out"]

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from pplvm import datasets_text
from pplvm.naming import nearest
from pplvm.text.corpus import Corpus, read_corpus


def _sparse(found: datasets_text.Corpus) -> Corpus:
    counts = csr_array(found.counts.numpy().astype(np.int64))
    return Corpus(counts, found.vocab, found.titles)


def _speeches() -> Corpus:
    corpus = _sparse(datasets_text.state_of_the_union())
    years, presidents = zip(*(title.split(" ", 1) for title in corpus.titles), strict=True)
    groups = {"year": np.array(years, dtype=int), "president": np.array(presidents)}
    return replace(corpus, groups=groups)


NAMED = {
    "small-corpus": lambda: _sparse(datasets_text.small_corpus()),
    "reuters": lambda: _sparse(datasets_text.reuters()),
    "state-of-the-union": _speeches,
}
# How texts are cut into words: arguments of scikit-learn's CountVectorizer. Arbitrary defaults.
TEXT = {"lowercase": True, "stop_words": "english", "token_pattern": r"(?u)\b[^\W\d_]{2,}\b"}
RARE, COMMON = 2, 0.9  # words in fewer documents, or in a larger share of them, are left out


class Documents(NamedTuple):
    """Documents as counts, how texts were cut into words, and sentences on what was read."""

    corpus: Corpus
    text: Mapping[str, Any]  # empty if they came as counts
    notes: list[str]


class _Texts(NamedTuple):
    texts: list[str]
    titles: tuple[str, ...]
    groups: Mapping[str, np.ndarray]


def documents(
    data: str,
    column: str | None = None,
    groups: Sequence[str] = (),
    *,
    vocabulary: Sequence[str] | None = None,
    text: Mapping[str, Any] | None = None,
) -> Documents:
    """Reads documents by name or from a folder or file, and counts their words.

    Args:
        data: A data set's name, a folder of .txt, a .txt, a .csv, a .jsonl, or a .npz of counts.
        column: Which column of a .csv or .jsonl has the texts.
        groups: Which of its columns say what documents belong to, such as "year".
        vocabulary: The words to count; by default those of the documents.
        text: How to cut texts into words, as a saved model says it; by default :data:`TEXT`.

    Raises:
        ValueError: if there is nothing to read, or if counts are of other words.
    """
    path = Path(data).expanduser()
    if "." not in data and "/" not in data and not path.exists():
        return _counted(data, nearest(data, NAMED, "data set")(), vocabulary)
    if path.suffix == ".npz":
        return _counted(data, read_corpus(path), vocabulary)
    return _cut(_texts(path, column, groups), vocabulary, dict(text or TEXT))


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


# ---- counts ----


def _counted(name: str, corpus: Corpus, vocabulary: Sequence[str] | None) -> Documents:
    if vocabulary is not None and tuple(vocabulary) != corpus.vocabulary:
        raise ValueError(
            f"'{name}' has counts of {len(corpus.vocabulary)} words, which are not the "
            f"{len(vocabulary)} of the topics: give texts, or counts of the same words."
        )
    return Documents(corpus, {}, [_read(corpus)])


# ---- texts ----


def _texts(path: Path, column: str | None, groups: Sequence[str]) -> _Texts:
    if not path.exists():
        raise ValueError(f"'{path}' is not there: check the path.")
    try:
        if path.is_dir():
            files = sorted(path.rglob("*.txt"))
            if not files:
                raise ValueError(f"'{path}' has no .txt files: give another folder.")
            titles = tuple(file.relative_to(path).as_posix() for file in files)
            return _Texts([file.read_text(encoding="utf-8-sig") for file in files], titles, {})
        if path.suffix == ".txt":
            return _Texts([path.read_text(encoding="utf-8-sig")], (path.name,), {})
        if path.suffix == ".csv":
            return _column(
                path, pd.read_csv(path, dtype=str, keep_default_na=False), column, groups
            )
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            return _column(path, pd.DataFrame(rows).fillna(""), column, groups)
    except (UnicodeDecodeError, json.JSONDecodeError, pd.errors.ParserError, OSError) as error:
        raise ValueError(
            f"'{path}' cannot be read ({error}): give texts in UTF-8, whole and unbroken."
        ) from error
    raise ValueError(
        f"'{path}' should be a folder of .txt, a .txt, .csv, .jsonl or .npz: convert it."
    )


def _column(path: Path, table: pd.DataFrame, column: str | None, groups: Sequence[str]) -> _Texts:
    names = list(map(str, table.columns))
    if column is None and len(names) == 1:
        column = names[0]
    if column is None:
        raise ValueError(f"'--column' is missing for '{path}': choose from {', '.join(names)}.")
    for name in (column, *groups):
        if name not in names:
            raise ValueError(
                f"'{path}' has no column '{name}': choose from {', '.join(names)} with --column and "
                "--groups."
            )
    titles = next((name for name in ("title", "id") if name in names and name != column), None)
    rows = table[titles].astype(str) if titles else (f"row {n}" for n in range(1, len(table) + 1))
    found = {name: _numbers(table[name]) for name in groups}
    return _Texts(table[column].astype(str).tolist(), tuple(rows), found)


def _numbers(values: pd.Series) -> np.ndarray:
    """Returns numbers where all are, such as years, or else names."""
    numbers = pd.to_numeric(values, errors="coerce")
    return values.astype(str).to_numpy(str) if numbers.isna().any() else numbers.to_numpy()


def _cut(read: _Texts, vocabulary: Sequence[str] | None, text: dict[str, Any]) -> Documents:
    words = CountVectorizer(**text).build_analyzer()
    each = [Counter(words(document)) for document in read.texts]
    total = sum(each, Counter())
    why = "not in the vocabulary"
    if vocabulary is None:
        having = Counter(word for document in each for word in document)
        N = len(each)
        least, most = (RARE, COMMON * N) if N >= 2 * RARE else (1, N)
        vocabulary = sorted(word for word, n in having.items() if least <= n <= most)
        why = f"in fewer than {RARE} documents, or in more than {100 * COMMON:g} % of them"
    counts = CountVectorizer(vocabulary={w: i for i, w in enumerate(vocabulary)}, **text)
    if vocabulary:
        found = csr_array(counts.transform(read.texts))
    else:
        found = csr_array((len(each), 0), dtype=np.int64)
    corpus = Corpus(found, tuple(vocabulary), read.titles, read.groups)
    known = set(vocabulary)
    unseen = Counter({word: n for word, n in total.items() if word not in known})
    return Documents(corpus, text, [_read(corpus), *_left_out(unseen, total.total(), why)])


def _read(corpus: Corpus) -> str:
    N, V = corpus.counts.shape
    tokens, words = _number(int(corpus.counts.sum()), "token"), _number(V, "word")
    return f"read {_number(N, 'document')}: {tokens}, a vocabulary of {words}"


def _left_out(unseen: Counter, total: int, why: str) -> list[str]:
    if not unseen:
        return []
    named = ", ".join(word for word, _ in unseen.most_common(5))
    share = 100 * unseen.total() / total
    return [
        f"left out {unseen.total():,} of {_number(total, 'token')} ({share:.1f} %): "
        f"{_number(len(unseen), 'word')} {why}, such as {named}"
    ]


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
