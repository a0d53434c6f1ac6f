"""The No-U-Turn sampler of nutpie, in Rust, over a compiled potential.

References:
    | nutpie and nuts-rs (Seyboldt et al.) https://github.com/pymc-devs/nutpie
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import nutpie
import pyarrow
import torch
from joblib import cpu_count
from nutpie import _lib
from nutpie.compiled_pyfunc import from_pyfunc
from nutpie.sample import CompiledModel
from torch import Tensor

from pplvm.potentials import Potential

_NAME = "x"  # of the whole point, the only variable that nutpie knows
# Our names of statistics, ArviZ's, and nutpie's.
_STATISTICS = {
    "diverging": "diverging",
    "energy": "energy",
    "tree_depth": "depth",
    "n_steps": "n_steps",
    "step_size": "step_size_bar",
    "acceptance_rate": "mean_tree_accept",
}


def sample(
    potential: Potential,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    seed: int,
    progress: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns draws (C, S, D) on the unconstrained scale, and statistics (C, S).

    Interrupted, it returns the most draws that chains of one length make, C being the number of
    those chains, or raises ``KeyboardInterrupt`` if none has any yet.
    """
    potential.start(torch.Generator().manual_seed(seed))  # or an error of ours
    native = potential.native
    one_by_one = threading.Lock()  # nutpie asks from several threads, where Pyro lives in one
    lost: list[Exception] = []  # which nutpie does not hand on
    start = _noting(lost, _start(potential, one_by_one))
    if native is not None:
        model = _OfPointers({}, potential, start)
    else:
        model = _of_python(potential, start, one_by_one, lost)
    sampler = nutpie.sample(
        model,
        draws=num_samples,
        tune=max(num_warmup, 2),  # nutpie knows no less
        chains=num_chains,
        cores=min(num_chains, cpu_count()) if native is not None else 1,
        seed=seed,
        progress_bar=progress,
        return_raw_trace=True,
        blocking=False,
    )
    try:
        found = sampler.wait()
    except KeyboardInterrupt:
        found = sampler.abort()
    except BaseException as error:  # a panic of nutpie's is no Exception
        if not lost and type(error).__name__ != "PanicException":
            raise
        first = str(lost[0]) if lost else "its density is another one where it was finite before"
        reason = (first.strip() or type(lost[0]).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the story fails where the sampler asks for its density: {reason}; let it have the same "
            "sites in every run, and a density wherever the prior has one."
        ) from error
    return _unpack(found.get_arrow_trace())


@dataclass(frozen=True)
class _OfPointers(CompiledModel):
    """A density and its gradient as a C function: chains run in threads, without Python."""

    potential: Potential
    start: Callable[[int], np.ndarray]

    @property
    def coords(self) -> dict:
        return {}

    @property
    def n_dim(self) -> int:
        return self.potential.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {_NAME: (self.n_dim,)}

    def _make_sampler(self, settings, init_mean, cores, progress_type, store):
        native, plan = self.potential.native, self.potential.native.plan.ctypes.data
        density = _lib.LogpFunc(native.address("log_density"), plan, native)
        copy = _lib.ExpandFunc(self.n_dim, self.n_dim, native.address("copy"), plan, native)
        sizes, shape = {"dim": self.n_dim}, [(self.n_dim,)]
        names = _lib.PyVariable.new_variables([_NAME], ["float64"], shape, sizes, {_NAME: ("dim",)})
        model = _lib.PyMcModel(density, copy, names, self.n_dim, sizes, {}, self.start, None)
        return _lib.PySampler.from_pymc(settings, cores, model, progress_type, store)


def _of_python(
    potential: Potential,
    start: Callable[[int], np.ndarray],
    one_by_one: threading.Lock,
    lost: list[Exception],
) -> CompiledModel:
    def log_density(x: np.ndarray) -> tuple[float, np.ndarray]:
        with one_by_one:
            value, gradient = potential.single(torch.from_numpy(x))
        return -value.item(), -gradient.numpy()

    return from_pyfunc(
        potential.dim,
        lambda: _noting(lost, log_density),
        lambda *seeds: lambda x: {_NAME: x},
        [np.dtype("float64")],
        [(potential.dim,)],
        [_NAME],
        coords={"dim": np.arange(potential.dim)},
        dims={_NAME: ("dim",)},
        make_initial_point_fn=start,
    )


def _start(potential: Potential, one_by_one: threading.Lock) -> Callable[[int], np.ndarray]:
    def start(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed % 2**63)
        with one_by_one:
            return potential.start(generator, potential.single).numpy()

    return start


def _noting(lost: list[Exception], function: Callable) -> Callable:
    """Returns the function, which keeps what it raises."""

    def noted(argument: Any) -> Any:
        try:
            return function(argument)
        except Exception as error:
            lost.append(error)
            raise

    return noted


def _unpack(trace: tuple[list, list]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the draws after the warm-up, of chains cut to the length that keeps the most."""
    chains, columns = [], {name: [] for name in _STATISTICS}
    for draws, statistics in zip(*trace, strict=True):
        kept = ~statistics.column("tuning").to_numpy()
        x = pyarrow.array(draws.column(_NAME)).flatten().to_numpy()
        chains.append(torch.tensor(x.reshape(len(kept), -1 if len(kept) else 0)[kept]))
        for name, theirs in _STATISTICS.items():
            column = statistics.column(theirs).to_numpy()[kept]
            columns[name].append(torch.as_tensor(column.astype(_type_of(column))))
    lengths = [len(chain) for chain in chains]
    length = max(lengths, key=lambda least: sum(least for n in lengths if n >= least))
    if length == 0:
        raise KeyboardInterrupt

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack([part[:length] for part in parts if len(part) >= length])

    return stacked(chains), {name: stacked(parts) for name, parts in columns.items()}


def _type_of(column: np.ndarray) -> str:
    return "int64" if column.dtype.kind == "u" else column.dtype.name
