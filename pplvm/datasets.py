"""Data sets that come by name: first axis N, ready for a story; float32 if measured.

They are tensors, or sparse rows where they count words.

References:
    | Digits: Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
    | https://doi.org/10.24432/C50P49

    | Iris: The use of multiple measurements in taxonomic problems (Fisher, 1936)
    | https://doi.org/10.1111/j.1469-1809.1936.tb02137.x

    | MNIST: Gradient-based learning applied to document recognition (LeCun et al., 1998)
    | https://doi.org/10.1109/5.726791
"""

__all__ = [
    "DATASETS",
    "binary_digits",
    "digits",
    "iris",
    "jsb",
    "mnist",
    "named",
    "newsgroups20",
    "reuters",
    "small_chorales",
    "small_corpus",
    "small_reviews",
    "small_topics",
    "small_words",
    "sst",
    "state_of_the_union",
    "words",
    "words_of",
]

import os
from pathlib import Path

import pooch
import torch
from scipy.sparse import csr_array
from sklearn.datasets import load_digits, load_iris
from torch import Tensor

from pplvm.datasets_chorales import jsb, small_chorales
from pplvm.datasets_corpora import newsgroups20, reuters, state_of_the_union
from pplvm.datasets_documents import small_corpus, small_topics
from pplvm.datasets_sst import small_reviews, sst
from pplvm.datasets_text import small_words, words
from pplvm.naming import nearest
from pplvm.reading import read, read_idx

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {  # and their SHA-256
    "train": (
        "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "test": (
        "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
}


def digits() -> Tensor:
    """Returns scikit-learn's digits for factor analysis: (N, D) = (1797, 61), centred.

    Grey levels were 0 to 16; the three pixels that are the same in every image are dropped.
    """
    x = torch.from_numpy(load_digits().data).float()  # (N, 64)
    x = x[:, x.amax(0) > x.amin(0)]
    return x - x.mean(0)


def binary_digits() -> Tensor:
    """Returns scikit-learn's digits as images of 0 and 1: (N, 8, 8), N = 1797.

    A pixel is 1 where it is brighter than half of the maximum: an arbitrary threshold.
    """
    x = torch.from_numpy(load_digits().images)
    return (x > x.max() / 2).float()


def iris() -> Tensor:
    """Returns scikit-learn's iris flowers: (N, D) = (150, 4), each column of mean 0 and sd 1.

    The columns are length and width of sepals, length and width of petals. The three species, fifty
    flowers of each, take turns, so that the first rows are of all of them.
    """
    x = torch.from_numpy(load_iris().data).float()  # (N, 4), species by species
    x = x.unflatten(0, (3, 50)).transpose(0, 1).flatten(0, 1)
    return (x - x.mean(0)) / x.std(0, correction=0)


def mnist(split: str = "train", binary: bool = True) -> Tensor:
    """Returns MNIST's images, (N, 28, 28): N = 60,000 to "train", 10,000 to "test".

    They come from ``mnist/mnist.npz`` in the folder named by the environment variable
    PPLVM_DATA, arrays ``x_train`` and ``x_test``, or else by download, once, into pooch's cache.
    They are thresholded at 0.5, once and for all, or else (binary=False) grey levels in [0, 1].

    Raises:
        ValueError: if the split is unknown, or the file cannot be had or has changed.
    """
    if split not in MNIST_FILES:
        raise ValueError(f"'split' should be 'train' or 'test', got '{split}'.")
    folder = os.environ.get("PPLVM_DATA")
    if folder and (local := Path(folder, "mnist", "mnist.npz")).is_file():
        (x,) = read(local, f"x_{split}")
    else:
        name, checksum = MNIST_FILES[split]
        try:
            path = pooch.retrieve(MNIST_URL + name, checksum, name, pooch.os_cache("pplvm"))
        except (OSError, ValueError) as error:  # no connection, or a checksum that differs
            what = "cannot be fetched" if isinstance(error, OSError) else "has a wrong checksum"
            raise ValueError(
                f"'{MNIST_URL}{name}' {what}: try again, or put mnist/mnist.npz into a folder "
                "that the environment variable PPLVM_DATA names."
            ) from error
        x = read_idx(path)
    x = torch.from_numpy(x).float() / 255
    return (x > 0.5).float() if binary else x


DATASETS = {
    "digits": digits,
    "binary-digits": binary_digits,
    "iris": iris,
    "mnist": mnist,
    "jsb": jsb,
    "small-chorales": small_chorales,
    "sst": lambda: sst().data,
    "small-reviews": lambda: small_reviews().data,
    "20-newsgroups": lambda: newsgroups20().counts,
    "reuters": lambda: reuters().counts,
    "state-of-the-union": lambda: state_of_the_union().counts,
    "small-corpus": lambda: small_corpus().counts,
    "small-topics": lambda: small_topics().corpus.counts,
    "small-words": lambda: small_words()[:2],  # numbers and lengths
}


def named(name: str) -> tuple[Tensor | csr_array, ...]:
    """Returns one of :data:`DATASETS` in a tuple, as :func:`read` does.

    Raises:
        ValueError: if there is no such name; it suggests the nearest.
    """
    data = nearest(name, DATASETS, "data set")()
    return data if isinstance(data, tuple) else (data,)


def words_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the words that numbers stand for in a named data set, and its classes, as texts.

    Either is empty where a data set has none: numbers of words start at 0, as columns do.
    """
    make = _TEXTS.get(name)
    made = None if make is None else make()
    return tuple(getattr(made, "vocabulary", ())), tuple(getattr(made, "classes", ()))


_TEXTS = {
    "sst": sst,
    "small-reviews": small_reviews,
    "reuters": reuters,
    "state-of-the-union": state_of_the_union,
    "20-newsgroups": newsgroups20,
    "small-corpus": small_corpus,
    "small-topics": lambda: small_topics().corpus,
}
