"""The command line of topic models, from raw texts to a report and to new texts."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pplvm import cli
from pplvm.datasets import small_corpus
from pplvm.topics import storage

SEA = ["ship", "sail", "port", "sea", "storm", "captain", "harbour", "wave"]
LAW = ["court", "judge", "law", "oath", "trial", "verdict", "statute", "jury"]


def texts(N: int = 30) -> list[str]:
    """Returns texts of 40 words about the sea or the law, in turns."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice((SEA, LAW)[d % 2], 40)) + "." for d in range(N)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written = texts()
    (tmp_path / "texts").mkdir()
    for d, text in enumerate(written):
        (tmp_path / "texts" / f"{d:02d}.txt").write_text(text)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "body"], *([d, t] for d, t in enumerate(written))])
    lines = "".join(json.dumps({"body": text}) + "\n" for text in written)
    (tmp_path / "table.jsonl").write_text(lines)
    (tmp_path / "new.txt").write_text("The captain saw the harbour, and a zyzzyx.")
    (tmp_path / "stop.txt").write_text("and the of it 12 3")
    (tmp_path / "odd.txt").write_text("zyzzyx")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes("ship caf\xe9 ship".encode("latin-1"))
    (tmp_path / "latin" / "b.txt").write_text("ship sail")
    (tmp_path / "latin" / "c.txt").write_text("sail sail")
    write_counts(tmp_path)
    return tmp_path


def write_counts(folder: Path) -> None:
    """Writes counts that are none, as .npz."""
    small_corpus().save(folder / "whole.npz")
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:-1000])
    parts = dict(np.load(folder / "whole.npz"))
    for name, wrong in {"negative": -1.0, "half": 0.5, "nan": np.nan}.items():
        counts = parts["data"].astype(float)
        counts[7] = wrong
        np.savez(folder / f"{name}.npz", **{**parts, "data": counts})
    np.savez(folder / "nothing.npz", **{**parts, "data": np.zeros_like(parts["data"])})


