import contextlib
import functools
import gc
import gzip
import hashlib
import http.server
import pickle
import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pplvm import datasets
from pplvm.datasets import binary_digits, digits, mnist, named
from pplvm.reading import read, read_idx

# Every example overwrites the same file.
same_file = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMERIC = st.sampled_from(["u1", "i4", "i8", "f4", "f8", "?", ">f8", ">i4"])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
FINITE = {"allow_nan": False, "allow_infinity": False}  # neither of which is a datum
SUFFIXES = [".npz", ".npy", ".pt", ".csv", ".csv.gz"]


class Bomb:
    """What pickle would execute: the creation of a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def one_sentence(info, *parts):
    message = str(info.value)
    assert message.endswith((".", "?"))
    assert ". " not in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def save(path, x):
    """Saves a table of columns x0, x1, … in the format that the name of the file asks for."""
    if path.suffix == ".npz":
        np.savez(path, x=x)
    elif path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(x), path)
    else:
        pd.DataFrame(x).add_prefix("x").to_csv(path, index=False)
    return path


def write_idx(path, x, magic=b"\0\0\x08"):
    header = magic + bytes([x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
    path.write_bytes(gzip.compress(header + x.tobytes()))
    return path


# Data sets by name


def test_digits():
    x, images = digits(), binary_digits()
    assert x.shape == (1797, 61)
    assert images.shape == (1797, 8, 8)
    assert x.dtype == images.dtype == torch.float32
    assert x.mean(0).abs().max() < 1e-5
    assert x.std(0).min() > 0
    assert torch.equal(images.unique(), torch.tensor([0.0, 1.0]))
    assert 0.2 < images.mean() < 0.5


def test_named():
    (x,) = named("binary-digits")
    assert torch.equal(x, binary_digits())
    with pytest.raises(ValueError, match=r"'digts'.*did you mean 'digits'") as info:
        named("digts")
    one_sentence(info)
    with pytest.raises(ValueError, match="choose from digits, binary-digits, iris, mnist") as info:
        named("zebras")
    one_sentence(info)


@pytest.mark.parametrize(("split", "N"), [("train", 60_000), ("test", 10_000)])
def test_mnist_of_the_folder(shared_data, split, N):
    x = mnist(split)
    assert x.shape == (N, 28, 28)
    assert x.dtype == torch.float32
    assert torch.equal(x.unique(), torch.tensor([0.0, 1.0]))
    if split == "test":
        grey = mnist(split, binary=False)
        assert grey.min() == 0
        assert grey.max() == 1
        assert torch.equal((grey > 0.5).float(), x)
        assert len(grey.unique()) == 256


def test_mnist_has_two_splits():
    with pytest.raises(
        ValueError, match="'split' should be 'train' or 'test', got 'valid'"
    ) as info:
        mnist("valid")
    one_sentence(info)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a small MNIST from this machine, into a cache of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        name = "train-images-idx3-ubyte.gz"
        raw = write_idx(folder / name, images).read_bytes()
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "PPLVM_DATA"):
            monkeypatch.delenv(proxy, raising=False)
        monkeypatch.setattr(datasets, "MNIST_URL", f"http://127.0.0.1:{server.server_port}/")
        files = {"train": (name, hashlib.sha256(raw).hexdigest()), "test": ("absent.gz", "0" * 64)}
        monkeypatch.setattr(datasets, "MNIST_FILES", files)
        monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
        yield images, folder / name
        server.shutdown()
        thread.join()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # pooch leaves its connection to the collector


def test_mnist_is_fetched_once(server):
    images, served = server
    x = mnist(binary=False)
    np.testing.assert_allclose(x, images / 255, rtol=1e-6)
    served.unlink()
    np.testing.assert_array_equal(mnist(), images > 127)


def test_mnist_that_changed_is_refused(server, tmp_path):
    images, served = server
    write_idx(served, images[:4])
    with pytest.raises(ValueError, match=r"train-images.*wrong checksum.*PPLVM_DATA") as info:
        mnist()
    one_sentence(info)
    assert not list(tmp_path.glob("cache/pplvm/*"))


def test_mnist_that_is_not_there(server):
    with pytest.raises(ValueError, match=r"absent.gz' cannot be fetched.*PPLVM_DATA") as info:
        mnist("test")
    one_sentence(info)


@given(x=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, min_side=0, max_side=4)))
@same_file
def test_idx_round_trip(tmp_path, x):
    y = read_idx(write_idx(tmp_path / "x.gz", x))
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y, x)
    y += 1  # it may be written to


def test_idx_that_is_broken(tmp_path):
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = write_idx(tmp_path / "x.gz", x)
    whole, raw = path.read_bytes(), gzip.decompress(path.read_bytes())
    broken = [b"", whole[:-9], raw, gzip.compress(b""), gzip.compress(raw[:-1])]
    broken += [gzip.compress(raw[:6]), gzip.compress(raw + b"\0")]
    broken += [write_idx(path, x, magic=b"\0\0\x0d").read_bytes()]
    for contents in broken:
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"x.gz' cannot be read") as info:
            read_idx(path)
        one_sentence(info)


# Round trips


@given(
    x=NUMERIC.flatmap(
        lambda dtype: hnp.arrays(dtype, SHAPES, elements=FINITE if "f" in dtype else None)
    )
)
@same_file
def test_round_trip_of_arrays(tmp_path, x):
    native = x.dtype.newbyteorder("=")
    for suffix in [".npz", ".npy", ".pt"]:
        stored = x.astype(native) if suffix == ".pt" else x
        (y,) = read(save(tmp_path / f"x{suffix}", stored))
        assert y.dtype == native
        np.testing.assert_array_equal(y, x)
        torch.as_tensor(y[:0].copy())


@given(x=hnp.arrays(float, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=FINITE))
@same_file
def test_round_trip_of_tables(tmp_path, x):
    for suffix in [".csv", ".csv.gz"]:
        (y,) = read(save(tmp_path / f"x{suffix}", x))
        assert y.dtype == float
        np.testing.assert_array_equal(y, x)


def test_npy_stays_on_the_disk(tmp_path):
    path = save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    for options in ({}, {"limit": 4}, {"drop_missing": True}):
        (x,) = read(path, **options)
        assert isinstance(x, np.memmap)
    assert read(path, limit=4)[0].shape == (4, 2)


def test_several_arrays_and_the_choice_of_them(tmp_path):
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    np.savez(tmp_path / "a.npz", x=x, y=y, words=np.array(list("abcd")), short=y[:2], n=4)
    torch.save({"x": torch.tensor(x), "y": torch.nn.Parameter(torch.ones(4))}, tmp_path / "d.pt")
    torch.save((torch.tensor(x), [1]), tmp_path / "nested.pt")
    torch.save((torch.tensor(x), torch.tensor(y)), tmp_path / "t.pt")
    assert [len(z) for z in read(tmp_path / "a.npz", "y, x", limit=3)] == [3, 3]
    assert [z.shape for z in read(tmp_path / "a.npz", "y,x")] == [(4,), (4, 2)]
    assert [z.shape for z in read(tmp_path / "a.npz", "x:y")] == [(4, 2), (4,)]
    assert [z.shape for z in read(tmp_path / "d.pt")] == [(4, 2), (4,)]
    assert [z.shape for z in read(tmp_path / "d.pt", "y")] == [(4,)]
    assert [z.dtype for z in read(tmp_path / "t.pt")] == [np.float64, np.int64]
    for name, columns, parts in [
        ("a.npz", None, ["non-numeric", "'words'", "columns="]),
        ("a.npz", "x,short", ["first axis", "'x' (4, 2)", "'short' (2,)"]),
        ("a.npz", "x,n", ["first axis", "'n' ()"]),
        ("a.npz", "x,z", ["'columns'", "'z'", "'x', 'y'", "a.npz"]),
        ("a.npz", "y:x", ["'columns'", "'y:x'", "a.npz"]),
        ("a.npz", "", ["'columns'"]),
        ("nested.pt", None, ["nested.pt", "tuple, list or dictionary"]),
    ]:
        with pytest.raises(ValueError, match=name) as info:
            read(tmp_path / name, columns)
        one_sentence(info, *parts)


# Tables


def write(path, text):
    path.write_text(text)
    return path


def test_columns_of_a_table(tmp_path):
    path = write(tmp_path / "t.csv", ",name,a,b,c,on\n1,u,1,2,3,True\n2,v,4,5,6,False\n")
    with pytest.raises(ValueError, match=r"t.csv' has non-numeric values in 'name'") as info:
        read(path)
    one_sentence(info, "--columns")
    for columns, expected in [
        ("a:c", [[1, 2, 3], [4, 5, 6]]),
        ("c,a", [[3, 1], [6, 4]]),
        ("c, a:b,a", [[3, 1, 2], [6, 4, 5]]),
        ("on", [[1], [0]]),
    ]:
        np.testing.assert_array_equal(read(path, columns)[0], expected)
    for columns in ("d", "a:d", "c:a", "a:b:c", "a,,b"):
        with pytest.raises(ValueError, match=r"'columns' asks .*t.csv'") as info:
            read(path, columns)
        one_sentence(info, "'a', 'b', 'c'")


def test_row_numbers_are_no_data(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 5.0]})
    frame.to_csv(tmp_path / "t.csv")
    np.testing.assert_array_equal(read(tmp_path / "t.csv")[0], frame)


@pytest.mark.parametrize(
    "text", ["1,2\n3,4\n", "0.5,1e3,-2\n1,2,3\n", "a,b\n1,2,3\n4,5,6\n", "a,b\n1,2\n1,2,3\n"]
)
def test_table_without_a_full_header(tmp_path, text):
    with pytest.raises(ValueError, match=r"t.csv' cannot be read .* header") as info:
        read(write(tmp_path / "t.csv", text))
    one_sentence(info)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_values(tmp_path, suffix):
    x = np.arange(10.0).reshape(5, 2)
    x[1, 0] = x[3, 0] = np.nan
    path = save(tmp_path / f"x{suffix}", x)
    with pytest.raises(ValueError, match=f"x{suffix}' has 2 missing") as info:
        read(path)
    one_sentence(
        info, "0'" if "csv" in suffix else "[0]'", "2 of its 5 rows", "drop_missing", "impute"
    )
    np.testing.assert_array_equal(read(path, drop_missing=True)[0], x[[0, 2, 4]])
    np.testing.assert_array_equal(read(path, drop_missing=True, limit=2)[0], x[[0]])
    assert len(read(path, limit=1)[0]) == 1
    x[:, 1] = np.inf
    with pytest.raises(ValueError, match=r"7 missing or infinite.*5 of its 5 rows") as info:
        read(save(path, x), drop_missing=True)
    one_sentence(info)


def test_a_row_is_dropped_from_every_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([1, np.nan, 3]), y=np.arange(3))
    x, y = read(tmp_path / "a.npz", drop_missing=True)
    assert x.tolist() == [1, 3]
    assert y.tolist() == [0, 2]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_standardise(tmp_path, suffix):
    x = np.random.default_rng(0).normal(3, 2, (50, 3))
    path = save(tmp_path / f"x{suffix}", x)
    (y,) = read(path, standardise=True)
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), atol=1e-12)
    x[:, 1] = 0.1
    with pytest.raises(ValueError, match="cannot be standardised") as info:
        read(save(path, x), standardise=True)
    one_sentence(info, "'x1'" if "csv" in suffix else "[1]'")


def test_standardise_leaves_integers(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([1, 3], np.float32), y=np.array([0, 1]))
    x, y = read(tmp_path / "a.npz", standardise=True)
    assert x.dtype == np.float32
    assert x.tolist() == [-1, 1]
    assert y.tolist() == [0, 1]


# Files that cannot be read


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_never_run(tmp_path, suffix, protocol):
    path, trace = tmp_path / f"x{suffix}", tmp_path / "trace"
    for contents in (Bomb(trace), [Bomb(trace)], {"x": Bomb(trace)}):
        raw = pickle.dumps(contents, protocol=protocol)
        path.write_bytes(gzip.compress(raw) if suffix == ".csv.gz" else raw)
        with pytest.raises(ValueError, match=f"x{suffix}'") as info:
            read(path)
        one_sentence(info)
        assert not trace.exists()


def test_pickles_inside_never_run(tmp_path):
    trace = tmp_path / "trace"
    bombs = np.array([Bomb(trace)], dtype=object)
    np.save(tmp_path / "x.npy", bombs, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=bombs)
    torch.save([Bomb(trace)], tmp_path / "x.pt")
    for suffix in (".npy", ".npz", ".pt"):
        with pytest.raises(ValueError, match=f"x{suffix}' cannot be read") as info:
            read(tmp_path / f"x{suffix}")
        one_sentence(info)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()  # so they were live


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_short(tmp_path, suffix):
    x = np.random.default_rng(0).normal(size=(300, 2))
    raw = save(tmp_path / f"x{suffix}", x).read_bytes()
    for length in (0, 1, 10, len(raw) // 2, len(raw) - 1):
        (tmp_path / f"x{suffix}").write_bytes(raw[:length])
        if suffix == ".csv" and length > 1:
            continue  # a shorter table is a table
        with pytest.raises(ValueError, match=f"x{suffix}'") as info:
            read(tmp_path / f"x{suffix}")
        one_sentence(info)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(raw=st.binary(max_size=200), cut=st.integers(0, 400))
@same_file
def test_noise_is_data_or_a_value_error(tmp_path, suffix, raw, cut):
    path = save(tmp_path / f"x{suffix}", np.arange(6.0).reshape(3, 2))
    for contents in (raw, path.read_bytes()[:cut] + raw, path.read_bytes()[: -len(raw)] + raw):
        path.write_bytes(contents)
        with contextlib.suppress(ValueError):
            assert len({len(x) for x in read(path)}) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("other", [".npz", ".npy", ".pt", ".csv.gz"])
def test_another_format_in_disguise(tmp_path, suffix, other):
    if suffix == other:
        pytest.skip("no disguise")
    source = save(tmp_path / f"y{other}", np.arange(6.0).reshape(3, 2))
    path = source.rename(tmp_path / f"x{suffix}")
    with pytest.raises(ValueError, match=f"x{suffix}' cannot be read") as info:
        read(path)
    one_sentence(info)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", np.zeros((0, 2)))
    with pytest.raises(ValueError, match=f"x{suffix}'") as info:
        read(path)
    one_sentence(info)


def test_what_is_not_a_file(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "none.npz")
    for name, problem in [
        ("absent.csv", "is not a file"),
        ("folder.npz", "is not a file"),
        ("x.xlsx", "should end in"),
        ("x", "should end in"),
        ("none.npz", "no arrays"),
    ]:
        with pytest.raises(ValueError, match=f"{name}' {problem}|{problem}") as info:
            read(tmp_path / name)
        one_sentence(info, name)
    with pytest.raises(ValueError, match="'limit' should be at least 1 row, got 0"):
        read(tmp_path / "none.npz", limit=0)


# Real tables


def test_holzinger(shared_data):
    path = shared_data / "tabular" / "holzinger_swineford39.csv"
    (x,) = read(path, "x1:x9", standardise=True)
    assert x.shape == (301, 9)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    with pytest.raises(ValueError, match="'school'") as info:
        read(path)
    one_sentence(info, "--columns")


def test_bfi(shared_data):
    path = shared_data / "tabular" / "bfi.csv.gz"
    with pytest.raises(ValueError, match=r"508 missing.*'A1'.*364 of its 2800 rows") as info:
        read(path, "A1:O5")
    one_sentence(info, "drop_missing", "impute")
    (x,) = read(path, "A1:O5", drop_missing=True)
    assert x.shape == (2436, 25)
    assert np.isin(x, range(1, 7)).all()


def test_house_votes_are_words(shared_data):
    with pytest.raises(ValueError, match=r"'Class', 'V1'.* 9 more"):
        read(shared_data / "tabular" / "house_votes84.csv")


def test_iris_is_standardised_and_species_take_turns():
    x = datasets.iris()
    assert (x.shape, x.dtype) == ((150, 4), torch.float32)
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-5, rtol=0, check_dtype=False)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(4), check_dtype=False)
    assert (x[::3, 2] < x[1::3, 2].min()).all()  # the petals of setosa are the shortest
