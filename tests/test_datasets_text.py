"""Words as numbers of characters: those of texts and lists, and made-up ones."""

import gzip

import pytest
import torch
from test_datasets import one_sentence

from pplvm.datasets import named, small_words, words
from pplvm.datasets_text import BACK, CONSONANTS, FRONT


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
