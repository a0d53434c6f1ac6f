"""Data on their way to a fit: checked once, cut into minibatches in a seeded order."""

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral

import numpy as np
import torch
from scipy.sparse import csr_array, issparse, spmatrix
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pplvm.parameters import module_of

Array = Tensor | np.ndarray | csr_array | spmatrix

MOST_DENSE = 2**32  # bytes of a tensor that sparse rows may become


def resolve_device(device: str) -> torch.device:
    """Maps "auto" to CUDA where there is one, and checks any other name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"'device' should be 'auto', 'cpu' or 'cuda', got '{device}'.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"'device' is '{device}', but torch sees no CUDA here: use 'cpu' or 'auto'."
        )
    return chosen


def floating_dtype(*programs: Callable) -> torch.dtype:
    """Returns the dtype of the first floating parameter of these programs, else the default."""
    for program in programs:
        module = module_of(program)
        for p in module.parameters() if module is not None else ():
            if p.is_floating_point():
                return p.dtype
    return torch.get_default_dtype()


def as_tensor(x: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Moves one argument to a device, floating data to a dtype; sparse rows become dense ones.

    These are floating whatever they were, since they are mostly counts, which stories take so.

    Raises:
        ValueError: if sparse rows would take more than 4 GiB, an arbitrary limit.
    """
    if issparse(x):
        x = _dense(x, dtype)
    if isinstance(x, np.ndarray):
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
        # torch has no tensors that cannot be written to, such as a memory map would be.
        x = torch.as_tensor(x if x.flags.writeable else x.copy())
    return x.to(device, dtype if x.is_floating_point() else x.dtype)


def _dense(x: csr_array | spmatrix, dtype: torch.dtype) -> np.ndarray:
    size = dtype.itemsize * x.shape[0] * x.shape[1]
    if size > MOST_DENSE:
        raise ValueError(
            f"sparse rows {x.shape} would be a dense tensor of {size / 2**30:.1f} GiB: give "
            "'batch_size', or fewer rows."
        )
    return x.astype(np.float32 if dtype == torch.float32 else np.float64).toarray()


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises a ``ValueError`` unless an option is a whole number, at least so large."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"'{name}' should be at least {least} and whole, got {value!r}.")


def check_seed(seed: int) -> None:
    """Raises a ``ValueError`` unless a seed is a whole number that random states can hold."""
    check_count("seed", seed, least=0)
    if seed >= 2**63:
        raise ValueError(f"'seed' should be below 2**63, got {seed}.")


def as_tensors(data: Sequence[Array], *programs: Callable) -> tuple[Tensor, ...]:
    """Returns data as tensors where they are, floating ones in the dtype of the programs."""
    dtype, cpu = floating_dtype(*programs), torch.device("cpu")
    return tuple(as_tensor(x, dtype, x.device if isinstance(x, Tensor) else cpu) for x in data)


def check_data(data: Sequence[Array], what: str = "data") -> int:
    """Returns N, or raises a ``ValueError`` that names the argument at fault.

    Args:
        data: Tensors, arrays or sparse rows that share their first axis.
        what: What to call them.
    """
    if not data:
        raise ValueError(f"'{what}' is missing: give at least one tensor, first axis N.")
    for i, x in enumerate(data):
        if not isinstance(x, (Tensor, np.ndarray)) and not issparse(x):
            raise ValueError(
                f"{what}[{i}] should be a tensor or an array, got {type(x).__name__}: convert it "
                "with torch.as_tensor."
            )
        if issparse(x) and x.ndim != 2:
            raise ValueError(f"{what}[{i}] should be sparse rows (N, D), got shape {x.shape}.")
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(
                f"{what}[{i}] is empty, got shape {tuple(x.shape)}: give at least one datum."
            )
        if x.shape[0] != data[0].shape[0]:
            raise ValueError(
                f"the first axes of the {what} differ: {what}[0] has {data[0].shape[0]} rows, "
                f"{what}[{i}] {x.shape[0]}; every argument should have one row a datum."
            )
        if not isinstance(x, Tensor) and x.dtype.kind not in "biuf":
            raise ValueError(
                f"{what}[{i}] should be numeric, got dtype {x.dtype}: encode it first."
            )
        check_finite(x, f"{what}[{i}]")
    return data[0].shape[0]


