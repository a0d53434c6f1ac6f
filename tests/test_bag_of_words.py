"""Words of raw texts: those of scikit-learn, from wherever the texts come."""

import csv
import gzip
import json
import re
import tracemalloc
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import chisquare, hypergeom
from sklearn.feature_extraction.text import CountVectorizer
from test_datasets import one_sentence
from test_text_corpus import on_disk, same

from pplvm.text import bag_of_words, document_halves, read_corpus
from pplvm.text.bag_of_words import BLOCK

many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = ["The cat saw the dog", "", "A dog, a dog!", "Über états 42 the CAT", "x y"]
WORDS = st.sampled_from(["ab", "Ab", "cd", "the", "une", "x", "12", "dé", "can't", "."])
DOCUMENTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), min_size=1, max_size=8)


# ---- the same words as the peer's ----


@given(
    texts=DOCUMENTS,
    options=st.fixed_dictionaries(
        {},
        optional={
            "lowercase": st.booleans(),
            "stop_words": st.sampled_from(["english", ["ab", "cd"]]),
            "min_df": st.sampled_from([2, 3, 0.3]),
            "max_df": st.sampled_from([3, 0.7]),
            "token_pattern": st.just(r"(?u)\b\w+\b"),
        },
    ),
)
@many
def test_the_words_are_scikit_learns(tmp_path, texts, options):
    peer = CountVectorizer(**options)
    try:
        expected = peer.fit_transform(texts).toarray()
    except ValueError:
        with pytest.raises(ValueError, match="relax|lower|raise|no words") as info:  # noqa: RUF043
            bag_of_words(texts, **options)
        one_sentence(info)
        return
    for out in (None, tmp_path / "c.npz"):
        found = bag_of_words(texts, out=out, **options)
        assert found.vocabulary == tuple(peer.get_feature_names_out())
        assert found.counts.toarray().tolist() == expected.tolist()
        assert found.titles == tuple(map(str, range(len(texts))))
        assert found.unseen is None
        assert on_disk(found.counts.data) == (out is not None and expected.sum() > 0)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@given(texts=DOCUMENTS, new=DOCUMENTS)
@many
def test_new_documents_by_an_earlier_vocabulary(texts, new):
    try:
        first = bag_of_words(texts)
    except ValueError:
        return
    found = bag_of_words(new, vocabulary=first.vocabulary)
    peer = CountVectorizer(vocabulary=first.vocabulary)
    assert found.vocabulary == first.vocabulary
    assert found.counts.toarray().tolist() == peer.transform(new).toarray().tolist()
    analyze = peer.build_analyzer()
    missing = [sum(word not in first.vocabulary for word in analyze(text)) for text in new]
    assert found.unseen.tolist() == missing


def test_most_frequent_words():
    texts = ["bb bb bb cc cc", "aa dd cc ee", "aa"]
    assert bag_of_words(texts, max_words=2).vocabulary == ("bb", "cc")
    assert bag_of_words(texts, max_words=3).vocabulary == ("aa", "bb", "cc")
    assert bag_of_words(texts, max_words=4).vocabulary == (
        "aa",
        "bb",
        "cc",
        "dd",
    )  # dd ties with ee
    assert bag_of_words(texts, max_words=9).vocabulary == ("aa", "bb", "cc", "dd", "ee")
    assert bag_of_words(texts, max_words=1, min_df=2).vocabulary == ("cc",)


def test_empty_documents_stay():
    found = bag_of_words(TEXTS)
    assert found.counts.sum(1).tolist() == [5, 0, 2, 5, 0]
    assert found.vocabulary == ("42", "cat", "dog", "saw", "the", "états", "über")


