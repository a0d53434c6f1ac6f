"""Sentences with a sentiment: small files of trees, the treebank itself, made-up reviews."""

import gzip

import pytest
import torch
from test_datasets import one_sentence

from pplvm.datasets import named, small_reviews, sst
from pplvm.datasets_sst import ADJECTIVES

TREES = {
    "train": [
        "(3 (2 A) (3 (3 fine) (2 film)))",
        r"(1 (2 a) (1 (1 dull) (2 (2 film\/book) (2 -LRB-))))",
        "(2 (2 film) (2 film))",
        "(4 fine)",
    ],
    "dev": ["(0 (0 dull) (2 (2 dull) (2 FILM)))", "(2 what)"],
    "test": ["(4 (2 a) (4 (2 8\u00a01/2) (4 fine)))"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPLVM_DATA", str(tmp_path))
    (tmp_path / "sst").mkdir()
    for split, trees in TREES.items():
        write(tmp_path / "sst", split, "\n".join(trees) + "\n")
    return tmp_path / "sst"


def write(folder, split, text):
    (folder / f"{split}.txt.gz").write_bytes(gzip.compress(text.encode()))


def test_trees_become_words_and_classes(folder):
    found = sst()
    assert found.vocabulary == ["", "<unknown>", "film", "a", "fine"]  # by falling frequency
    assert found.y.tolist() == [3, 1, 2, 4]
    assert found.lengths.tolist() == [3, 4, 2, 1]
    assert found.x.tolist() == [[3, 4, 2, 0], [3, 1, 1, 1], [2, 2, 0, 0], [4, 0, 0, 0]]
    assert found.tokens[0] == ["A", "fine", "film"]
    assert found.tokens[1] == ["a", "dull", "film/book", "("]
    assert found.telling.int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [1, 0, 0, 0]]
    assert found.classes[found.y[3]] == "very positive"
    assert {part.dtype for part in found.data} == {torch.long}
    for a, b in zip(named("sst"), found.data, strict=True):
        assert torch.equal(a, b)


def test_other_splits_have_the_vocabulary_of_training(folder):
    found = sst("dev")
    assert found.vocabulary == sst().vocabulary
    assert found.x.tolist() == [[1, 1, 2], [1, 0, 0]]
    assert found.y.tolist() == [0, 2]
    assert sst("test").x.tolist() == [[3, 1, 4]]
    assert sst("test").tokens == [["a", "8\u00a01/2", "fine"]]
    every = sst("dev", min_count=1)
    assert every.vocabulary[2:] == ["film", "a", "fine", "(", "dull", "film/book"]
    assert every.x.tolist() == [[6, 6, 2], [1, 0, 0]]


def test_two_classes_leave_out_what_is_neutral(folder):
    found = sst(classes=2)
    assert found.y.tolist() == [1, 0, 1]
    assert found.vocabulary == sst().vocabulary
    assert found.tokens == [sst().tokens[n] for n in (0, 1, 3)]
    assert found.classes == ("negative", "positive")
    assert sst("dev", classes=2).y.tolist() == [0]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fine film",
        "(3 fine",
        "(3 (2 a) (3 fine)",
        "(3 (2 a) (3 fine)))",
        "(5 (2 a) (3 fine))",
        "(3 (2 a) (7 fine))",
        "(3 (2 a) fine)",
        "(3 (2 a) (3 fine)) (2 film)",
        "(3 (2 ) (3 fine))",
        "(3)",
        "((2 a) (3 fine))",
        "(3 (2 a b) (3 fine))",
    ],
)
def test_what_is_no_tree_is_refused(folder, line):
    write(folder, "dev", "\n".join(["(2 what)", line, "(2 what)"]))
    with pytest.raises(ValueError, match=r"dev.txt.gz' has no tree in line 2") as info:
        sst("dev")
    one_sentence(info, "'(3 (2 a) (4 delight))'")


