"""Piano rolls: small files in the format of the chorales, the chorales themselves, made-up ones."""

import numpy as np
import pytest
import torch
from test_datasets import one_sentence

from pplvm.datasets import jsb, named, small_chorales
from pplvm.datasets_chorales import LOWEST, MAJOR, VOICES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPLVM_DATA", str(tmp_path))
    (tmp_path / "jsb").mkdir()
    return tmp_path / "jsb"


def write(folder, **changes):
    """Writes rolls of random notes, returns those of "valid"."""
    random, arrays, rolls = np.random.default_rng(0), {}, []
    for split, lengths in (("train", [2, 1]), ("valid", [1, 4, 2]), ("test", [3])):
        rolls = [(random.random((T, 88)) < 0.1).astype(np.uint8) for T in lengths]
        arrays[f"{split}_packed"] = np.packbits(np.concatenate(rolls), axis=1)
        arrays[f"{split}_lengths"] = np.array(lengths, np.int32)
        if split == "valid":
            found = rolls
    np.savez(folder / "jsb_chorales.npz", **(arrays | changes))
    return found


def test_rolls_are_cut_and_padded(folder):
    rolls = write(folder)
    x, lengths = jsb("valid")
    assert x.shape == (3, 4, 88)
    assert x.dtype == torch.float32
    assert lengths.dtype == torch.long
    assert lengths.tolist() == [1, 4, 2]
    for row, roll in zip(x, rolls, strict=True):
        np.testing.assert_array_equal(row[: len(roll)], roll)
        assert (row[len(roll) :] == 0).all()
    assert jsb()[0].shape == (2, 2, 88)
    assert jsb("test")[1].tolist() == [3]
    assert torch.equal(named("jsb")[1], jsb()[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"train_lengths": np.array([2, 2])},
        {"train_lengths": np.array([3, 0])},
        {"train_lengths": np.array([[1, 2]])},
        {"train_packed": np.zeros((3, 88), np.uint8)},
        {"train_packed": np.zeros((3, 11), np.int64)},
        {"train_packed": np.zeros(3, np.uint8)},
    ],
)
def test_rolls_of_another_format_are_refused(folder, changes):
    write(folder, **changes)
    with pytest.raises(ValueError, match=r"jsb_chorales.npz' should have") as info:
        jsb()
    one_sentence(info, "'train_packed'", "'train_lengths'")


def test_a_file_without_the_split_is_refused(folder):
    np.savez(folder / "jsb_chorales.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="'train_packed'") as info:
        jsb()
    one_sentence(info)


def test_chorales_that_are_not_there(folder, monkeypatch):
    for named_at_all in (True, False):
        if not named_at_all:
            monkeypatch.delenv("PPLVM_DATA")
        with pytest.raises(ValueError, match=r"'jsb/jsb_chorales.npz' into a folder") as info:
            jsb()
        one_sentence(info, "PPLVM_DATA", "small_chorales")


@pytest.mark.parametrize("load", [jsb, small_chorales])
def test_chorales_have_three_splits(load):
    with pytest.raises(ValueError, match="'train', 'valid' or 'test', got 'dev'") as info:
        load("dev")
    one_sentence(info)


@pytest.mark.parametrize(
    ("split", "N", "steps", "longest"),
    [("train", 229, 13807, 129), ("valid", 76, 4602, 144), ("test", 77, 4725, 160)],
)
def test_chorales_of_the_folder(shared_data, split, N, steps, longest):
    x, lengths = jsb(split)
    assert x.shape == (N, longest, 88)
    assert lengths.sum() == steps
    assert lengths.max() == longest
    assert torch.equal(x.unique(), torch.tensor([0.0, 1.0]))
    assert 3 < x.sum() / steps <= 4  # notes of a chord
    sounding = x.sum((0, 1)).nonzero()[:, 0] + 21
    assert sounding.min() >= 43  # the range that is known of this edition
    assert sounding.max() == 96


# Made-up ones


@pytest.mark.parametrize(("split", "N"), [("train", 60), ("valid", 20), ("test", 20)])
def test_small_chorales(split, N):
    x, lengths = small_chorales(split)
    assert x.shape == (N, lengths.max(), 88)
    assert x.dtype == torch.float32
    assert lengths.dtype == torch.long
    assert lengths.min() >= 8
    assert lengths.max() <= 32
    assert len(lengths.unique()) > 5
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    assert torch.equal(x.unique(), torch.tensor([0.0, 1.0]))
    assert (x.sum(-1)[inside] >= 3).all()
    assert (x.sum(-1)[inside] <= len(VOICES)).all()
    assert (x[~inside] == 0).all()


def test_small_chorales_are_in_a_major_key():
    x, lengths = small_chorales()
    for row, T in zip(x, lengths, strict=True):
        steps = [{int(d) + LOWEST for d in step.nonzero()[:, 0]} for step in row[:T]]
        (key,) = (
            r for r in range(12) if {p % 12 for p in steps[-1]} == {r, (r + 4) % 12, (r + 7) % 12}
        )
        scale = {(key + s) % 12 for s in MAJOR}
        tonic, dominant = ({(key + s) % 12 for s in tones} for tones in ((0, 4, 7), (7, 11, 2)))
        classes = [{pitch % 12 for pitch in step} for step in steps]
        assert all(len(c) == 3 for c in classes)
        assert all(c <= scale for c in classes)
        assert classes[0] == classes[-1] == tonic
        assert classes[-2] == dominant
        for low, high in VOICES:
            assert all(any(low <= pitch <= high for pitch in step) for step in steps)


def test_small_chorales_never_change():
    x, lengths = small_chorales()
    assert torch.equal(small_chorales()[0], x)
    assert torch.equal(named("small-chorales")[0], x)
    assert lengths[:8].tolist() == [23, 17, 29, 22, 8, 19, 17, 18]
    assert (x[0, 0].nonzero()[:, 0] + LOWEST).tolist() == [51, 55, 58, 70]
    assert not torch.equal(small_chorales("valid")[1], small_chorales("test")[1])
