"""A reader of the files that people have.

What is read is a tuple of NumPy arrays in the file's own precision, all with the same first axis
N; a .npy file stays on the disk, to be read by minibatch. No pickle is ever executed.
"""

__all__ = ["read", "read_idx"]

import contextlib
import gzip
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

FORMATS = {
    ".npz": "numeric arrays as np.savez writes them, no pickles",
    ".npy": "a numeric array as np.save writes it, no pickle",
    ".csv": "a header row with a name for each column and then comma-separated numbers in UTF-8",
    ".pt": "a dense tensor, or a tuple, list or dictionary of them, as torch.save writes it",
}


def read(
    path: str | os.PathLike,
    columns: str | None = None,
    *,
    drop_missing: bool = False,
    standardise: bool = False,
    limit: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Reads the arrays of a .npz, .npy, .pt, .csv or .csv.gz, which share their first axis N.

    A .npy is memory-mapped, unless rows are dropped or it is standardised. A .csv gives one
    float64 matrix, (N, D), also for D = 1; a first column without a name is taken for row numbers.

    Args:
        path: The file.
        columns: The columns of a .csv or the arrays of a .npz or .pt to read, in this order:
            names "x,y", ranges in the order of the file "x1:x9", or both "A1:A5,age".
        drop_missing: Whether to leave out each row with a NaN or infinity in any array.
        standardise: Whether to bring each column of floating point (not of integers) to mean 0
            and standard deviation 1, dividing by N.
        limit: How many rows to read at most, counted before any is dropped.

    Raises:
        ValueError: if the file is absent, unreadable, or without the columns; if its arrays are
            empty, not numeric, or differ in length; if values are missing or a column constant.
    """
    path = Path(path).expanduser()
    suffix = ".csv" if path.name.endswith(".csv.gz") else path.suffix
    if suffix not in FORMATS:
        raise ValueError(f"'{path}' should end in {_listed([*FORMATS, '.csv.gz'])}: convert it.")
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file: check the path.")
    if limit is not None and limit < 1:
        raise ValueError(f"'limit' should be at least 1 row, got {limit}.")
    with _reading(path, FORMATS[suffix]):
        arrays = _load(path, suffix, columns, limit)
    _check_shapes(path, arrays)
    arrays = _without_missing(path, {k: x[:limit] for k, x in arrays.items()}, drop_missing)
    if standardise:
        arrays = {k: _standardised(path, k, x) for k, x in arrays.items()}
    if suffix == ".csv":
        return (np.stack(list(arrays.values()), axis=1),)  # (N, D)
    return tuple(x.astype(x.dtype.newbyteorder("="), copy=False) for x in arrays.values())


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of bytes, the format of MNIST (http://yann.lecun.com/exdb/mnist).

    That is 0, 0, 8, the number of axes, the length of each in four bytes, and then the values.

    Raises:
        ValueError: if the file is not of this format, or is too short or too long.
    """
    with _reading(path, "a gzipped IDX array of bytes"):
        raw = gzip.decompress(Path(path).read_bytes())
        magic, ndim = raw[:3], raw[3]
        shape = struct.unpack_from(f">{ndim}I", raw, 4)
        if magic != b"\0\0\x08":
            raise TypeError
        x = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim)
        return x.reshape(shape).copy()  # which may be written to


class _ColumnsError(ValueError):
    pass


@contextlib.contextmanager
def _reading(path: str | os.PathLike, what: str) -> Iterator[None]:
    # Parsers raise anything at all on a broken file, and some advise to let its pickle run.
    try:
        yield
    except _ColumnsError as error:
        raise ValueError(f"'columns' asks '{path}' for {error}") from None
    except Exception as error:
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): check that it is complete and "
            f"holds {what}, or write it again."
        ) from error


def _select(names: list[str], columns: str | None) -> list[str]:
    if columns is None:
        return names
    chosen = []
    for part in map(str.strip, columns.split(",")):
        first, last = (part, part) if part in names else part.partition(":")[::2]
        known = first in names and last in names
        span = names[names.index(first) : names.index(last) + 1] if known else []
        if not span:
            raise _ColumnsError(f"'{part}': choose names or a range 'a:b' from {_listed(names)}.")
        chosen += span
    return list(dict.fromkeys(chosen))


