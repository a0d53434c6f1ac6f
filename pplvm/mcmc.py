"""Hamiltonian Monte Carlo: the No-U-Turn sampler over a story's latents.

References:
    | The No-U-Turn Sampler (Hoffman & Gelman, 2014)
    | https://jmlr.org/papers/v15/hoffman14a.html
"""

__all__ = ["nuts"]

import copy
import sys
import time
from collections.abc import Callable

import pyro
import torch
from joblib import Parallel, cpu_count, delayed
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm import tqdm

from pplvm import traces
from pplvm.batches import as_tensor, check_count, check_data, floating_dtype
from pplvm.contract import bind
from pplvm.draws import Draws
from pplvm.parameters import is_portable, module_of
from pplvm.traces import distribution_name

# One chain: (model, data, seed, num_warmup, num_samples) -> (values (S, …), statistics (S,)).
Sampler = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


def nuts(
    model: Callable,
    *data: Tensor,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Draws:
    """Samples the posterior of the latents at the model's parameters.

    Chains run in processes where there is more than one core. Interrupted, it returns nothing.

    Args:
        model: A story whose latents are all continuous. Its parameters stay as they are.
        data: Its arguments, first axis N.
        num_chains: The number of chains C.
        num_warmup: The number of steps of adaptation before the draws that are kept.
        num_samples: The number of draws S that are kept of each chain.
        seed: Chain c is seeded by ``seed`` and c, whatever runs beside it.
        progress: Whether to show a bar of the chains; by default on a terminal.
    """
    check_count("num_chains", num_chains)
    check_count("num_warmup", num_warmup, least=0)
    check_count("num_samples", num_samples)
    check_count("seed", seed, least=0)
    start = time.perf_counter()
    check_data(data)
    data = tuple(as_tensor(x, floating_dtype(model), torch.device("cpu")) for x in data)
    model, _ = bind(model, None, *data)
    sites = {n: s for n, s in traces.look(model, *data).items() if s.kind == "latent"}
    for name, site in sites.items():
        if site.fn.support.is_discrete:
            raise ValueError(
                f"site '{name}' ({distribution_name(site.fn)}) is discrete, which NUTS cannot move: "
                "observe it, or fit with 'reweighted_wake_sleep'."
            )
    if not sites:
        raise ValueError(
            "the model has no continuous latent site: there is nothing for NUTS to draw."
        )
    workers = min(num_chains, cpu_count()) if is_portable(model) else 1
    dtype = torch.get_default_dtype()  # which a worker would not know
    seeds = [seed * 1_000_003 + chain for chain in range(num_chains)]
    jobs = (delayed(_pyro_chain)(model, data, s, num_warmup, num_samples, dtype) for s in seeds)
    chains = Parallel(n_jobs=workers, return_as="generator")(jobs)
    quiet = not sys.stderr.isatty() if progress is None else not progress
    chains = list(tqdm(chains, "chains of NUTS", num_chains, disable=quiet))
    values = {
        name: torch.stack([v[name].reshape(num_samples, *site.value.shape) for v, _ in chains])
        for name, site in sites.items()
    }
    stats = {name: torch.stack([s[name] for _, s in chains]) for name in chains[0][1]}
    return Draws(
        values=values,
        plates={name: tuple(n for n, _, _ in site.plates) for name, site in sites.items()},
        stats=stats,
        model=model,
        data=data,
        settings={
            "method": "NUTS (Pyro)",
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_samples": num_samples,
            "seed": seed,
        },
        seconds=time.perf_counter() - start,
    )


def _pyro_chain(
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
