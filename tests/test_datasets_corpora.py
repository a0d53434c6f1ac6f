"""Corpora: small files in the formats of the real ones, and those themselves."""

import codecs
import pickle
import urllib.error

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.utils import Bunch
from test_datasets import Bomb, one_sentence

from pplvm import datasets_corpora
from pplvm.datasets import named, newsgroups20, reuters, state_of_the_union
from pplvm.text import read_corpus

COUNTS = np.array([[0, 2, 0], [1, 0, 0], [0, 0, 0], [3, 1, 1]])
SOTU, ETM = "sotu/sotu_segments_bow.npz", "newsgroups20/bow_etm_3072.npz"
PRODLDA = "newsgroups20/bow_prodlda_exact_1995.npz"
FILES = {
    SOTU: (
        state_of_the_union,
        {
            "year": np.arange(1790, 1794, dtype=np.int16),
            "president": np.array(["Washington"] * 4),
            "party": np.array(["none"] * 4),
        },
    ),
    ETM: (newsgroups20, {"split": np.array([0, 0, 1, 2], np.uint8)}),
    PRODLDA: (
        lambda: newsgroups20(preparation="prodlda"),
        {"is_test": np.array([False, False, False, True])},
    ),
}
each_file = pytest.mark.parametrize("name", FILES)


def arrays(name, **changes) -> dict[str, np.ndarray]:
    """Those of a small file, as narrow as in the real ones."""
    table = csr_array(COUNTS)
    held = {"data": table.data.astype(np.uint8), "indices": table.indices.astype(np.uint16)}
    held |= {
        "indptr": table.indptr,
        "shape": np.array(COUNTS.shape),
        "vocab": np.array(list("xyz")),
    }
    return held | FILES[name][1] | changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPLVM_DATA", str(tmp_path))
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit"))
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
    return tmp_path


# ---- of files ----


def test_state_of_the_union_of_a_small_file(folder):
    np.savez_compressed(folder / SOTU, **arrays(SOTU))
    corpus = state_of_the_union()
    assert corpus.counts.toarray().tolist() == COUNTS.tolist()
    assert corpus.counts.dtype == np.int32  # bytes would overflow
    assert corpus.vocabulary == ("x", "y", "z")
    assert corpus.titles == tuple(f"{year} Washington" for year in range(1790, 1794))
    assert corpus.groups["year"].tolist() == [1790, 1791, 1792, 1793]
    assert set(corpus.groups) == {"year", "president", "party"}
    (x,) = named("state-of-the-union")
    assert x.toarray().tolist() == COUNTS.tolist()


def test_newsgroups_of_small_files(folder):
    np.savez_compressed(folder / ETM, **arrays(ETM))
    np.savez_compressed(folder / PRODLDA, **arrays(PRODLDA))
    for split, preparation, rows in [
        ("train", "etm", slice(2)),
        ("validation", "etm", slice(2, 3)),
        ("test", "etm", slice(3, 4)),
        ("train", "prodlda", slice(3)),
        ("test", "prodlda", slice(3, 4)),
    ]:
        corpus = newsgroups20(split, preparation)
        assert corpus.counts.toarray().tolist() == COUNTS[rows].tolist()
        assert corpus.counts.dtype == np.int32
        assert corpus.groups == {}
    (x,) = named("20-newsgroups")
    assert x.toarray().tolist() == COUNTS[:2].tolist()


def test_splits_and_preparations_are_few():
    for arguments, part in [
        (("valid",), "did you mean 'validation'?"),
        (("train", "lda"), "did you mean 'prodlda'?"),
        (("validation", "prodlda"), "'train' or 'test'"),
    ]:
        with pytest.raises(ValueError, match="'") as info:
            newsgroups20(*arguments)
        one_sentence(info, part)


@each_file
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": np.array([4, 2])},
        {"indptr": np.array([0, 9])},
        {"data": np.full(5, 0.5)},
        {"data": np.full(5, -1)},
        {"vocab": np.array(["x", "y"])},
    ],
)
def test_files_of_another_format_are_refused(folder, name, changes):
    np.savez(folder / name, **arrays(name, **changes))
    with pytest.raises(ValueError, match=r"npz' cannot be read") as info:
        FILES[name][0]()
    one_sentence(info, name, "'data'", "'vocab'")


@each_file
def test_files_without_their_groups_are_refused(folder, name):
    for group in FILES[name][1]:
        held = {key: x for key, x in arrays(name).items() if key != group}
        np.savez(folder / name, **held)
        if group != "party":
            with pytest.raises(ValueError, match=f"npz' cannot be read.*'{group}'") as info:
                FILES[name][0]()
            one_sentence(info, name)


@each_file
def test_pickles_never_run(folder, name):
    path, trace = folder / name, folder / "trace"
    np.savez(path, **arrays(name, vocab=np.array([Bomb(trace)], dtype=object)))
    with pytest.raises(ValueError, match="cannot be read"):
        FILES[name][0]()
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match="cannot be read"):
        FILES[name][0]()
    assert not trace.exists()


@pytest.mark.parametrize("name", [SOTU, PRODLDA])
def test_corpora_that_are_not_there(folder, name, monkeypatch):
    for named_at_all in (True, False):
        if not named_at_all:
            monkeypatch.delenv("PPLVM_DATA")
        with pytest.raises(ValueError, match="into a folder") as info:
            FILES[name][0]()
        one_sentence(info, f"'{name}'", "PPLVM_DATA")


