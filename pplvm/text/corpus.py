"""Documents as bags of words: counts in sparse rows, words for columns, in memory or on the disk.

Shapes: N documents, V words of the vocabulary.
"""

__all__ = ["Corpus", "read_corpus"]

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, issparse

from pplvm.text import npz

NAMES = ("data", "indices", "indptr", "shape", "vocab")  # of the arrays in a file
OTHERS = ("titles", "unseen")  # which are no groups


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as bags of words; the counts may lie on the disk, mapped into memory.

    Counts are whole numbers from 0 on, of any numeric dtype. ``unseen`` is what was left out of
    documents that were counted by a vocabulary given beforehand.

    Raises:
        ValueError: if the parts do not belong together, or a count is no count. Counts that cannot
            be written to, as those of :func:`read_corpus`, were looked at when they were read.
    """

    counts: csr_array  # (N, V)
    vocabulary: tuple[str, ...]  # V words
    titles: tuple[str, ...]  # of N documents
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)  # (N,) each, such as "year"
    unseen: np.ndarray | None = None  # (N,): tokens that are not in the vocabulary

    def __post_init__(self) -> None:
        if not issparse(self.counts) or self.counts.ndim != 2:
            raise ValueError(
                f"'counts' should be a sparse matrix (N, V), got {type(self.counts).__name__}: "
                "make one with scipy.sparse.csr_array."
            )
        own = {
            "counts": csr_array(self.counts),
            "vocabulary": tuple(map(str, self.vocabulary)),
            "titles": tuple(map(str, self.titles)),
            "groups": {name: _plain(values) for name, values in self.groups.items()},
            "unseen": None if self.unseen is None else np.asarray(self.unseen),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)
        if wrong := _misfit(self) or self._miscount():
            raise ValueError(f"{wrong}: give every document a row, and every word a column.")

    def __len__(self) -> int:
        return self.counts.shape[0]

    def rows(self, index: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> "Corpus":
        """Returns a part of the documents, in memory.

        Args:
            index: Which: a slice, N truth values, or row numbers, in any order.
        """
        try:
            chosen = np.atleast_1d(np.arange(len(self))[index])
        except IndexError as error:
            raise ValueError(
                f"'index' does not fit {len(self)} documents ({error}): give a slice, one truth "
                "value a document, or row numbers."
            ) from None
        return Corpus(
            self.counts[chosen],
            self.vocabulary,
            tuple(self.titles[i] for i in chosen),
            {name: values[chosen] for name, values in self.groups.items()},
            None if self.unseen is None else self.unseen[chosen],
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes a .npz that :func:`read_corpus` maps, and that ``np.load`` reads.

        It holds ``data``, ``indices``, ``indptr`` and ``shape`` of the counts, ``vocab``,
        ``titles``, ``unseen`` if there is any, and each group by its name.
        """
        counts = self.counts
        whole = np.int32 if counts.nnz < 2**31 else np.int64
        held = {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr}
        held |= described(counts.shape, self.vocabulary, self.titles, self.groups)
        if self.unseen is not None:
            held["unseen"] = self.unseen
        with npz.writing(checked(path)) as file:
            for name, x in held.items():
                dtype = whole if name in ("indices", "indptr") else x.dtype
                chunks = (x[i : i + npz.PART] for i in range(0, len(x), npz.PART))
                npz.add(file, name, x.shape, dtype, chunks)

    def _miscount(self) -> str:
        counts = self.counts
        if not counts.data.flags.writeable:
            return ""
        steps = range(0, len(counts.data), npz.PART)
        wrong = (
            _wrong(name, x[i : i + npz.PART], counts.shape[1])
            for name, x in (("indices", counts.indices), ("data", counts.data))
            for i in steps
        )
        return next((f"'counts' {what}" for what in wrong if what), "")


