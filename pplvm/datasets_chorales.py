r"""Chorales: piano rolls of sequences that differ in length, those of Bach and made-up ones.

A roll is (N, T, 88), 1 where a key sounds; column d is the MIDI pitch d + 21, a step is a
quarter note, and what lies beyond the length of a sequence is 0.

The made-up ones follow a story in which four voices sing one of six chords of a major key:

.. math:: c_0 = 1, \qquad c_t \mid c_{t-1} \sim \mathrm{Cat}(A_{c_{t-1}}), \qquad
    c_{T-2}, c_{T-1} = \text{V}, \text{I},

with a key and a length for each sequence at random. The bass sings the root of the chord, or its
third one time in five; tenor and alto sing the two other notes of the chord, the soprano any of
the three. Each of them moves to the nearest such note within its range, the soprano one time in
three to the second nearest.

References:
    | Modeling temporal dependencies in high-dimensional sequences: application to polyphonic music
      generation and transcription (Boulanger-Lewandowski et al., 2012), on the JSB chorales
    | https://arxiv.org/abs/1206.6392

Shapes: N data, T steps, D = 88 keys.
"""

__all__ = ["jsb", "small_chorales"]

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplvm.reading import read

SPLITS = ("train", "valid", "test")
KEYS, LOWEST = 88, 21  # of a piano, and the MIDI pitch of its first
JSB = Path("jsb", "jsb_chorales.npz")

MAJOR = (0, 2, 4, 5, 7, 9, 11)  # semitones above the tonic
VOICES = ((40, 57), (48, 64), (55, 71), (60, 79))  # the ranges of bass, tenor, alto, soprano
CADENCE = (4, 0)  # V, I: a chord is the degree of the scale that is its root, counted from 0
# Which of I, ii, iii, IV, V and vi follows which: arbitrary numbers, but V asks for I.
A = np.array(
    [
        [0.25, 0.10, 0.05, 0.25, 0.25, 0.10],
        [0.05, 0.15, 0.05, 0.05, 0.60, 0.10],
        [0.05, 0.05, 0.15, 0.30, 0.05, 0.40],
        [0.25, 0.15, 0.05, 0.15, 0.35, 0.05],
        [0.55, 0.05, 0.05, 0.05, 0.15, 0.15],
        [0.05, 0.35, 0.10, 0.25, 0.15, 0.10],
    ]
)
SIZES = {"train": 60, "valid": 20, "test": 20}
SHORTEST, LONGEST = 8, 32  # steps


def jsb(split: str = "train") -> tuple[Tensor, Tensor]:
    """Returns Bach's chorales, (N, T, 88), and their lengths, (N,), in quarter notes.

    N = 229 to "train", 76 to "valid" and 77 to "test", T = the longest of them. They come from
    ``jsb/jsb_chorales.npz`` in the folder named by the environment variable PPLVM_DATA: for each
    split the array ``train_packed``, of the steps of all sequences one after another with eight
    keys a byte as ``np.packbits`` has them, and ``train_lengths``.

    Raises:
        ValueError: if the split is unknown, or the file is absent or of another format.
    """
    _check_split(split)
    folder = os.environ.get("PPLVM_DATA")
    if not folder or not (path := Path(folder, JSB)).is_file():
        raise ValueError(
            f"the JSB chorales are not there: put '{JSB.as_posix()}' into a folder that the "
            "environment variable PPLVM_DATA names, or use small_chorales, which needs no file."
        )
    (packed,), (lengths,) = read(path, f"{split}_packed"), read(path, f"{split}_lengths")
    width = -(-KEYS // 8)
    if (
        packed.dtype != np.uint8
        or packed.shape[1:] != (width,)
        or lengths.ndim != 1
        or lengths.min() < 1
        or lengths.sum() != len(packed)
    ):
        raise ValueError(
            f"'{path}' should have in '{split}_packed' as many rows of {width} bytes as "
            f"'{split}_lengths' add up to, got {packed.shape} {packed.dtype} and lengths of "
            f"{lengths.sum()} steps."
        )
    rolls = np.unpackbits(packed, axis=1, count=KEYS)
    return _padded(np.split(rolls, np.cumsum(lengths)[:-1]))


def small_chorales(split: str = "train") -> tuple[Tensor, Tensor]:
    """Returns chorales made up by this module's story, (N, 32, 88) or less, and lengths, (N,).

    The same at each call. N = 60 to "train", 20 to "valid" and to "test", lengths 8 to 32.

    Raises:
        ValueError: if the split is unknown.
    """
    _check_split(split)
    random = np.random.default_rng(SPLITS.index(split))
    return _padded([_chorale(random) for _ in range(SIZES[split])])


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"'split' should be 'train', 'valid' or 'test', got '{split}'.")


def _padded(rolls: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Returns float rolls (N, T, 88) and lengths (N,)."""
    lengths = [len(roll) for roll in rolls]
    x = torch.zeros(len(rolls), max(lengths), KEYS, dtype=torch.float32)
    for row, roll in zip(x, rolls, strict=True):
        row[: len(roll)] = torch.from_numpy(roll)
    return x, torch.tensor(lengths)


def _chorale(random: np.random.Generator) -> np.ndarray:
    """Draws the roll of one chorale, (T, 88) bytes."""
    T = SHORTEST + int((LONGEST - SHORTEST + 1) * random.random())
    key = int(12 * random.random())
    chords = [0]
    while len(chords) < T - len(CADENCE):
        chords.append(_index(random, A[chords[-1]]))
    voices = [sum(ends) // 2 for ends in VOICES]  # they come from the middle of their ranges
    roll = np.zeros((T, KEYS), np.uint8)
    for t, chord in enumerate([*chords, *CADENCE]):
        tones = [(key + MAJOR[(chord + third) % 7]) % 12 for third in (0, 2, 4)]
        inverted, leaps = random.random() < 0.2 and t < T - 1, random.random() < 1 / 3
        bass = tones[1 if inverted else 0]
        rest = [tone for tone in tones if tone != bass]
        voices[0] = _near(voices[0], [bass], 0)
        voices[1] = _near(voices[1], rest, 1)
        voices[2] = _near(voices[2], [tone for tone in rest if tone != voices[1] % 12], 2)
        voices[3] = _near(voices[3], tones, 3, rank=int(leaps))
        roll[t, [note - LOWEST for note in voices]] = 1
    return roll


def _near(note: int, tones: list[int], voice: int, rank: int = 0) -> int:
    """Returns the pitch of a voice's range that is nearest to a note, or next to nearest."""
    low, high = VOICES[voice]
    pitches = [pitch for pitch in range(low, high + 1) if pitch % 12 in tones]
    return sorted(pitches, key=lambda pitch: abs(pitch - note))[rank]


def _index(random: np.random.Generator, p: np.ndarray) -> int:
    """Draws an index; ``choice`` may draw another in other versions of NumPy."""
    return min(int(np.searchsorted(p.cumsum(), random.random(), side="right")), len(p) - 1)
