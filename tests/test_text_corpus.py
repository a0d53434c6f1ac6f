"""Corpora in files: the same on the disk and in memory, and nothing that is no corpus."""

import contextlib
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import coo_array, csr_array, csr_matrix
from test_datasets import Bomb, one_sentence

from pplvm.text import Corpus, CorpusWriter, npz, read_corpus

same_file = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COUNTS = np.array([[0, 2, 0], [1, 0, 0], [0, 0, 0], [3, 1, 1]])
# NumPy's strings end at the first zeros.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)


def corpus(**changes) -> Corpus:
    parts = {
        "counts": csr_array(COUNTS),
        "vocabulary": ("x", "y", "z"),
        "titles": ("a", "b", "c", "d"),
        "groups": {"year": np.arange(1790, 1794), "party": np.array(["p", "q", "p", "r"])},
    }
    return Corpus(**parts | changes)


def same(a: Corpus, b: Corpus) -> bool:
    unseen = [0 if c.unseen is None else c.unseen for c in (a, b)]
    return (
        a.counts.shape == b.counts.shape
        and (a.counts != b.counts).nnz == 0
        and (a.vocabulary, a.titles) == (b.vocabulary, b.titles)
        and a.groups.keys() == b.groups.keys()
        and all(np.array_equal(a.groups[name], b.groups[name]) for name in a.groups)
        and np.array_equal(*unseen)
    )


def on_disk(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


# ---- parts ----


def test_rows_of_a_corpus():
    whole = corpus(unseen=np.array([0, 1, 2, 3]))
    assert len(whole) == 4
    for index in (slice(1, 3), [1, 2], np.array([False, True, True, False]), np.array([1, -2])):
        part = whole.rows(index)
        assert part.counts.toarray().tolist() == COUNTS[1:3].tolist()
        assert part.titles == ("b", "c")
        assert part.vocabulary == whole.vocabulary
        assert part.groups["year"].tolist() == [1791, 1792]
        assert part.unseen.tolist() == [1, 2]
    assert whole.rows([3, 0, 3]).titles == ("d", "a", "d")
    for index in ([4], [True, False], "x"):
        with pytest.raises(ValueError, match="'index' does not fit 4 documents") as info:
            whole.rows(index)
        one_sentence(info)


def test_other_sparse_formats_become_rows():
    for kind in (csr_matrix, coo_array):
        assert isinstance(corpus(counts=kind(COUNTS)).counts, csr_array)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"counts": COUNTS}, "'counts' should be a sparse matrix"),
        ({"counts": csr_array(COUNTS - 1)}, "negative"),
        ({"counts": csr_array(COUNTS / 2)}, "not whole"),
        ({"counts": csr_array(COUNTS * np.nan)}, "NaN"),
        ({"counts": csr_array(COUNTS > 0)}, "numeric, got bool"),
        ({"vocabulary": ("x", "y")}, "'vocabulary' has 2 words, and 'counts' 3 columns"),
        ({"titles": ("x",)}, "'titles' are 1, and 'counts' have 4 rows"),
        ({"groups": {"year": np.arange(3)}}, "group 'year' has shape (3,)"),
        ({"unseen": np.arange(3)}, "'unseen' has shape (3,)"),
    ],
)
def test_parts_that_are_no_corpus(changes, part):
    with pytest.raises(ValueError, match="counts") as info:
        corpus(**changes)
    one_sentence(info, part)


# ---- files ----


@st.composite
def corpora(draw):
    N, V = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    dtype = draw(st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64]))
    counts = draw(hnp.arrays(np.uint8, (N, V), elements=st.integers(0, 3))).astype(dtype)
    words = draw(st.lists(NAMES, min_size=V, max_size=V))
    titles = draw(st.lists(NAMES, min_size=N, max_size=N))
    groups = {"year": np.arange(N), "name": np.array(titles[::-1], dtype=str)}
    unseen = draw(st.sampled_from([None, np.arange(N)]))
    return Corpus(csr_array(counts), words, titles, groups if draw(st.booleans()) else {}, unseen)


@given(given_=corpora())
@same_file
def test_round_trip(tmp_path, given_):
    path = tmp_path / "c.npz"
    given_.save(path)
    found = read_corpus(path)
    assert same(found, given_)
    assert found.counts.dtype == given_.counts.dtype
    with np.load(path) as file:  # NumPy's own reader reads it
        assert file["vocab"].tolist() == list(given_.vocabulary)
        np.testing.assert_array_equal(file["data"], given_.counts.data)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@given(given_=corpora(), cuts=st.lists(st.integers(0, 6), max_size=3))
