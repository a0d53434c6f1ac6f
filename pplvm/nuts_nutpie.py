"""The No-U-Turn sampler of nutpie, in Rust, over a compiled potential.

References:
    | nutpie and nuts-rs (Seyboldt et al.) https://github.com/pymc-devs/nutpie
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

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

    Interrupted, it returns as many draws as every chain has, or raises ``KeyboardInterrupt`` if
    one of them has none yet.
    """
    potential.start(torch.Generator().manual_seed(seed))  # or an error of ours
    native = potential.native
    model = _OfPointers({}, potential) if native is not None else _of_python(potential)
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
    return _unpack(found.get_arrow_trace(), num_samples)


@dataclass(frozen=True)
class _OfPointers(CompiledModel):
    """A density and its gradient as a C function: chains run in threads, without Python."""

    potential: Potential

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
        model = _lib.PyMcModel(
            density, copy, names, self.n_dim, sizes, {}, _starts(self.potential), None
        )
        return _lib.PySampler.from_pymc(settings, cores, model, progress_type, store)


def _of_python(potential: Potential) -> CompiledModel:
    single = potential.single

    def log_density(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = single(torch.from_numpy(x))
        return -value.item(), -gradient.numpy()

    return from_pyfunc(
        potential.dim,
        lambda: log_density,
        lambda *seeds: lambda x: {_NAME: x},
        [np.dtype("float64")],
        [(potential.dim,)],
        [_NAME],
        coords={"dim": np.arange(potential.dim)},
        dims={_NAME: ("dim",)},
        make_initial_point_fn=_starts(potential),
    )


def _starts(potential: Potential) -> Callable[[int], np.ndarray]:
    one_by_one = threading.Lock()  # nutpie asks from several threads, where Pyro lives in one

    def start(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed % 2**63)
        with one_by_one:
            return potential.start(generator, potential.single).numpy()

    return start


def _unpack(trace: tuple[list, list], num_samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the draws after the warm-up that all chains have."""
    chains, columns = [], {name: [] for name in _STATISTICS}
    for draws, statistics in zip(*trace, strict=True):
        kept = ~statistics.column("tuning").to_numpy()
        x = pyarrow.array(draws.column(_NAME)).flatten().to_numpy()
        chains.append(torch.tensor(x.reshape(len(kept), -1 if len(kept) else 0)[kept]))
        for name, theirs in _STATISTICS.items():
            column = statistics.column(theirs).to_numpy()[kept]
            columns[name].append(torch.as_tensor(column.astype(_type_of(column))))
    least = min(len(chain) for chain in chains)
    if least == 0 and num_samples > 0:
        raise KeyboardInterrupt
    cut = {name: torch.stack([c[:least] for c in parts]) for name, parts in columns.items()}
    return torch.stack([chain[:least] for chain in chains]), cut


def _type_of(column: np.ndarray) -> str:
    return "int64" if column.dtype.kind == "u" else column.dtype.name
