"""A topic model on disk is all there or an error, and comes back as it was."""

import json
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from topic_fakes import WORDS, Known, corpus, known
from torch import Tensor

from pplvm.topics import export, storage
from pplvm.topics.overview import overview
from pplvm.topics.variational_em import variational_em


@dataclass(frozen=True)
class Plain:
    topics: Tensor

    def proportions(self, counts: csr_array) -> Tensor:
        return Known(self.topics).proportions(counts)

    def word_probs(self, theta: Tensor) -> Tensor:
        return theta @ self.topics


@pytest.fixture(autouse=True)
def kind(monkeypatch):
    monkeypatch.setitem(storage.KINDS, "plain", Plain)


def saved(path):
    model = Plain(known().topics)
    facts = overview(model, corpus())
    storage.save(path, model, WORDS, facts, settings={"lr": 0.1}, text={"lowercase": True})
    return model, facts


def test_a_model_comes_back_as_it_was(tmp_path):
    model, facts = saved(tmp_path / "out")
    found = storage.load(tmp_path / "out")
    assert found.vocabulary == tuple(WORDS)
    assert found.settings == {"lr": 0.1}
    assert found.text == {"lowercase": True}
    counts = corpus(seed=1).counts
    assert torch.equal(found.model.proportions(counts), model.proportions(counts))
    for name, value in vars(facts).items():
        back = getattr(found.facts, name)
        assert torch.equal(back, value) if isinstance(value, Tensor) else back == value, name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "vocabulary.txt").read_text().splitlines() == list(WORDS)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["num_topics"] == 3


def test_a_model_is_replaced_but_nothing_else_is(tmp_path):
    saved(tmp_path / "out")
    saved(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match=r"mine' holds other things .* such as 'thesis.tex'"):
        saved(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="such as 'file'"):
        saved(tmp_path / "file")


def test_an_interrupted_save_leaves_the_old_one(tmp_path, monkeypatch):
    saved(tmp_path / "out")
    before = (tmp_path / "out" / "weights.safetensors").read_bytes()
    monkeypatch.setattr(storage.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ValueError, match=r"cannot write '.*out': full"):
        saved(tmp_path / "out")
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.txt", "settings.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "noise"])
def test_a_broken_folder_is_one_error(tmp_path, name, harm):
    saved(tmp_path / "out")
    file = tmp_path / "out" / name
    raw = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {"cut": raw[: len(raw) // 2], "empty": b"", "noise": b"\xff\x00" * 40}[harm]
        )
    with pytest.raises(ValueError, match=r"out"):
        storage.load(tmp_path / "out")


def test_another_vocabulary_is_an_error(tmp_path):
    model, facts = saved(tmp_path / "out")
    (tmp_path / "out" / "vocabulary.txt").write_text("\n".join([*WORDS[1:], WORDS[0]]) + "\n")
    with pytest.raises(
        ValueError, match=r"is not the vocabulary that the weights were learnt with"
    ):
        storage.load(tmp_path / "out")
    with pytest.raises(ValueError, match="'vocabulary' has 11 words, but the topics have 12"):
        storage.save(tmp_path / "new", model, WORDS[1:], facts)
    with pytest.raises(ValueError, match="cannot stand on a line of its own"):
        storage.save(tmp_path / "new", model, ["a\nb", *WORDS[1:]], facts)


def test_words_may_have_any_other_character(tmp_path):
    model = Plain(known().topics)
    words = ["a b", " ", "é", "日本", "\u2028", "a\rb", "\x0b", *WORDS[7:]]
    storage.save(tmp_path / "out", model, words, overview(model, corpus()))
    assert storage.load(tmp_path / "out").vocabulary == tuple(words)


def test_other_models_and_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="of the kind Known, which cannot be saved"):
        storage.save(tmp_path / "out", known(), WORDS, overview(known(), corpus()))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no folder at"):
        storage.load(tmp_path / "out")


def test_pyldavis_is_asked_for_or_given_what_it_wants():
    try:
        import pyLDAvis  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="which is not installed: install it"):
            export.to_pyldavis(known(), corpus())
        return
    export.to_pyldavis(known(), corpus())


def test_what_pyldavis_gets_adds_up(monkeypatch):
    given = {}

    def prepare(topics, theta, lengths, vocab, frequency, **options):
        given.update(
            topics=topics, theta=theta, lengths=lengths, vocab=vocab, n=frequency, **options
        )
        return "prepared"

    monkeypatch.setitem(sys.modules, "pyLDAvis", SimpleNamespace(prepare=prepare))
    documents = corpus()
    dense = documents.counts.toarray()
    dense[3], dense[:, 5] = 0, 0  # a document without words, and a word that never occurs
    documents = replace(documents, counts=csr_array(dense))
    assert export.to_pyldavis(known(), documents) == "prepared"
    assert given["topics"].shape == (3, 11)
    assert given["theta"].shape == (39, 3)
    np.testing.assert_allclose(given["topics"].sum(1), 1)
    np.testing.assert_allclose(given["theta"].sum(1), 1)
    assert given["lengths"].sum() == given["n"].sum() == dense.sum()
    assert given["vocab"] == [word for word in WORDS if word != WORDS[5]]
    assert given["sort_topics"] is False


def test_topics_in_closed_form_are_kept(tmp_path):
    documents = corpus()
    found = variational_em(documents.counts, 3, num_epochs=30)
    storage.save(tmp_path / "out", found, WORDS, overview(found, documents))
    back = storage.load(tmp_path / "out").model
    counts = corpus(seed=1).counts
    assert torch.equal(back.proportions(counts), found.proportions(counts))
    assert torch.equal(back.bound(counts), found.bound(counts))
    assert back.settings == found.settings
    assert list(back.elbo) == list(found.elbo)