def test_more_documents_than_a_block(tmp_path):
    N = 2 * BLOCK + 10
    for out in (None, tmp_path / "c.npz"):
        found = bag_of_words((f"all word{i % 7} n{i}" for i in range(N)), min_df=2, out=out)
        assert found.vocabulary == ("all", *(f"word{i}" for i in range(7)))
        assert found.counts.sum(0).tolist()[:2] == [N, -(-N // 7)]
        assert found.counts[[BLOCK + 3]].toarray()[0].nonzero()[0].tolist() == [
            0,
            (BLOCK + 3) % 7 + 1,
        ]
        assert found.titles[-1] == str(N - 1)
    exact = bag_of_words((f"all n{i}" for i in range(2 * BLOCK)), max_words=1)
    assert exact.counts.shape == (2 * BLOCK, 1)


# ---- where texts come from ----


def write_csv(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_jsonl(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for row in rows[1:]:
            file.write(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n")


def test_a_folder_of_texts(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("the états", encoding="utf-8-sig")
    (tmp_path / "two.txt").write_text("the cat")
    (tmp_path / "c.md").write_text("no text")
    found = bag_of_words(tmp_path)
    assert found.titles == ("b/one.txt", "two.txt")
    assert found.vocabulary == ("cat", "the", "états")
    assert found.counts.toarray().tolist() == [[0, 1, 1], [1, 1, 0]]
    alone = bag_of_words(str(tmp_path / "two.txt"), vocabulary=found.vocabulary)
    assert (alone.titles, alone.counts.toarray().tolist()) == (("two.txt",), [[1, 1, 0]])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.csv.gz", write_csv),
        ("t.jsonl", write_jsonl),
        ("t.jsonl.gz", write_jsonl),
    ],
)
def test_tables_and_lines_of_json(tmp_path, name, write):
    rows = [["text", "year", "who", "score"]]
    rows += [[text, 1790 + i, f"p{i % 2}", i / 2] for i, text in enumerate(TEXTS)]
    rows[1][0] = 'The cat,\nsaw the "dog"' + " the" * 100_000  # beyond csv's default limit
    write(tmp_path / name, rows)
    limit = csv.field_size_limit()
    found = bag_of_words(
        tmp_path / name, column="text", title="who", groups=["year", "score", "who"]
    )
    assert csv.field_size_limit() == limit
    expected = bag_of_words([row[0] for row in rows[1:]])
    assert (found.counts != expected.counts).nnz == 0
    assert found.vocabulary == expected.vocabulary
    assert found.titles == ("p0", "p1", "p0", "p1", "p0")
    assert found.groups["year"].tolist() == [1790, 1791, 1792, 1793, 1794]
    assert found.groups["year"].dtype.kind == "i"
    assert found.groups["score"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert found.groups["who"].tolist() == ["p0", "p1"] * 2 + ["p0"]
    kept = bag_of_words(
        tmp_path / name, column="text", groups=["year", "who"], out=tmp_path / "c.npz"
    )
    assert kept.titles == ("0", "1", "2", "3", "4")
    assert same(kept, read_corpus(tmp_path / "c.npz"))
    assert kept.groups["year"].tolist() == found.groups["year"].tolist()


def test_nothing_of_json_is_an_empty_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"t": null, "g": null}\n\n{"t": "ab", "g": 1}\n')
    found = bag_of_words(tmp_path / "t.jsonl", column="t", groups=["g"])
    assert found.counts.toarray().tolist() == [[0], [1]]
    assert found.groups["g"].tolist() == ["", "1"]


LATIN = "the états".encode("latin-1")


def damaged(folder, name: str):
    """Three documents, the second of which is not UTF-8."""
    if name == "folder":
        for title, raw in (("a", b"the cat"), ("b", LATIN), ("c", b"the dog")):
            (folder / f"{title}.txt").write_bytes(raw)
        return folder, None
    quoted = [b"the cat", LATIN, b"the dog"]
    objects = [b'{"text": "' + raw + b'"}' for raw in quoted]
    lines = [b"text", *quoted] if name == "t.csv" else objects
    (folder / name).write_bytes(b"\n".join(lines))
    return folder / name, "text"


@pytest.mark.parametrize("name", ["folder", "t.csv", "t.jsonl"])
def test_documents_that_cannot_be_decoded(tmp_path, name):
    source, column = damaged(tmp_path, name)
    with pytest.raises(ValueError, match="cannot be decoded") as info:
        bag_of_words(source, column=column)
    one_sentence(info, "b.txt" if name == "folder" else name, "errors='skip'")
    with pytest.warns(UserWarning, match="left out 1 of 3 documents that are not utf-8") as record:
        found = bag_of_words(source, column=column, errors="skip")
    assert ("b.txt" if name == "folder" else "1") in str(record[0].message)
    assert found.vocabulary == ("cat", "dog", "the")
    assert found.titles == (("a.txt", "c.txt") if name == "folder" else ("0", "2"))
    found = bag_of_words(source, column=column, encoding="latin-1")
    assert found.vocabulary == ("cat", "dog", "the", "états")


def test_sources_that_are_refused(tmp_path):
    write_csv(tmp_path / "t.csv", [["text", "year"], ["the cat", 1790]])
    write_csv(tmp_path / "ragged.csv", [["text", "year"], ["the cat", 1], ["the cat"]])
    write_csv(tmp_path / "empty.csv", [])
    (tmp_path / "quote.csv").write_text('text\n"a" b\n')
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n[1]\n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"text\nab\n" * 500)[:-20])
    (tmp_path / "none").mkdir()
    (tmp_path / "x.pdf").write_text("x")
    for name, options, part in [
        ("absent.csv", {"column": "text"}, "is not there"),
        ("t.csv", {}, "'column' is missing"),
        ("t.csv", {"column": "body"}, "no 'body' in row 0: choose from 'text', 'year'"),
        ("t.csv", {"column": "text", "groups": ["who"]}, "no 'who'"),
        ("t.csv", {"column": "text", "title": "who"}, "no 'who'"),
        ("t.csv", {"column": "text", "encoding": "utf-9"}, "'encoding' is 'utf-9'"),
        ("ragged.csv", {"column": "text"}, "1 cells in row 1, and 2 columns"),
        ("empty.csv", {"column": "text"}, "'source' has no documents"),
        ("quote.csv", {"column": "text"}, "cannot be read (Error)"),
        ("t.jsonl", {"column": "text"}, "no object of JSON in line 1"),
        ("number.jsonl", {"column": "text"}, "no text in 'text' in line 0, got 3"),
        ("cut.csv.gz", {"column": "text"}, "cannot be read (EOFError)"),
        ("none", {}, "no .txt files"),
        ("none", {"column": "text"}, "is no table"),
        ("x.pdf", {}, "should be a folder of .txt files"),
    ]:
        with pytest.raises(ValueError, match=re.escape(part)) as info:
            bag_of_words(tmp_path / name, **options)
        assert name in str(info.value) or "'source'" in part or "'encoding'" in part
    with pytest.raises(ValueError, match="document 1 should be a string, got int"):
        bag_of_words(["a", 1])
    with pytest.raises(ValueError, match="are for files"):
        bag_of_words(["a"], column="text")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"min_df": 0}, "'min_df'"),
        ({"min_df": True}, "'min_df'"),
        ({"max_df": 1.5}, "'max_df'"),
        ({"max_df": "all"}, "'max_df'"),
        ({"max_words": 0}, "'max_words'"),
        ({"errors": "ignore"}, "'errors'"),
        ({"stop_words": "german"}, "'stop_words' should be 'english' or a list"),
        ({"token_pattern": "(a"}, "'token_pattern'"),
        ({"vocabulary": ["a", "b", "a"]}, "'vocabulary' has 'a' more than once"),
        ({"vocabulary": []}, "'vocabulary' is empty"),
        ({"min_df": 5}, "lower 'min_df'"),
        ({"max_df": 0.0}, "raise 'max_df'"),
        ({"token_pattern": r"\d{9}"}, "relax 'token_pattern', or shorten 'stop_words'"),
        ({"out": "c.txt"}, "should end in .npz"),
    ],
)
def test_options_that_are_refused(options, part):
    with pytest.raises(ValueError, match="'") as info:
        bag_of_words(TEXTS, **options)
    one_sentence(info, part)