def _load(path: Path, suffix: str, columns: str | None, limit: int | None) -> dict:
    if suffix == ".npz":
        with np.lib.npyio.NpzFile(path) as file:  # np.load would also open a .npy in disguise
            return {k: file[k][...] for k in _select(file.files, columns)}  # arrays, not bytes
    if suffix == ".npy":
        x = np.lib.format.open_memmap(path, mode="r")
        return dict.fromkeys(_select([path.stem], columns), x)
    if suffix == ".pt":
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", weights_only=True)
        held = [held] if isinstance(held, Tensor) else held
        held = {str(k): x for k, x in (held.items() if isinstance(held, dict) else enumerate(held))}
        return {k: held[k].detach().numpy() for k in _select(list(held), columns)}
    frame = pd.read_csv(path, nrows=limit, low_memory=False)
    headless = all(re.fullmatch(r"[-+.]?\d[-+.\deE]*", name) for name in frame.columns)
    if headless or list(frame.index) != list(range(len(frame))):  # rows longer than the header
        raise pd.errors.ParserError
    if columns is None and frame.columns[0].startswith("Unnamed:"):
        frame = frame.iloc[:, 1:]
    frame, numeric = frame[_select(list(frame.columns), columns)], pd.api.types.is_numeric_dtype
    return {k: x.to_numpy(float if numeric(x) else object) for k, x in frame.items()}


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = [f"'{name}'" for name in names]
    return ", ".join(names[:most] + [f"{len(names) - most} more"] * (len(names) > most))


def _cells(name: str, mask: np.ndarray) -> list[str]:
    return [name + (str(cell) if cell else "") for cell in np.argwhere(mask).tolist()]


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    words = [k for k, x in arrays.items() if x.dtype.kind not in "biuf"]
    shapes = ", ".join(f"'{k}' {x.shape}" for k, x in arrays.items())
    lengths = {x.shape[:1] for x in arrays.values()}  # {(N,)} if all is well
    if words:
        problem = f"has non-numeric values in {_listed(words)}: encode them as numbers"
    elif not arrays or any(x.size == 0 for x in arrays.values()):
        problem = f"is empty, got {shapes or 'no arrays'}: write it again"
    elif len(lengths) > 1 or () in lengths:
        problem = f"has arrays that do not share a first axis, {shapes}: reshape them"
    else:
        return
    raise ValueError(f"'{path}' {problem}, or choose others with columns= (--columns).")


def _without_missing(path: Path, arrays: dict[str, np.ndarray], drop: bool) -> dict:
    floats = {k: x for k, x in arrays.items() if x.dtype.kind == "f"}
    counts = {k: np.zeros(x.shape[1:], int) for k, x in floats.items()}
    keep = np.ones(len(next(iter(arrays.values()))), bool)  # (N,)
    for name, x in floats.items():
        step = max(1, 2**22 * len(x) // x.size)  # rows, of a file that may be bigger than memory
        for i in range(0, len(x), step):
            missing = ~np.isfinite(x[i : i + step])
            counts[name] += missing.sum(axis=0)
            keep[i : i + step] &= ~missing.any(axis=tuple(range(1, x.ndim)))
    if keep.all():
        return arrays
    if drop and keep.any():
        return {k: x[keep] for k, x in arrays.items()}
    total = sum(count.sum() for count in counts.values())
    where = _listed(cell for k, count in counts.items() for cell in _cells(k, count > 0))
    raise ValueError(
        f"'{path}' has {total} missing or infinite values in {where}, in {(~keep).sum()} of its "
        f"{len(keep)} rows: drop rows with drop_missing=True (--drop-missing) if any are left, "
        "choose other columns, or impute."
    )


def _standardised(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        return x
    sd = x.std(axis=0, dtype=float)
    if constant := _cells(name, (x.max(axis=0) == x.min(axis=0)) | (sd == 0)):
        raise ValueError(
            f"'{path}' cannot be standardised, as {_listed(constant)} is constant: leave it out."
        )
    return ((x - x.mean(axis=0, dtype=float)) / sd).astype(x.dtype)
