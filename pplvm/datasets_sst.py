r"""Sentences with a sentiment: the Stanford Sentiment Treebank, and made-up ones.

Word 0 is padding, word 1 stands for all that are not in the vocabulary, and what lies beyond the
end of a sentence is 0.

The made-up reviews follow a story in which all but a few words of opinion are chatter:

.. math:: y \sim \mathrm{Bern}(1/2), \qquad m - 1 \sim \mathrm{Bern}(1/3), \qquad
    n_j \sim \mathrm{Bern}(1/10), \qquad
    a_j \mid y, n_j \sim \mathrm{Unif}(\mathcal A_{y \oplus n_j}),

for j = 1, …, m: the adjective :math:`a_j` is of the review's own sentiment, or of the other one
and has a "not" before it (:math:`n_j = 1`). Nothing else in a review depends on y.

References:
    | Recursive deep models for semantic compositionality over a sentiment treebank (Socher et al.,
      2013)
    | https://aclanthology.org/D13-1170

Shapes: N sentences, T words of the longest of them, V words of the vocabulary.
"""

__all__ = ["Reviews", "small_reviews", "sst"]

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "dev", "test")
PADDING, UNKNOWN = "", "<unknown>"
CLASSES = {
    2: ("negative", "positive"),
    5: ("very negative", "negative", "neutral", "positive", "very positive"),
}
NEUTRAL = 2
LEAF = re.compile(r"\(([0-4]) ([^ ()]+)\)")
BRACKETS = {"-LRB-": "(", "-RRB-": ")"}  # as treebanks write what would be one of their own

SIZES = {"train": 800, "dev": 100, "test": 100}
# ( A_0, A_1 ), and the chatter.
ADJECTIVES = (
    ["awful", "boring", "clumsy", "dull", "flat", "noisy", "silly", "stale", "tedious", "weak"],
    [
        "brilliant",
        "charming",
        "clever",
        "fresh",
        "funny",
        "great",
        "lovely",
        "moving",
        "sharp",
        "warm",
    ],
)
OPENINGS = (
    "we saw it on friday ,", "my sister took me to this film ,", "after all those years ,",
    "to be honest ,", "it runs for two hours and", "as far as i can tell ,",
)  # fmt: skip
SUBJECTS = (
    "the plot is", "the acting is", "the camera work is", "the music is", "the whole thing is",
    "its lead actor is", "the first half is", "the script is",
)  # fmt: skip
STRESSES = ("so", "quite", "really", "rather")
CLOSINGS = (
    "in this film", "from start to end", "and the cinema was full", "once the lights go down",
    "if you ask me", "and we went home by train",
)  # fmt: skip


