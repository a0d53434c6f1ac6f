"""Pyro's own No-U-Turn sampler, chain by chain: the reference."""

import copy
import sys
from collections.abc import Callable

import pyro
import torch
from joblib import Parallel, cpu_count, delayed
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm import tqdm

from pplvm.parameters import is_portable, module_of


def sample(
    model: Callable,
    data: tuple[Tensor, ...],
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns draws of the continuous latents (C, S, …) and statistics (C, S).

    Chains run in processes where there is more than one core. Interrupted, it keeps the chains
    that are complete, or raises ``KeyboardInterrupt`` if there is none.
    """
    workers = min(num_chains, cpu_count()) if is_portable(model) else 1
    dtype = torch.get_default_dtype()  # which a worker would not know
    seeds = [(seed * 1_000_003 + chain) % 2**63 for chain in range(num_chains)]
    jobs = (delayed(_chain)(model, data, s, num_warmup, num_samples, dtype) for s in seeds)
    found = []
    try:
        chains = Parallel(n_jobs=workers, return_as="generator")(jobs)
        for chain in tqdm(chains, "chains of NUTS", num_chains, disable=not progress):
            found.append(chain)
    except KeyboardInterrupt:
        if not found:
            raise
        print(f"pplvm: interrupted; kept {len(found)} complete chains.", file=sys.stderr)
    values, statistics = zip(*found, strict=True)
    return _stacked(values), _stacked(statistics)


def _stacked(chains: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    return {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}


def _chain(
    model: Callable,
    data: tuple[Tensor, ...],
    seed: int,
    num_warmup: int,
    num_samples: int,
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.set_default_dtype(dtype)
    module = module_of(model)
    if module is not None:
        model = copy.deepcopy(model)  # only the latents move
        module_of(model).requires_grad_(False)
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        kernel = _RecordingNUTS(model)
        mcmc = MCMC(kernel, num_samples, warmup_steps=num_warmup, disable_progbar=True)
        mcmc.run(*data)
        values = {name: v.detach() for name, v in mcmc.get_samples().items()}
    records = kernel.records[-num_samples:]
    return values, {name: torch.tensor([r[name] for r in records]) for name in records[0]}


class _RecordingNUTS(NUTS):
    """Pyro's sampler, with the statistics of each step kept."""

    def __init__(self, model: Callable) -> None:
        super().__init__(model)
        self.records: list[dict] = []
        self._within = 0

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self._trees: list = []
        self._energy = 0.0
        step_size = self.step_size
        out = super().sample(params)
        proposals = sum(tree.num_proposals for tree in self._trees)
        self.records.append(
            {
                "diverging": any(bool(tree.diverging) for tree in self._trees),
                "energy": float(self._energy),
                "tree_depth": len(self._trees),
                "step_size": float(step_size),
                "acceptance_rate": float(sum(t.sum_accept_probs for t in self._trees) / proposals),
            }
        )
        return out

    def _build_tree(self, z, r, z_grads, log_slice, direction, tree_depth, energy_current):
        self._within += 1
        tree = super()._build_tree(z, r, z_grads, log_slice, direction, tree_depth, energy_current)
        self._within -= 1
        if self._within == 0:  # a whole doubling, not one of its halves
            self._trees.append(tree)
            self._energy = energy_current
        return tree
