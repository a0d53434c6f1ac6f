"""A corpus that is written batch by batch, to be larger than memory.

Shapes: N documents, V words of the vocabulary, B documents of a batch.
"""

__all__ = ["CorpusWriter"]

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from scipy.sparse import csr_array

from pplvm.text import npz
from pplvm.text.corpus import checked, described


class CorpusWriter:
    """Appends documents to a file that :func:`read_corpus` opens once the writer is closed.

    ::

        with CorpusWriter("corpus.npz", vocabulary) as writer:
            for block in blocks:
                writer.append(block, titles)

    Counts go to files beside it, in an unnamed folder, and are put together at the end: meanwhile
    they take their space twice. Nothing is left there, nor at the path, if an error ends the block.
    Titles and groups are kept in memory.

    Args:
        path: The file, which should end in .npz; one that is there is replaced at the end.
        vocabulary: The V words of the columns. It may be set up to the end, to be longer than the
            blocks appended so far are wide.
    """

    def __init__(self, path: str | os.PathLike, vocabulary: Sequence[str] = ()) -> None:
        self.path, self.vocabulary = checked(path), vocabulary
        self.titles: list[str] = []
        self.groups: dict[str, list[np.ndarray]] = {}
        self.unseen: list[np.ndarray] = []
        self._ends: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._nnz = self._width = 0

    def __enter__(self) -> "CorpusWriter":
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=".corpus-", dir=self.path.parent)
        except OSError as error:
            raise ValueError(
                f"cannot write '{self.path}': {error.strerror}; choose another path."
            ) from error
        self._files: dict[str, BinaryIO] = {
            name: open(Path(self._folder.name, name), "w+b")  # noqa: SIM115
            for name in ("data", "indices")
        }
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.close()
            self._folder.cleanup()

    def append(
        self,
        counts: csr_array,
        titles: Sequence[str] | None = None,
        groups: Mapping[str, Sequence] | None = None,
        unseen: np.ndarray | None = None,
    ) -> None:
        """Adds documents (B, V); titles are their row numbers by default."""
        block = csr_array(counts, copy=True)
        block.sum_duplicates()
        B, V = block.shape
        values = block.data.astype(np.int32)
        if (values != block.data).any() or (values < 0).any():
            raise ValueError("'counts' should be whole numbers from 0 to 2**31 - 1: round them.")
        first = len(self)
        titles = [str(first + b) for b in range(B)] if titles is None else list(titles)
        groups = {name: np.asarray(x) for name, x in (groups or {}).items()}
        if len(titles) != B or any(x.shape != (B,) for x in groups.values()):
            raise ValueError(f"'titles' and 'groups' should have one entry a row, {B} of them.")
        if first and (groups.keys() != self.groups.keys() or (unseen is None) == bool(self.unseen)):
            raise ValueError(f"'groups' should be {sorted(self.groups)} for every batch.")
        try:
            self._files["data"].write(values.tobytes())
            self._files["indices"].write(block.indices.astype(np.int32).tobytes())
        except OSError as error:
            raise ValueError(
                f"cannot write '{self.path}': {error.strerror}; make room for it."
            ) from error
        self._ends.append(self._nnz + block.indptr[1:].astype(np.int64))
        self._nnz, self._width = self._nnz + block.nnz, max(self._width, V)
        self.titles += titles
        for name, x in groups.items():
            self.groups.setdefault(name, []).append(x)
        if unseen is not None:
            self.unseen.append(np.asarray(unseen))

    def __len__(self) -> int:
        return len(self.titles)

    def _finish(self) -> None:
        N, V = len(self), len(self.vocabulary)
        if self._width > V:
            raise ValueError(
                f"'vocabulary' has {V} words, and the documents {self._width} columns: name them all."
            )
        whole = np.int32 if self._nnz < 2**31 else np.int64
        groups = {name: np.concatenate(x) for name, x in self.groups.items()}
        held = described((N, V), self.vocabulary, self.titles, groups)
        if self.unseen:
            held["unseen"] = np.concatenate(self.unseen)
        with npz.writing(self.path) as file:
            npz.add(file, "data", (self._nnz,), np.int32, self._read("data"))
            npz.add(file, "indices", (self._nnz,), whole, self._read("indices"))
            npz.add(file, "indptr", (N + 1,), whole, self._ends)
            for name, x in held.items():
                npz.add(file, name, x.shape, x.dtype, [x])

    def _read(self, name: str) -> Iterator[np.ndarray]:
        file = self._files[name]
        file.seek(0)
        while raw := file.read(4 * npz.PART):
            yield np.frombuffer(raw, np.int32)