class Reviews(NamedTuple):
    """Sentences and the class of each, for :mod:`pplvm.models.rationale`."""

    y: Tensor  # (N,): classes
    x: Tensor  # (N, T): words
    lengths: Tensor  # (N,)
    telling: Tensor  # (N, T), bool: words with a sentiment of their own, or that turn one
    tokens: list[list[str]]  # N sentences as they are written
    vocabulary: list[str]  # (V,)
    classes: tuple[str, ...]  # their names

    @property
    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of a story: y, x, lengths."""
        return self.y, self.x, self.lengths


class Sentence(NamedTuple):
    """One sentence before it is encoded."""

    y: int
    tokens: list[str]
    telling: list[bool]


def sst(split: str = "train", classes: int = 5, min_count: int = 2) -> Reviews:
    """Returns sentences of film reviews from the Stanford Sentiment Treebank.

    N = 8544 to "train", 1101 to "dev" and 2210 to "test" with five classes, and 6920, 872 and
    1821 with two. They come from ``sst/train.txt.gz`` and its like in the folder named by the
    environment variable PPLVM_DATA: a tree a line, such as ``(3 (2 a) (4 delight))``. Telling are
    words that annotators who saw them alone did not call neutral.

    Args:
        split: "train", "dev" or "test".
        classes: 5, or 2: the neutral sentences left out, and the very positive called positive.
        min_count: How often a word occurs at least in the training sentences, of all five classes
            and in lower case, to be in the vocabulary. With 1, "<unknown>" would never be trained.

    Raises:
        ValueError: if an argument is another, or a file is absent or of another format.
    """
    _check_split(split)
    if classes not in CLASSES:
        raise ValueError(f"'classes' should be 5 or 2, got {classes}.")
    if min_count < 1:
        raise ValueError(f"'min_count' should be at least 1, got {min_count}.")
    training = _read("train")
    sentences = training if split == "train" else _read(split)
    counts = Counter(word.lower() for sentence in training for word in sentence.tokens)
    words = [w for w, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    words = [word for word in words if counts[word] >= min_count]
    if classes == 2:
        sentences = [
            s._replace(y=int(s.y > NEUTRAL)) for s in sentences if s.y != NEUTRAL
        ]  # fmt: skip
    return _encoded(sentences, words, CLASSES[classes])


def small_reviews(split: str = "train") -> Reviews:
    """Returns reviews made up by this module's story, of two classes and at most 28 words.

    The same at each call. N = 800 to "train", 100 to "dev" and to "test". Telling are the
    adjectives and each "not".

    Raises:
        ValueError: if the split is unknown.
    """
    _check_split(split)
    chatter = " ".join((*OPENINGS, *SUBJECTS, *STRESSES, *CLOSINGS, "and .")).split()
    words = sorted({*chatter, *ADJECTIVES[0], *ADJECTIVES[1], "not"})
    random = np.random.default_rng(SPLITS.index(split))
    return _encoded([_review(random) for _ in range(SIZES[split])], words, CLASSES[2])


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"'split' should be 'train', 'dev' or 'test', got '{split}'.")


def _encoded(sentences: list[Sentence], words: list[str], classes: tuple[str, ...]) -> Reviews:
    vocabulary = [PADDING, UNKNOWN, *words]
    number = {word: i for i, word in enumerate(vocabulary)}
    unknown, T = number[UNKNOWN], max(len(s.tokens) for s in sentences)
    x = torch.zeros(len(sentences), T, dtype=torch.long)
    telling = torch.zeros(len(sentences), T, dtype=torch.bool)
    for n, sentence in enumerate(sentences):
        L = len(sentence.tokens)
        x[n, :L] = torch.tensor([number.get(word.lower(), unknown) for word in sentence.tokens])
        telling[n, :L] = torch.tensor(sentence.telling)
    return Reviews(
        y=torch.tensor([s.y for s in sentences]),
        x=x,
        lengths=torch.tensor([len(s.tokens) for s in sentences]),
        telling=telling,
        tokens=[s.tokens for s in sentences],
        vocabulary=vocabulary,
        classes=classes,
    )


# ---- the treebank ----


def _read(split: str) -> list[Sentence]:
    name, folder = f"sst/{split}.txt.gz", os.environ.get("PPLVM_DATA")
    if not folder or not (path := Path(folder, name)).is_file():
        raise ValueError(
            f"the Stanford Sentiment Treebank is not there: put '{name}' into a folder that the "
            "environment variable PPLVM_DATA names, or use small_reviews, which needs no file."
        )
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): check that it is complete, gzipped "
            "and in UTF-8, or fetch it again."
        ) from error
    # Nothing else ends a line, nor a word but a plain space: "8 1/2" has one that does not break.
    sentences = [_sentence(line.strip()) for line in text.rstrip("\n").split("\n")]
    if None in sentences:
        raise ValueError(
            f"'{path}' has no tree in line {sentences.index(None) + 1}: write one a line, as "
            "'(3 (2 a) (4 delight))', with classes 0 to 4 and words without brackets."
        )
    return sentences


def _sentence(line: str) -> Sentence | None:
    """Returns what a tree says of the sentence and of its words, None if it is no tree."""
    tree, before = line, None
    while tree != before:  # from the leaves up, until nothing is left but one leaf
        before, tree = tree, re.sub(r"\(([0-4])(?: \([0-4] [^ ()]+\))+\)", r"(\1 _)", tree)
    if not LEAF.fullmatch(tree):
        return None
    leaves = LEAF.findall(line)
    tokens = [BRACKETS.get(word, word.replace("\\", "")) for _, word in leaves]
    return Sentence(int(line[1]), tokens, [int(label) != NEUTRAL for label, _ in leaves])


# ---- the made-up reviews ----


def _review(random: np.random.Generator) -> Sentence:
    def pick(choices: Sequence[str]) -> str:  # ``choice`` may draw another in other versions
        return choices[int(len(choices) * random.random())]

    y, tokens, telling = int(random.random() < 1 / 2), [], []

    def say(words: str, tells: bool = False) -> None:
        tokens.extend(words.split())
        telling.extend([tells] * len(words.split()))

    if random.random() < 0.7:
        say(pick(OPENINGS))
    for j in range(1 + int(random.random() < 1 / 3)):
        if j > 0:
            say("and")
        say(pick(SUBJECTS))
        turned = int(random.random() < 1 / 10)
        if turned:
            say("not", tells=True)
        elif random.random() < 0.4:
            say(pick(STRESSES))
        say(pick(ADJECTIVES[y ^ turned]), tells=True)
    if random.random() < 0.7:
        say(pick(CLOSINGS))
    say(".")
    return Sentence(y, tokens, telling)