def test_no_documents_at_all():
    with pytest.raises(ValueError, match="'source' has no documents") as info:
        bag_of_words([])
    one_sentence(info)


def test_texts_are_not_held(tmp_path):
    """Thirty megabytes of text, of which a block at a time is in memory."""

    def texts() -> Iterator[str]:
        random = np.random.default_rng(0)
        filler = " " * 10_000  # ten thousand characters that are no word
        for _ in range(3000):
            yield " ".join(f"w{v}" for v in random.integers(0, 500, 20)) + filler

    tracemalloc.start()
    found = bag_of_words(texts(), out=tmp_path / "c.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.counts.shape == (3000, 500)
    assert found.counts.sum() == 60_000
    assert peak < 15e6


# ---- halves ----


@given(
    seed=st.integers(0, 2**32 - 1), N=st.integers(0, 6), dtype=st.sampled_from(["i4", "f4", "u1"])
)
@many
def test_halves_are_those_of_each_document(seed, N, dtype):
    counts = np.random.default_rng(seed).poisson(0.8, (N, 5)).astype(dtype)
    observed, held_out = document_halves(csr_array(counts), seed)
    assert observed.dtype == held_out.dtype == np.int32
    assert (observed + held_out).toarray().tolist() == counts.tolist()
    total = counts.astype(int).sum(1)
    assert observed.sum(1).tolist() == (-(-total // 2)).tolist()
    assert held_out.sum(1).tolist() == (total // 2).tolist()
    assert all((half.data > 0).all() for half in (observed, held_out))
    again, _ = document_halves(csr_array(counts), seed)
    assert (again != observed).nnz == 0


def test_halves_are_hypergeometric():
    """Of 4000 documents "aaabb", by a test of χ² that falsely alarms with probability 1e-4."""
    counts = csr_array(np.tile([3, 2], (4000, 1)))
    observed, _ = document_halves(counts, seed=1)
    found = np.bincount(observed.toarray()[:, 0], minlength=4)
    expected = hypergeom(5, 3, 3).pmf(np.arange(4))
    assert found[0] == 0 == expected[0]
    assert chisquare(found[1:], 4000 * expected[1:]).pvalue > 1e-4


@pytest.mark.parametrize("bad", [-1, 0.5, np.nan])
def test_halves_of_what_are_no_counts(bad):
    with pytest.raises(ValueError, match="'counts' should be whole"):
        document_halves(csr_array([[1.0, bad]]))


def test_no_warning_is_raised_for_what_is_well():
    with warnings.catch_warnings(action="error"):
        bag_of_words(TEXTS, stop_words="english")