def test_files_that_cannot_be_read_are_refused(folder):
    write(folder, "train", "")
    with pytest.raises(ValueError, match=r"train.txt.gz' has no tree in line 1"):
        sst()
    whole = gzip.compress("\n".join(TREES["train"]).encode())
    broken = [b"(2 plain)", whole[:30], whole[:-9], gzip.compress(b"(2 caf\xe9)"), b""]
    for raw in [*broken, whole[:20] + b"\xff\xff\xff\xff" + whole[24:]]:
        (folder / "train.txt.gz").write_bytes(raw)
        with pytest.raises(ValueError, match=r"train.txt.gz' (cannot be read|has no tree)") as info:
            sst()
        one_sentence(info)


def test_a_treebank_that_is_not_there(folder, monkeypatch):
    (folder / "dev.txt.gz").unlink()
    with pytest.raises(ValueError, match=r"'sst/dev.txt.gz' into a folder") as info:
        sst("dev")
    one_sentence(info, "PPLVM_DATA", "small_reviews")
    monkeypatch.delenv("PPLVM_DATA")
    with pytest.raises(ValueError, match=r"'sst/train.txt.gz' into a folder"):
        sst()


@pytest.mark.parametrize("load", [sst, small_reviews])
def test_there_are_three_splits(load):
    with pytest.raises(ValueError, match="'train', 'dev' or 'test', got 'valid'") as info:
        load("valid")
    one_sentence(info)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": 3}, "'classes' should be 5 or 2, got 3"), ({"min_count": 0}, "'min_count'")],
)
def test_other_options_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message) as info:
        sst(**options)
    one_sentence(info)


@pytest.mark.parametrize(
    ("split", "five", "two"),
    [("train", 8544, 6920), ("dev", 1101, 872), ("test", 2210, 1821)],
)
def test_the_treebank_of_the_folder(shared_data, split, five, two):
    found, binary = sst(split), sst(split, classes=2)
    assert (len(found.y), len(binary.y)) == (five, two)  # as published
    assert found.y.unique().tolist() == [0, 1, 2, 3, 4]
    assert binary.y.unique().tolist() == [0, 1]
    assert found.vocabulary == binary.vocabulary
    assert len(set(found.vocabulary)) == len(found.vocabulary)
    inside = torch.arange(found.x.shape[1]) < found.lengths[:, None]
    assert (found.x[inside] > 0).all()
    assert (found.x[~inside] == 0).all()
    assert found.x.max() < len(found.vocabulary)
    assert not found.telling[~inside].any()
    assert [len(words) for words in found.tokens] == found.lengths.tolist()
    assert not any("\\" in word or "RB-" in word for words in found.tokens for word in words)


# Made-up ones


@pytest.mark.parametrize(("split", "N"), [("train", 800), ("dev", 100), ("test", 100)])
def test_small_reviews(split, N):
    found = small_reviews(split)
    y, x, lengths = found.data
    assert x.shape == (N, lengths.max())
    assert lengths.min() >= 5
    assert lengths.max() <= 28
    assert 0.35 < y.double().mean() < 0.65
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    assert (x[inside] > 1).all()  # no word is unknown
    assert (x[~inside] == 0).all()
    for n, words in enumerate(found.tokens):
        assert [found.vocabulary[i] for i in x[n, : lengths[n]]] == words


def test_telling_words_tell_the_class_and_nothing_else_does():
    found = small_reviews()
    counts = torch.zeros(2)
    for n, words in enumerate(found.tokens):
        marked = [word for word, tells in zip(words, found.telling[n], strict=False) if tells]
        for i, word in enumerate(marked):
            kind = [word in some for some in ADJECTIVES]
            if word == "not":
                assert marked[i + 1] in (*ADJECTIVES[0], *ADJECTIVES[1])
                continue
            turned = i > 0 and marked[i - 1] == "not"
            assert kind.index(True) ^ turned == found.y[n]
            counts[int(turned)] += 1
        rest = set(words) - set(marked)
        assert not rest & {*ADJECTIVES[0], *ADJECTIVES[1], "not"}
    assert 0.05 < counts[1] / counts.sum() < 0.15


def test_small_reviews_never_change():
    found = small_reviews()
    assert torch.equal(small_reviews().x, found.x)
    for a, b in zip(named("small-reviews"), found.data, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(small_reviews("dev").y, small_reviews("test").y)
