"""Words as numbers of characters: those of a text or a list, and made-up ones.

The made-up words follow a story of four yes-or-no factors: a prefix, an ending, a third syllable
besides two others, and vowels that are all at the front (e, i) or all at the back (a, o, u) of the
mouth, those of prefix and ending included.

Shapes: N data, V characters of an alphabet, T characters of the longest word.
"""

__all__ = ["Lexicon", "small_words", "words"]

import gzip
import itertools
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CONSONANTS, FRONT, BACK = "bdfgklmnprst", "ei", "aou"
NUM_WORDS = 400


class Lexicon(NamedTuple):
    """Words as numbers of characters."""

    x: Tensor  # (N, T), int64: the i-th character of the alphabet is i, from 1 on; 0 is padding
    lengths: Tensor  # (N,), int64
    alphabet: str  # V characters

    def spell(self, x: Tensor) -> list[str]:
        """Returns rows (N, T) as words, each up to its first 0."""
        rows = (itertools.takewhile(bool, row) for row in x.tolist())
        return ["".join(self.alphabet[i - 1] for i in row) for row in rows]


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