@same_file
def test_round_trip_batch_by_batch(tmp_path, given_, cuts):
    path, ends = tmp_path / "c.npz", [*sorted(cuts), len(given_)]
    with CorpusWriter(path, given_.vocabulary) as writer:
        start = 0
        for end in ends:
            part = given_.rows(slice(start, end))
            writer.append(part.counts, part.titles, part.groups, part.unseen)
            start = max(start, end)
    assert same(read_corpus(path), given_)
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_numpys_own_files(tmp_path):
    """Compressed or with several kinds of indices: the format that others write."""
    counts = csr_array(COUNTS)
    held = {"data": counts.data.astype(np.uint8), "indices": counts.indices.astype(np.uint16)}
    held |= {"indptr": counts.indptr, "shape": np.array(COUNTS.shape), "vocab": list("xyz")}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "c.npz", **held, year=np.arange(4))
        found = read_corpus(tmp_path / "c.npz")
        assert found.counts.toarray().tolist() == COUNTS.tolist()
        assert found.titles == ("0", "1", "2", "3")
        assert found.groups["year"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"shape": np.array([4, 2])}, "outside of the vocabulary"),
        ({"shape": np.array([5, 3])}, "do not fit 'shape'"),
        ({"shape": np.array([4, 3, 1])}, "too many values"),
        ({"indptr": np.array([0, 9])}, "do not fit 'shape'"),
        ({"indptr": np.array([0, 2, 1, 2, 5])}, "'indptr' does not rise"),
        ({"indptr": np.array([0, 1, 2, 2, 4])}, "'indptr' does not rise"),
        ({"indices": np.array([1, 0, 0, 1, -1])}, "outside of the vocabulary"),
        ({"indices": np.array([1.0, 0, 0, 1, 2])}, "whole numbers"),
        ({"indices": np.array([1, 0])}, "do not fit 'shape'"),
        ({"data": np.full(5, 0.5)}, "not whole"),
        ({"data": np.full(5, -1)}, "negative"),
        ({"data": np.full(5, np.nan)}, "NaN or infinite"),
        ({"data": np.full(5, "1")}, "numeric"),
        ({"vocab": np.array(["x", "y"])}, "'vocabulary' has 2 words"),
        ({"titles": np.array(["x", "y"])}, "'titles' are 2"),
        ({"year": np.arange(3)}, "group 'year' has shape"),
        ({"vocab": None}, "no 'vocab'"),
    ],
)
def test_files_that_are_no_corpus(tmp_path, changes, part):
    counts, path = csr_array(COUNTS), tmp_path / "c.npz"
    held = {name: getattr(counts, name) for name in ("data", "indices", "indptr")}
    held |= {"shape": np.array(COUNTS.shape), "vocab": np.array(list("xyz"))} | changes
    held = {name: x for name, x in held.items() if x is not None}
    with npz.writing(path) as file:  # aligned, so that they are mapped
        for name, x in held.items():
            npz.add(file, name, x.shape, x.dtype, [x])
    for write in (lambda: None, lambda: np.savez_compressed(path, **held)):
        write()
        with pytest.raises(ValueError, match=r"c.npz' cannot be read") as info:
            read_corpus(path)
        one_sentence(info, part)


def test_files_cut_short_or_damaged(tmp_path):
    path = tmp_path / "c.npz"
    corpus().save(path)
    raw = path.read_bytes()
    for length in (0, 1, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"c.npz' cannot be read") as info:
            read_corpus(path)
        one_sentence(info)
    at = raw.index(csr_array(COUNTS).data.tobytes())  # a count that became another
    path.write_bytes(raw[:at] + b"\x07" + raw[at + 1 :])
    with pytest.raises(ValueError, match=r"c.npz' cannot be read.*BadZipFile"):
        read_corpus(path)


@given(at=st.integers(0, 3000), noise=st.binary(min_size=1, max_size=40))
@same_file
def test_noise_is_a_corpus_or_a_value_error(tmp_path, at, noise):
    path = tmp_path / "c.npz"
    corpus().save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: at % len(raw)] + noise + raw[at % len(raw) + len(noise) :])
    with contextlib.suppress(ValueError):  # and nothing else
        found = read_corpus(path)
        assert len(found) == 4
        assert found.counts.data.min() >= 0