# ---- 20 Newsgroups as downloaded ----

NUM_TRAIN, NUM_TEST = 260, 130
GROUPS = ["alt.atheism", "sci.space"]


def post(i: int, random: np.random.Generator) -> str:
    """A post: words of every kind, and two of its own that say where it is."""
    kinds = ("Alpha!", "beta", "gamma", "w2", "don't", "snake_case")
    text = ["Everywhere, the a", *(word for word in kinds if random.random() < 0.6)]
    text += ["onlytest " * 3] * (i >= NUM_TRAIN)  # frequent enough, but not in training
    return " ".join(text) if i % 7 else "Everywhere 42"


@pytest.fixture
def downloaded(folder):
    """The cache that scikit-learn leaves, of a few posts."""
    random, cache = np.random.default_rng(0), {}
    for subset, first, size in (("train", 0, NUM_TRAIN), ("test", NUM_TRAIN, NUM_TEST)):
        cache[subset] = Bunch(
            data=[post(first + i, random) for i in range(size)],
            target=np.arange(size) % 2,
            target_names=GROUPS,
            filenames=np.array([f"/x/{GROUPS[i % 2]}/{first + i}" for i in range(size)]),
        )
    (folder / "scikit").mkdir()
    coded = codecs.encode(pickle.dumps(cache), "zlib_codec")
    (folder / "scikit" / "20news-bydate_py3.pkz").write_bytes(coded)
    return {part: cache[part].data for part in cache}


def test_newsgroups_as_scikit_learn_has_them(downloaded):
    splits = {split: newsgroups20(split) for split in ("train", "validation", "test")}
    for corpus in splits.values():
        # Neither what is everywhere, nor rare words, nor words with digits or apostrophes.
        assert set(corpus.vocabulary) == {"alpha", "beta", "gamma"}
        assert (corpus.counts.sum(1) > 0).all()
        assert set(GROUPS) == set(corpus.groups["newsgroup"].tolist())
    titles = {split: corpus.titles for split, corpus in splits.items()}
    numbers = {split: [int(title.split("/")[1]) for title in titles[split]] for split in titles}
    assert not set(numbers["train"]) & set(numbers["validation"])
    assert max(numbers["train"] + numbers["validation"]) < NUM_TRAIN <= min(numbers["test"])
    texts = downloaded["train"] + downloaded["test"]
    for split, corpus in splits.items():
        for i, title in enumerate(corpus.titles):
            text = texts[numbers[split][i]].lower()
            assert title.split("/")[0] == GROUPS[numbers[split][i] % 2]
            row = dict(
                zip(corpus.vocabulary, corpus.counts[[i]].toarray()[0].tolist(), strict=True)
            )
            assert row == {word: text.count(word) for word in row}
    known = [sum(word in text.lower() for word in ("alpha", "beta", "gamma")) for text in texts]
    assert len(splits["test"]) == sum(n > 1 for n in known[NUM_TRAIN:])
    assert len(titles["train"] + titles["validation"]) == sum(n > 0 for n in known[:NUM_TRAIN])
    assert 60 < len(splits["validation"]) <= 100


def test_newsgroups_that_cannot_be_fetched(folder, monkeypatch):
    def fail(**options):
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr(datasets_corpora, "fetch_20newsgroups", fail)
    with pytest.raises(ValueError, match="cannot be fetched") as info:
        newsgroups20()
    one_sentence(info, f"'{ETM}'", "PPLVM_DATA")


# ---- the real ones ----


def test_reuters(monkeypatch):
    monkeypatch.delenv("PPLVM_DATA", raising=False)
    corpus = reuters()
    assert corpus.counts.shape == (395, 4258)
    assert corpus.counts.sum() == 84_010
    assert len(corpus.titles) == 395
    assert "church" in corpus.vocabulary
    (x,) = named("reuters")
    assert (x != corpus.counts).nnz == 0


def test_reuters_is_that_of_the_folder(shared_data):
    corpus = reuters()
    stored = read_corpus(shared_data / "reuters" / "reuters395_bow.npz")
    assert (stored.counts.astype(int) != corpus.counts).nnz == 0
    assert stored.vocabulary == corpus.vocabulary
    assert [title.strip() for title in stored.titles] == list(corpus.titles)


def test_state_of_the_union_of_the_folder(shared_data):
    corpus = state_of_the_union()
    assert corpus.counts.shape == (8181, 2000)
    assert corpus.titles[0].split()[0] == "1790"
    assert "Washington" in corpus.titles[0]
    assert len(np.unique(corpus.groups["party"])) > 3


@pytest.mark.parametrize(
    ("split", "preparation", "shape"),
    [
        ("train", "etm", (11_214, 3072)),
        ("validation", "etm", (100, 3072)),
        ("test", "etm", (7531, 3072)),
        ("train", "prodlda", (11_259, 1995)),
        ("test", "prodlda", (7488, 1995)),
    ],
)
def test_newsgroups_of_the_folder(shared_data, split, preparation, shape):
    corpus = newsgroups20(split, preparation)
    assert corpus.counts.shape == shape
    assert "god" in corpus.vocabulary