def check_finite(x: Array, what: str) -> None:
    """Raises a ``ValueError`` if there are NaN or infinite values; a memory map is read in parts."""
    if (isinstance(x, Tensor) and not x.is_floating_point()) or (
        not isinstance(x, Tensor) and x.dtype.kind != "f"
    ):
        return
    rows = x.tocsr() if issparse(x) else None
    x = x if rows is None else rows.data
    for start in range(0, len(x), 65536):
        part = (
            torch.as_tensor(np.array(x[start : start + 65536])) if isinstance(x, np.ndarray) else x
        )
        bad = ~torch.isfinite(part)
        if bad.any():
            row = start + int(bad.reshape(len(part), -1).any(1).nonzero()[0])
            if rows is not None:  # of the first bad value
                row = int(np.searchsorted(rows.indptr, row, side="right")) - 1
            raise ValueError(
                f"{what} has {int(bad.sum())} NaN or infinite values, the first in row {row}: drop, "
                "impute or mask them."
            )
        if isinstance(x, Tensor):
            return


class Batches:
    """Cuts tensors, arrays, sparse rows or a ``DataLoader`` into the minibatches of each epoch.

    The order of an epoch follows from (seed, epoch) alone, so that a fit can be resumed at any
    step. The last batch is short where the size does not divide N.
    """

    def __init__(
        self,
        data: Sequence[Array] | DataLoader,
        batch_size: int | None,
        seed: int,
        convert: Callable[[Array], Tensor],
    ) -> None:
        self.seed, self.convert = seed, convert
        self.data = data if isinstance(data, DataLoader) else tuple(map(_by_rows, data))
        if isinstance(data, DataLoader):
            if batch_size is not None:
                raise ValueError("'batch_size' is the DataLoader's affair here: set it there.")
            if isinstance(data.dataset, IterableDataset):
                raise ValueError("the DataLoader has no length: give a dataset that has one.")
            self.size, self.per_epoch = len(data.dataset), len(data)
            self.batch_size = data.batch_size or self.size
            if self.size == 0:
                raise ValueError("the DataLoader is empty: give at least one datum.")
        else:
            self.size = data[0].shape[0]
            self.batch_size = min(batch_size or self.size, self.size)
            self.per_epoch = -(-self.size // self.batch_size)
        whole = self.per_epoch == 1 and not isinstance(data, DataLoader)
        self._whole = tuple(convert(x) for x in data) if whole else None

    def first(self) -> tuple[Tensor, ...]:
        """Returns one batch, for checks."""
        return next(self.epoch(0))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yields the batches of an epoch, but for the first few."""
        if self._whole is not None:
            yield self._whole
            return
        if isinstance(self.data, DataLoader):
            for i, batch in enumerate(self._loaded(epoch)):
                if i >= skip:
                    batch = batch if isinstance(batch, (tuple, list)) else (batch,)
                    if epoch == 0:  # which sees all of them
                        check_data(batch, f"batch {i} of the DataLoader")
                    yield tuple(self.convert(x) for x in batch)
            return
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        for rows in torch.randperm(self.size, generator=generator).split(self.batch_size)[skip:]:
            rows = rows.sort().values  # neighbours on disk are read together
            yield tuple(
                self.convert(x[rows if isinstance(x, Tensor) else rows.numpy()]) for x in self.data
            )

    def _loaded(self, epoch: int) -> Iterator:
        """Iterates the loader, each batch under a seed of its own whatever came before."""
        if self.data.generator is not None:
            self.data.generator.manual_seed(mix(self.seed, epoch))
        batches = None
        for i in range(self.per_epoch):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix(self.seed, epoch, i))
                batches = batches or iter(self.data)
                batch = next(batches)
            yield batch


def _by_rows(x: Array) -> Array:
    """Returns sparse data in a format that rows can be taken of."""
    return x.tocsr() if issparse(x) else x


def mix(*numbers: int) -> int:
    """Maps a seed and what it is for to a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