def test_pickles_never_run(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "c.npz"
    counts = csr_array(COUNTS)
    held = {name: getattr(counts, name) for name in ("data", "indices", "indptr")}
    bombs = np.array([Bomb(trace)], dtype=object)
    for write in (np.savez, np.savez_compressed):
        write(path, **held, shape=np.array(COUNTS.shape), vocab=bombs)
        with pytest.raises(ValueError, match="cannot be read"):
            read_corpus(path)
    assert not trace.exists()


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        read_corpus(tmp_path / "c.npz")
    for path in (tmp_path / "absent" / "c.npz", tmp_path / "c.txt"):
        for write in (corpus().save, CorpusWriter):
            with pytest.raises(ValueError, match=path.name) as info:
                write(path)
            one_sentence(info)
    with pytest.raises(ValueError, match="cannot be called 'vocab'"):
        corpus(groups={"vocab": np.arange(4)}).save(tmp_path / "c.npz")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "c.npz"
    corpus().save(path)
    with pytest.raises(RuntimeError), CorpusWriter(path, ("x", "y", "z")) as writer:  # noqa: PT012
        writer.append(csr_array(COUNTS))
        raise RuntimeError
    with pytest.raises(ValueError, match="'vocabulary' has 2 words"), CorpusWriter(path) as writer:  # noqa: PT012
        writer.append(csr_array(COUNTS))
        writer.vocabulary = ("x", "y")
    assert same(read_corpus(path), corpus())
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((csr_array(COUNTS / 2),), "whole numbers"),
        ((csr_array(-COUNTS),), "whole numbers"),
        ((csr_array(COUNTS * 2**31),), "whole numbers"),
        ((csr_array(COUNTS), ["a"]), "one entry a row, 4 of them"),
        ((csr_array(COUNTS), None, {"year": [1]}), "one entry a row"),
        ((csr_array(COUNTS), None, {"year": [1, 2, 3, 4]}), "'groups' should be []"),
        ((csr_array(COUNTS), None, None, np.arange(4)), "'groups' should be []"),
    ],
)
def test_batches_that_are_refused(tmp_path, arguments, part):
    with CorpusWriter(tmp_path / "c.npz", ("x", "y", "z")) as writer:
        writer.append(csr_array(COUNTS))
        with pytest.raises(ValueError, match=r"should be|should have") as info:
            writer.append(*arguments)
        one_sentence(info, part)
    assert len(read_corpus(tmp_path / "c.npz")) == 4


def test_duplicate_entries_of_a_batch_are_summed(tmp_path):
    twice = csr_array((np.array([1, 2, 4]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    with CorpusWriter(tmp_path / "c.npz", "xyz") as writer:
        writer.append(twice)
    counts = read_corpus(tmp_path / "c.npz").counts
    assert counts.toarray().tolist() == [[2, 0, 5]]
    assert counts.indices.tolist() == [0, 2]


# ---- memory ----


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """The path of 200,000 documents of 40 different words each, 64 MB of counts."""
    path, random = tmp_path_factory.mktemp("large") / "c.npz", np.random.default_rng(0)
    with CorpusWriter(path, [f"word{v}" for v in range(2000)]) as writer:
        for _ in range(100):
            steps = random.integers(1, 50, (2000, 40))  # between the words of a document
            parts = np.ones(80_000, np.int32), steps.cumsum(1).ravel(), np.arange(0, 80_001, 40)
            writer.append(csr_array(parts, shape=(2000, 2000)))
    return path


def test_a_large_corpus_stays_on_the_disk(large):
    """What is allocated for it, titles aside, is a small part of what it holds."""
    tracemalloc.start()
    found = read_corpus(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    part = found.rows(np.arange(0, 200_000, 2000))
    total = found.counts[5000:6000].sum()
    _, later = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counts = found.counts
    assert all(on_disk(x) for x in (counts.data, counts.indices, counts.indptr))
    assert all(x.flags.aligned for x in (counts.data, counts.indices, counts.indptr))
    size = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    assert size > 64e6
    assert peak < 48e6  # about 30e6 of it in 200,000 titles and their list, 14e6 in buffers
    assert later - before < 8e6
    assert len(part) == 100
    assert total == 40_000


def test_members_are_stored_and_aligned(large):
    with zipfile.ZipFile(large) as file:
        assert {m.compress_type for m in file.infolist()} == {zipfile.ZIP_STORED}
        assert file.testzip() is None
    held = npz.mapped(large)
    assert all(on_disk(held[name]) for name in ("data", "indices", "indptr", "titles"))
    assert all(held[name].ctypes.data % npz.ALIGNMENT == 0 for name in ("data", "indices"))