def read_corpus(path: str | os.PathLike) -> Corpus:
    """Opens a corpus; the counts stay on the disk until rows of them are asked for.

    They are read through once to be checked, in parts. What :meth:`Corpus.save` and
    :class:`CorpusWriter` wrote is mapped; what is compressed, or has indices of several dtypes, is
    read into memory. Where there are no titles, they are the row numbers. Every other array is a
    group.

    Raises:
        ValueError: if the file is absent, incomplete or of another format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file: check the path.")
    try:
        held = npz.mapped(path)
        if missing := [name for name in NAMES if name not in held]:
            raise ValueError(f"there is no '{missing[0]}'")
        N, V = map(int, held["shape"])
        for wrong in _faults(path, held, N, V):
            raise ValueError(wrong)
        parts = tuple(held[name] for name in ("data", "indices", "indptr"))
        counts = csr_array(parts, shape=(N, V), copy=False)
        counts.data.flags.writeable = False  # it has been looked at
        titles = held["titles"].tolist() if "titles" in held else range(N)
        groups = {name: x for name, x in held.items() if name not in NAMES + OTHERS}
        return Corpus(counts, held["vocab"].tolist(), titles, groups, held.get("unseen"))
    except Exception as error:  # parsers raise anything at all on a broken file
        reason = str(error).split(":")[0] if type(error) is ValueError else type(error).__name__
        names = ", ".join(f"'{name}'" for name in NAMES)
        raise ValueError(
            f"'{path}' cannot be read as a corpus ({reason}): check that it is complete and holds "
            f"{names}, counts in sparse rows, words for columns; or write it again."
        ) from error


def described(
    shape: tuple[int, int],
    vocabulary: Sequence[str],
    titles: Sequence[str],
    groups: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Returns the arrays of a file besides the counts."""
    for name in groups:
        if name in NAMES + OTHERS:
            raise ValueError(f"a group cannot be called '{name}' in a file: give another name.")
    held = {"shape": np.array(shape), "vocab": np.array(vocabulary, dtype=str)}
    return held | {"titles": np.array(titles, dtype=str)} | dict(groups)


def checked(path: str | os.PathLike) -> Path:
    """Returns where a corpus may be written: any path that ends in .npz, in a folder that is."""
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"'{path}' should end in .npz: choose another path.")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write '{path}': there is no folder '{path.parent}'; make it.")
    return path


def _faults(path: Path, held: Mapping[str, np.ndarray], N: int, V: int) -> Iterator[str]:
    """Yields what is wrong with the counts of a file."""
    data, indices, indptr = (held[name] for name in ("data", "indices", "indptr"))
    if indptr.shape != (N + 1,) or data.ndim != 1 or data.shape != indices.shape:
        yield "'data', 'indices' and 'indptr' do not fit 'shape'"
    if "b" in data.dtype.kind or data.dtype.kind not in "iuf":
        yield f"'data' should be numeric, got {data.dtype}"
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        yield "'indices' and 'indptr' should be whole numbers"
    rises = all(
        (part[1:] >= part[:-1]).all()
        for part in (indptr[i : i + npz.PART + 1] for i in range(0, N, npz.PART))
    )
    if not rises or indptr[0] != 0 or indptr[-1] != len(data):
        yield "'indptr' does not rise from 0 to the length of 'data'"
    for name in ("data", "indices"):
        for part in npz.parts(path, name):
            if wrong := _wrong(name, part, V):
                yield wrong


def _wrong(name: str, part: np.ndarray, num_words: int) -> str:
    """Says what is wrong with a part of the indices or of the data of sparse rows, if anything."""
    if name == "indices":
        inside = not len(part) or (part.min() >= 0 and part.max() < num_words)
        return "" if inside else f"has words outside of the vocabulary of {num_words}"
    if part.dtype.kind == "f" and not np.isfinite(part).all():
        return "has counts that are NaN or infinite"
    if part.dtype.kind == "f" and (part != np.rint(part)).any():
        return "has counts that are not whole"
    return "has negative counts" if (part < 0).any() else ""


def _misfit(corpus: Corpus) -> str:
    """Says which parts of a corpus do not fit its counts, if any."""
    (N, V), dtype = corpus.counts.shape, corpus.counts.dtype
    if dtype.kind not in "iuf":
        return f"'counts' should be numeric, got {dtype}"
    if len(corpus.vocabulary) != V:
        return f"'vocabulary' has {len(corpus.vocabulary)} words, and 'counts' {V} columns"
    if len(corpus.titles) != N:
        return f"'titles' are {len(corpus.titles)}, and 'counts' have {N} rows"
    for name, values in corpus.groups.items():
        if values.shape != (N,):
            return f"group '{name}' has shape {values.shape}, and 'counts' {N} rows"
    if corpus.unseen is not None and corpus.unseen.shape != (N,):
        return f"'unseen' has shape {corpus.unseen.shape}, and 'counts' {N} rows"
    return ""


def _plain(values: Sequence) -> np.ndarray:
    """Returns values in a dtype that a file can hold without pickles."""
    values = np.asarray(values)
    return values if values.dtype.kind in "biufUM" else values.astype(str)
