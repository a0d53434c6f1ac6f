"""Sparse rows as data: a fit sees the dense numbers that they stand for, bit for bit.

Shapes: N documents, V words of the vocabulary.
"""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array, csc_array, csr_array, csr_matrix
from test_datasets import one_sentence
from test_text_corpus import large  # noqa: F401

import pplvm
from pplvm import batches
from pplvm.batches import Batches, as_tensor, check_data
from pplvm.guides.document_model import DocumentModelGuide
from pplvm.models.document_model import DocumentModel
from pplvm.objectives import reweighted_wake_sleep
from pplvm.text import Corpus, read_corpus

N, V, K = 30, 12, 2
FORMATS = [csr_array, csr_matrix, csc_array, coo_array]


def counts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.7, (N, V)) + (np.arange(V) == 0)


def fit(*data, **options) -> pplvm.Fit:
    torch.manual_seed(0)
    story, guide = DocumentModel(V, K), DocumentModelGuide(V, K)
    options = {"num_steps": 7, "compile": "off", "progress": False} | options
    return pplvm.fit(story, guide, *data, objective=reweighted_wake_sleep, **options)


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_fits_are_those_of_dense_data(batch_size, dtype):
    x, held_out = counts().astype(dtype), counts(1).astype(dtype)
    dense = torch.as_tensor(x).double()
    expected = fit(
        dense, batch_size=batch_size, validation=torch.as_tensor(held_out).double(), validate_every=3
    )  # fmt: skip
    for kind in FORMATS:
        found = fit(
            kind(x), batch_size=batch_size, validation=kind(held_out), validate_every=3
        )  # fmt: skip
        assert found.history.bound == expected.history.bound
        assert found.history.validation == expected.history.validation
        learned = (f.run.parameters.values() for f in (found, expected))
        for a, b in zip(*learned, strict=True):
            assert torch.equal(a, b)


def test_a_fit_of_sparse_data_can_be_asked_everything():
    x = counts()
    sparse, dense = fit(csr_array(x)), fit(torch.as_tensor(x).double())
    for ask in (
        lambda f: f.draws(num_draws=3)["z"],
        lambda f: f.predict(num_draws=3)["x"],
        lambda f: f.bound(num_repeats=2),
        lambda f: f.log_marginal(num_particles=30).value,
    ):
        assert torch.equal(ask(sparse), ask(dense))
    again = sparse.draws(csr_array(x), num_draws=3)["z"]
    assert torch.equal(again, sparse.draws(num_draws=3)["z"])
    a, b = (pplvm.compare({"fit": f}, num_draws=20, num_particles=30) for f in (sparse, dense))
    assert a.rows[0].bound == b.rows[0].bound
    assert torch.equal(a.data[0], b.data[0])


def test_saved_fits_of_sparse_data(tmp_path):
    x = csr_array(counts())
    found = fit(x, batch_size=8)
    found.save(tmp_path / "fit")
    torch.manual_seed(1)
    again = pplvm.load(tmp_path / "fit", DocumentModel(V, K), DocumentModelGuide(V, K), x)
    assert torch.equal(again.bound(), found.bound())


@pytest.mark.parametrize(
    ("x", "part"),
    [
        (csr_array([[0, 1.0], [0, 0], [2, np.nan], [1, 1]]), "1 NaN or infinite values"),
        (csr_array([[0, 1.0], [0, 0], [2, np.nan], [1, 1]]), "the first in row 2"),
        (csr_array((0, 3)), "is empty"),
        (csr_array(np.ones((3, 2), complex)), "numeric"),
        (coo_array(np.ones(3)), "sparse rows (N, D)"),
    ],
)
def test_sparse_data_that_are_refused(x, part):
    with pytest.raises(ValueError, match=r"data\[0\]") as info:
        check_data((x,))
    one_sentence(info, part)


def test_rows_of_sparse_data_should_be_as_many():
    with pytest.raises(ValueError, match=r"data\[0\] has 3 rows, data\[1\] 2") as info:
        check_data((csr_array(np.ones((3, 2))), torch.ones(2)))
    one_sentence(info)
    assert check_data((csr_array(np.ones((3, 2))), torch.ones(3), np.ones(3))) == 3


def test_sparse_rows_become_floating():
    x = csr_matrix(counts().astype(np.uint16))
    for dtype in (torch.float32, torch.float64, torch.float16):
        found = as_tensor(x, dtype, torch.device("cpu"))
        assert found.dtype == dtype
        assert found.tolist() == counts().tolist()
    measured = np.random.default_rng(0).normal(size=(4, 3)) * (np.arange(3) > 0)
    assert (
        as_tensor(csr_array(measured), torch.float64, torch.device("cpu")).tolist()
        == measured.tolist()
    )


def test_too_many_dense_numbers_are_refused(monkeypatch):
    x = csr_array((500_000, 20_000))
    with pytest.raises(ValueError, match=r"\(500000, 20000\).*74.5 GiB.*'batch_size'") as info:
        fit(x)
    one_sentence(info)
    monkeypatch.setattr(batches, "MOST_DENSE", 8 * N * V - 1)
    with pytest.raises(ValueError, match="'batch_size'"):
        fit(csr_array(counts()))
    fit(csr_array(counts()), batch_size=N - 1)


def test_fits_of_a_corpus_on_the_disk(tmp_path):
    x = counts()
    Corpus(csr_array(x), map(str, range(V)), map(str, range(N))).save(tmp_path / "c.npz")
    found = fit(read_corpus(tmp_path / "c.npz").counts, batch_size=8)
    assert found.history.bound == fit(csr_array(x), batch_size=8).history.bound


def test_minibatches_of_a_large_corpus_take_little_memory(large):  # noqa: F811
    """An epoch of 200,000 documents allocates a few batches, of all that is in the file nothing."""
    found = read_corpus(large)
    tracemalloc.start()
    check_data((found.counts,))
    convert = lambda x: as_tensor(x, torch.float32, torch.device("cpu"))  # noqa: E731
    total = 0.0
    for i, (batch,) in enumerate(Batches((found.counts,), 500, 0, convert).epoch(0)):
        total += float(batch.sum())
        if i == 50:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 51 * 500 * 40
    assert peak < 3 * 500 * 2000 * 4 + 4e6  # batches of float32, and the order of rows
