"""Texts: small files in the formats of the real ones, those themselves, and made-up ones."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from test_datasets import Bomb, one_sentence

from pplvm.datasets import (
    named,
    reuters,
    small_corpus,
    small_words,
    state_of_the_union,
    words,
)
from pplvm.datasets_text import BACK, CONSONANTS, FRONT, SUBJECTS, WORDS_EACH

COUNTS = np.array([[0, 2, 0], [1, 0, 0], [0, 0, 0], [3, 1, 1]])
FILES = {
    reuters: ("reuters/reuters395_bow.npz", {"titles": np.array(["a", "b c", "d", "e"])}),
    state_of_the_union: (
        "sotu/sotu_segments_bow.npz",
        {"year": np.arange(1790, 1794), "president": np.array(["Washington"] * 4)},
    ),
}
each_corpus = pytest.mark.parametrize("load", FILES)


def arrays(load, **changes) -> dict[str, np.ndarray]:
    table = csr_matrix(COUNTS)
    parts = {name: getattr(table, name) for name in ("data", "indices", "indptr")}
    held = parts | {"shape": np.array(COUNTS.shape), "vocab": np.array(["x", "y", "z"])}
    return held | FILES[load][1] | changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPLVM_DATA", str(tmp_path))
    for name, _ in FILES.values():
        (tmp_path / name).parent.mkdir()
    return tmp_path


# ---- documents of a file ----


@each_corpus
def test_counts_are_dense(folder, load):
    path = folder / FILES[load][0]
    np.savez(path, **arrays(load))
    corpus = load()
    assert corpus.counts.dtype == torch.float32
    assert corpus.counts.tolist() == COUNTS.tolist()
    assert corpus.vocab == ("x", "y", "z")
    name = "reuters" if load is reuters else "state-of-the-union"
    (x,) = named(name)
    assert torch.equal(x, corpus.counts)
    want = (
        ("a", "b c", "d", "e")
        if load is reuters
        else tuple(f"{year} Washington" for year in range(1790, 1794))
    )
    assert corpus.titles == want


@each_corpus
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": np.array([4, 2])},
        {"shape": np.array([5, 3])},
        {"indptr": np.array([0, 9])},
        {"data": np.full(5, 0.5)},
        {"data": np.full(5, -1)},
        {"vocab": np.array(["x", "y"])},
    ],
)
def test_files_of_another_format_are_refused(folder, load, changes):
    path = folder / FILES[load][0]
    np.savez(path, **arrays(load, **changes))
    with pytest.raises(ValueError, match=r"bow.npz' cannot be read") as info:
        load()
    one_sentence(info, "'data'", "'vocab'", "'titles'" if load is reuters else "'president'")


@each_corpus
def test_pickles_never_run(folder, load):
    path, trace = folder / FILES[load][0], folder / "trace"
    bombs = np.array([Bomb(trace)], dtype=object)
    np.savez(path, **arrays(load, vocab=bombs))
    with pytest.raises(ValueError, match="cannot be read"):
        load()
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match="cannot be read"):
        load()
    assert not trace.exists()


@each_corpus
def test_corpora_that_are_not_there(folder, load, monkeypatch):
    for named_at_all in (True, False):
        if not named_at_all:
            monkeypatch.delenv("PPLVM_DATA")
        with pytest.raises(ValueError, match="into a folder") as info:
            load()
        one_sentence(info, f"'{FILES[load][0]}'", "PPLVM_DATA", "small_corpus")


def test_reuters_of_the_folder(shared_data):
    corpus = reuters()
    assert corpus.counts.shape == (395, 4258)
    assert corpus.counts.sum() == 84_010
    assert len(corpus.titles) == 395
    assert "church" in corpus.vocab


def test_state_of_the_union_of_the_folder(shared_data):
    corpus = state_of_the_union()
    assert corpus.counts.shape == (8181, 2000)
    assert corpus.titles[0].split()[0] == "1790"
    assert "Washington" in corpus.titles[0]


# ---- documents that are made up ----


def test_small_corpus():
    corpus = small_corpus()
    assert corpus.counts.shape == (200, 80)
    assert corpus.counts.dtype == torch.float32
    total = corpus.counts.sum(-1)
    assert total.min() >= 20
    assert total.max() <= 60
    assert len(set(corpus.vocab)) == 80
    assert len(corpus.titles) == 200
    assert 0.3 < np.mean([str(0) in title for title in corpus.titles]) < 0.5


def test_subjects_of_the_small_corpus_are_in_its_documents():
    """Each subject's words are much more frequent where it is present."""
    corpus = small_corpus()
    share = corpus.counts / corpus.counts.sum(-1, keepdim=True)
    for subject in range(SUBJECTS):
        present = torch.tensor([str(subject) in title for title in corpus.titles])
        own = share[:, subject * WORDS_EACH : (subject + 1) * WORDS_EACH].sum(-1)
        assert own[present].mean() > 3 * own[~present].mean()


