"""Arrays in a .npz file that stay on the disk: written uncompressed, then mapped into memory.

A .npz is a zip of .npy members; one that is stored as it is can be mapped where it lies. NumPy's
own reader never does so, and its writer lets members begin anywhere, so that numbers may lie across
the boundaries that compiled code expects. Here they begin at multiples of 64 bytes. Either reader
takes what either writer wrote. No pickle is ever executed.

References:
    | The format of a .npy: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    | The format of a zip: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

__all__ = ["add", "mapped", "parts", "writing"]

import contextlib
import io
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

ALIGNMENT = 64
LOCAL_HEADER, ZIP64 = 30, 20  # bytes, of a zip's member besides its name, and of 64-bit sizes
PADDING = 0xD935  # the field by which Android's zipalign aligns members
PART = 2**20  # numbers read at once


@contextlib.contextmanager
def writing(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a new .npz beside the path; it takes the path's place once all is written."""
    beside = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(beside, "w") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write '{path}': {error.strerror}; choose another path."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def add(
    file: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable
) -> None:
    """Writes an array that comes in chunks, in order."""
    header = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, described)
    member = zipfile.ZipInfo(name + ".npy")
    begins = file.fp.tell() + LOCAL_HEADER + len(member.filename.encode()) + ZIP64
    pad = -(begins + header.tell()) % ALIGNMENT
    pad += ALIGNMENT * (0 < pad < 4)  # such a field takes four bytes at least
    member.extra = struct.pack("<HH", PADDING, pad - 4).ljust(pad, b"\0") if pad else b""
    written = 0
    with file.open(member, "w", force_zip64=True) as stream:
        stream.write(header.getvalue())
        for chunk in chunks:
            chunk = np.ascontiguousarray(chunk, dtype=dtype)
            stream.write(chunk.tobytes())  # strings have no buffer
            written += chunk.size
    assert written == np.prod(shape, dtype=int)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz: maps of those stored and aligned, the others read.

    Raises anything at all where the file is broken; maps are not looked into.
    """
    found = {}
    with open(path, "rb") as raw, zipfile.ZipFile(raw) as file:
        for member in file.infolist():
            with file.open(member) as stream:
                shape, fortran, dtype = _header(stream)
                before = stream.tell()
                raw.seek(member.header_offset)
                name, extra = struct.unpack_from("<HH", raw.read(LOCAL_HEADER), 26)
                begins = member.header_offset + LOCAL_HEADER + name + extra + before
                stored = member.compress_type == zipfile.ZIP_STORED and not fortran
                if stored and begins % max(1, dtype.alignment) == 0 and 0 not in shape and shape:
                    array = np.memmap(path, dtype, "r", begins, shape)
                    assert array.nbytes == member.file_size - before
                else:
                    stream.seek(0)
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            found[member.filename.removesuffix(".npy")] = array
    return found


def parts(path: Path, name: str) -> Iterator[np.ndarray]:
    """Yields an array of a .npz in parts, read and not mapped, which also checks its sum."""
    with zipfile.ZipFile(path) as file, file.open(name + ".npy") as stream:
        _, _, dtype = _header(stream)
        while raw := stream.read(PART * dtype.itemsize):
            yield np.frombuffer(raw, dtype)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise TypeError("pickles are not read")
    return shape, fortran, dtype