@pytest.fixture
def run(here, monkeypatch, capsys):
    """Runs a command and returns its exit code and what it printed."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pplvm", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return command


def words_of(topic: dict) -> set[str]:
    return set(list(topic["words"])[:8])


def test_a_folder_of_texts_becomes_topics_and_a_report(run, here):
    code, out, err = run(
        "fit", "lda", "--data", "texts/", "--topics", "2", "--report", "r.html", "--save", "out",
    )  # fmt: skip
    assert code == 0, err
    assert "2 topics of 30 documents" in out
    assert "perplexity" in out
    assert "read 30 documents" in err
    assert "This figure failed" not in (here / "r.html").read_text()
    code, out, err = run("topics", "out", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [words_of(topic) for topic in found["topics"]] in (
        [set(SEA), set(LAW)],
        [set(LAW), set(SEA)],
    )
    assert sum(topic["prevalence"] for topic in found["topics"]) == pytest.approx(1)
    assert found["num_held_out"] == 3
    # Eight words, all as probable, and two of them are always as near as documents get.
    assert found["perplexity"] == pytest.approx(8, rel=0.2)
    # Ten words: eight that always meet, two that never meet these.
    assert found["coherence"] == pytest.approx((28 + 1 - 16) / 45, rel=0.1)
    assert found["warnings"] == []


def test_new_texts_get_proportions_and_unseen_words_are_said(run, here):
    assert run("fit", "lda", "--data", "texts/", "--topics", "2", "--save", "out")[0] == 0
    code, out, err = run("transform", "out", "new.txt", "--json")
    assert code == 0
    (row,) = json.loads(out)["documents"]
    sea = max(range(2), key=lambda k: row["proportions"][k])
    assert "ship" in words_of({"words": dict.fromkeys(top(storage.load("out"), sea))})
    assert row["proportions"][sea] > 0.8
    assert "2 tokens (50.0 %) of words that are not in it" in err
    code, out, err = run("transform", "out", "odd.txt", "--json")
    assert code == 0
    np.testing.assert_allclose(json.loads(out)["documents"][0]["proportions"], 0.5, atol=1e-6)
    assert "'odd.txt': no known words, so what is given is the prior's mean" in err
    code, out, err = run("transform", "out", "texts", "--out", "theta.csv")
    assert (code, out) == (0, "")
    rows = list(csv.reader((here / "theta.csv").read_text().splitlines()))
    assert rows[0] == ["document", "topic_0", "topic_1"]
    assert len(rows) == 31
    assert sum(map(float, rows[7][1:])) == pytest.approx(1, abs=1e-4)
    assert run("transform", "out", "new.txt")[1].startswith("new.txt\n")


def test_texts_of_another_encoding_may_be_left_out_or_named(run):
    words = ("fit", "lda", "--data", "latin", "--topics", "1", "--json", "--max-df", "1")
    code, out, err = run(*words, "--errors", "skip")
    assert code == 0, err
    assert "· left out 1 of 3 documents that are not utf-8: 'a.txt'" in err
    assert json.loads(out)["num_documents"] == 2
    code, out, err = run(*words, "--encoding", "latin-1")
    assert json.loads(out)["num_documents"] == 3


def top(found: storage.Saved, k: int) -> list[str]:
    return [found.vocabulary[w] for w in found.model.topics[k].topk(8).indices]


@pytest.mark.parametrize(
    "data", [("table.csv", "--column", "body"), ("table.jsonl", "--column", "body")]
)
def test_tables_of_texts_are_read(run, data):
    code, out, err = run("fit", "lda", "--data", *data, "--topics", "2", "--json")
    assert code == 0, err
    assert {frozenset(words_of(topic)) for topic in json.loads(out)["topics"]} == {
        frozenset(SEA),
        frozenset(LAW),
    }


@pytest.mark.parametrize(
    "story",
    [
        ("lda", "--guide", "amortised-dirichlet"),
        pytest.param(("lda", "--guide", "logistic-normal"), marks=pytest.mark.slow),
        ("neural-lda",),
        ("avi-lda",),
    ],
)
def test_topics_are_learnt_by_gradients_and_kept(run, story):
    words = (
        "fit",
        *story,
        "--data",
        "texts",
        "--topics",
        "2",
        "--num-steps",
        "300",
        "--lr",
        "0.02",
    )
    code, out, err = run(*words, "--save", "out", "--json")
    assert code == 0, err
    learnt = json.loads(out)
    sides = {frozenset(words_of(topic)) for topic in learnt["topics"]}
    assert sides == {frozenset(SEA), frozenset(LAW)}
    code, out, err = run("topics", "out", "--json")
    assert json.loads(out) == learnt
    code, out, err = run("transform", "out", "new.txt", "--json")
    (row,) = json.loads(out)["documents"]
    best = storage.load("out").model.topics[int(np.argmax(row["proportions"]))]
    assert "ship" in [storage.load("out").vocabulary[w] for w in best.topk(8).indices]
    code, out, err = run("transform", "out", "odd.txt", "--json")
    none = 0.05 if story == ("avi-lda",) else 0.0  # whose prior is learned
    (row,) = json.loads(out)["documents"]
    assert row["proportions"] == pytest.approx([0.5, 0.5], abs=none)


def test_gradients_are_of_the_objective_and_on_the_device_that_were_asked_for(run):
    words = ("--latent-dim", "2", "--objective", "iwae", "--device", "cpu", "--num-steps", "3")
    code, _, err = run("fit", "avi-lda", "--data", "texts", *words, "--save", "out")
    assert code == 0, err
    found = storage.load("out")
    assert len(found.model.topics) == 2
    assert found.settings["method"].startswith("iwae")
    assert found.settings["device"] == "cpu"


BAD = {
    "more topics than documents": (
        ("fit", "lda", "--data", "texts", "--topics", "28"),
        "'--topics' is 28, but there are 27 documents to learn from",
    ),
    "no topics": (("fit", "lda", "--topics", "0"), "--topics"),
    "a share": (("fit", "lda", "--held-out", "1"), "'--held-out' should be from 0 to below 1"),
    "no words": (
        ("fit", "lda", "--data", "stop.txt", "--topics", "1"),
        "relax 'token_pattern', or shorten 'stop_words'",
    ),
    "bytes of another encoding": (("fit", "lda", "--data", "latin"), "cannot be decoded"),
    "rare words": (("fit", "lda", "--data", "texts", "--min-df", "31"), "lower 'min_df'"),
    "a table without a column": (("fit", "lda", "--data", "table.csv"), "'--column' is missing"),
    "no such column": (("fit", "lda", "--data", "table.csv", "--column", "text"), "'text'"),
    "no such file": (("fit", "lda", "--data", "no/"), "'no/' is not there: check the path."),
    "no such counts": (("fit", "lda", "--data", "no.npz"), "'no.npz' is not a file"),
    "counts cut short": (("fit", "lda", "--data", "cut.npz"), "'cut.npz' cannot be read"),
    "counts below 0": (("fit", "lda", "--data", "negative.npz"), "has negative counts"),
    "shares for counts": (("fit", "lda", "--data", "half.npz"), "counts that are not whole"),
    "counts of NaN": (("fit", "lda", "--data", "nan.npz"), "counts that are NaN or infinite"),
    "documents without words": (("fit", "lda", "--data", "nothing.npz"), "leaves no words"),
    "no such data set": (("fit", "lda", "--data", "reuter"), "did you mean 'reuters'"),
    "no such guide": (("fit", "lda", "--guide", "mean"), "guide"),
    "a guide for these documents alone": (
        ("fit", "lda", "--guide", "mean-field"),
        "finds no topics in new ones",
    ),
    "steps of no steps": (
        ("fit", "lda", "--num-steps", "9"),
        "'--num-steps' is of learning by gradients",
    ),
    "gradients of no gradients": (
        ("fit", "lda", "--objective", "iwae"),
        "'--objective' is of learning by gradients",
    ),
    "no such objective": (("fit", "neural-lda", "--objective", "iwea"), "did you mean 'iwae'"),
    "no such device": (("fit", "neural-lda", "--device", "gpu"), "'device'"),
    "no such option": (("fit", "lda", "--objectif", "x"), "--objectif"),
    "another story": (("fit", "ldaa"), "did you mean 'lda'"),
    "a folder of other things": (("fit", "lda", "--save", "texts"), "holds other things"),
    "unwritable": (("fit", "lda", "--report", "/proc/r.html"), "/proc/r.html"),
    "no topics there": (("topics", "texts"), "no complete topic model"),
    "no folder": (("transform", "nothing", "new.txt"), "no folder at 'nothing'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, case):
    words, expected = BAD[case]
    code, out, err = run(*words)
    assert code == 2, err
    assert expected in err
    assert out == ""
    assert len([line for line in err.splitlines() if line.startswith("pplvm:")]) == 1


def test_a_failure_leaves_what_was_saved_before(run, here):
    words = ("fit", "lda", "--topics", "2", "--save", "out")
    assert run(*words, "--data", "texts")[0] == 0
    before = {file.name: file.read_bytes() for file in (here / "out").iterdir()}
    assert run(*words, "--data", "negative.npz")[0] == 2
    assert {file.name: file.read_bytes() for file in (here / "out").iterdir()} == before
    code, _, err = run("transform", "out", "whole.npz")
    assert (code, "which are not the 16 of the topics" in err) == (2, True)
    (here / "out" / "weights.safetensors").write_bytes(before["weights.safetensors"][:99])
    code, _, err = run("transform", "out", "new.txt")
    assert (code, "weights.safetensors' is truncated" in err) == (2, True)