def test_small_corpus_never_changes():
    corpus = small_corpus()
    assert torch.equal(small_corpus().counts, corpus.counts)
    assert torch.equal(named("small-corpus")[0], corpus.counts)
    assert corpus.vocab[:3] == ("ben", "ber", "bes")
    assert corpus.titles[:4] == ("1+2+3", "none", "1+3", "0+3")
    assert corpus.counts[0].nonzero()[:4, 0].tolist() == [0, 10, 12, 13]


# ---- words ----


def test_words_of_a_list():
    lexicon = words(["ab", "c", "aba"])
    assert lexicon.alphabet == "abc"
    assert lexicon.x.tolist() == [[1, 2, 0], [3, 0, 0], [1, 2, 1]]
    assert lexicon.lengths.tolist() == [2, 1, 3]
    assert (lexicon.x.dtype, lexicon.lengths.dtype) == (torch.long, torch.long)
    assert lexicon.spell(lexicon.x) == ["ab", "c", "aba"]
    assert lexicon.spell(torch.tensor([[0, 1], [2, 0]])) == ["", "b"]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_words_of_a_text(tmp_path, suffix):
    raw = "The cat saw the\ncat , 2 états incomprehensibilities don't .\n".encode()
    path = tmp_path / f"text{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    lexicon = words(path)
    assert lexicon.spell(lexicon.x) == ["The", "cat", "saw", "the", "états"]
    short = words(str(path), longest=3)
    assert short.spell(short.x) == ["The", "cat", "saw", "the"]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ([], ["'source' is empty"]),
        (["ab", ""], ["'source'", "''", "position 1"]),
        (["ab", 3], ["'source'", "3", "position 1"]),
        ("absent.txt", ["'absent.txt' is not a file"]),
    ],
)
def test_what_are_no_words(source, parts):
    with pytest.raises(ValueError, match="give") as info:
        words(source)
    one_sentence(info, *parts)


def test_files_that_are_no_texts(tmp_path):
    for name, raw, part in [
        ("x.txt", b"\xff\xfe\x00", "cannot be read"),
        ("x.txt.gz", b"words", "cannot be read"),
        ("y.txt.gz", gzip.compress(b"some words" * 100)[:-20], "cannot be read"),
        ("z.txt", b"1 2 3", "no words"),
    ]:
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=name) as info:
            words(tmp_path / name)
        one_sentence(info, part)


def test_words_of_the_sentences_of_the_folder(shared_data):
    lexicon = words(shared_data / "sotu" / "sotu_sentences_4_20.txt.gz")
    assert len(lexicon.x) > 5000
    assert lexicon.x.shape[1] <= 20
    assert lexicon.alphabet.startswith("abc")
    assert lexicon.spell(lexicon.x[:3]) == ["the", "punctuality", "of"]


def test_small_words():
    x, lengths, alphabet = lexicon = small_words()
    assert len(x) == len(set(lexicon.spell(x))) == 400
    assert lengths.min() >= 4
    assert lengths.max() <= 11
    assert set(alphabet) == set(CONSONANTS + FRONT + BACK)
    for word in lexicon.spell(x):
        assert not (set(word) & set(FRONT) and set(word) & set(BACK)), word
    again, long = named("small-words")
    assert torch.equal(again, x)
    assert torch.equal(long, lengths)
    assert lexicon.spell(x[:4]) == ["rinimisel", "pesisel", "nepinetisel", "dime"]
