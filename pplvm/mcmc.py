"""Markov chain Monte Carlo over a story's latents: the No-U-Turn sampler, and ChEES-HMC.

Discrete latents are summed out while the chains move, and drawn from their posterior afterwards.

References:
    | The No-U-Turn Sampler (Hoffman & Gelman, 2014)
    | https://jmlr.org/papers/v15/hoffman14a.html

    | An adaptive-MCMC scheme for setting trajectory lengths in HMC (Hoffman, Radul & Sountsov, 2021)
    | https://proceedings.mlr.press/v130/hoffman21a.html
"""

__all__ = ["chees", "nuts"]

import copy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pplvm import nuts_nutpie, nuts_pyro, traces
from pplvm.batches import (
    as_tensor,
    check_count,
    check_data,
    check_seed,
    floating_dtype,
    mix,
    resolve_device,
)
from pplvm.chees import Transition, chees_hmc, stack
from pplvm.compile import MODES
from pplvm.contract import bind
from pplvm.draws import Draws
from pplvm.parameters import module_of
from pplvm.potentials import Potential
from pplvm.traces import Site

BACKENDS = ("auto", "nutpie", "pyro")

# Gradients that a draw takes, give or take: what "auto" expects.
_GRADIENTS = 10


def nuts(
    model: Callable,
    *data: Tensor,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    backend: str = "auto",
    compile: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Draws:
    """Samples the posterior of the latents at the model's parameters.

    Interrupted by Ctrl-C, it returns the draws so far, without chains that have few or none.

    Args:
        model: A story. Its parameters stay as they are. Discrete latents that have finitely many
            states are summed out, and drawn afterwards given the continuous ones.
        data: Its arguments, first axis N.
        num_chains: The number of chains C.
        num_warmup: The number of steps of adaptation before the draws that are kept.
        num_samples: The number of draws S that are kept of each chain.
        backend: "nutpie" for the sampler in Rust over the compiled potential, "pyro" for Pyro's
            own, the reference; "auto" for nutpie.
        compile: How nutpie's potential runs: "inductor", "graph" or "off" as in
            :func:`pplvm.fit`, "auto" for what will be done first.
        seed: Of all chains: the same seed and number of chains give the same draws.
        progress: Whether to show a bar of the chains; by default on a terminal.
    """
    start = time.perf_counter()
    _check_options({"num_chains": num_chains, "num_samples": num_samples}, num_warmup, seed)
    _check_choice("backend", backend, BACKENDS)
    _check_choice("compile", compile, MODES)
    model, data, sites = _prepare(model, torch.device("cpu"), *data)
    shown = sys.stderr.isatty() if progress is None else progress
    size = (num_chains, num_warmup, num_samples, seed, shown)
    settings = {
        "num_chains": num_chains, "num_warmup": num_warmup, "num_samples": num_samples,
        "seed": seed,
    }  # fmt: skip
    if backend == "pyro":
        Potential(model, *data).start(torch.Generator().manual_seed(seed))  # or an error of ours
        values, stats = nuts_pyro.sample(model, data, *size)
        settings |= {"method": "NUTS (Pyro)", "compile": "off: Pyro's own"}
    else:
        calls = num_chains * (num_warmup + num_samples) * _GRADIENTS
        potential = Potential(model, *data, mode=compile, num_calls=calls)
        potential.prepare()
        ready = time.perf_counter()
        points, stats = nuts_nutpie.sample(potential, *size)
        settings |= _seconds(start, ready)
        kept, length = points.shape[:2]
        if kept < num_chains or length < num_samples:
            chains = f"of {kept} of {num_chains} chains" if kept < num_chains else "a chain"
            print(f"pplvm: interrupted; kept {length} draws {chains}.", file=sys.stderr)
        values = potential.constrain(points)
        settings |= {"method": "NUTS (nutpie)", "compile": potential.choice}
    return _draws(model, data, sites, values, stats, settings, start)


def chees(
    model: Callable,
    *data: Tensor,
    num_chains: int = 64,
    num_warmup: int = 300,
    num_samples: int = 100,
    device: str = "cpu",
    compile: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Draws:
    """Samples the posterior with many short chains, by one batched gradient for all of them.

    ChEES-HMC, of which all chains share step size and trajectory length: see :mod:`pplvm.chees`.
    Interrupted by Ctrl-C, it returns the draws so far.

    Args:
        model: A story, as for :func:`nuts`.
        data: Its arguments, first axis N.
        num_chains: The number of chains C, at least 2, best 64 to thousands.
        num_warmup: The number of steps of adaptation before the draws that are kept.
        num_samples: The number of draws S that are kept of each chain.
        device: "auto", "cpu", "cuda" or "cuda:1"; a story's modules are copied there.
        compile: How the potential runs: "inductor", "graph", "off" or "auto".
        seed: Of all chains.
        progress: Whether to show a bar with the share of divergences; by default on a terminal.
    """
    start = time.perf_counter()
    _check_options({"num_samples": num_samples}, num_warmup, seed)
    check_count("num_chains", num_chains, least=2)
    _check_choice("compile", compile, MODES)
    model, data, sites = _prepare(model, resolve_device(device), *data)
    calls = num_chains * (num_warmup + num_samples) * _GRADIENTS
    potential = Potential(model, *data, mode=compile, num_calls=calls)
    rows, ready = potential.prepare(num_chains), time.perf_counter()
    generator = torch.Generator(potential.device).manual_seed(seed)
    steps = chees_hmc(
        rows, potential.starts(rows, num_chains, mix(seed, 3)),
        num_warmup=num_warmup, num_samples=num_samples, generator=generator,
    )  # fmt: skip
    quiet = not sys.stderr.isatty() if progress is None else not progress
    points, stats = stack(_watched(steps, num_warmup + num_samples, quiet))
    settings = {
        "method": "ChEES-HMC", "num_chains": num_chains, "num_warmup": num_warmup,
        "num_samples": num_samples, "seed": seed, "compile": potential.choice,
    } | _seconds(start, ready)  # fmt: skip
    return _draws(model, data, sites, potential.constrain(points), stats, settings, start)


def _seconds(start: float, ready: float) -> dict[str, float]:
    """Returns what came before the first step took, and the steps."""
    return {"prepare_seconds": ready - start, "sample_seconds": time.perf_counter() - ready}


def _watched(steps: Iterator[Transition], total: int, quiet: bool) -> Iterator[Transition]:
    """Yields the steps under a bar, and ends where they are interrupted after the warm-up."""
    kept = diverging = 0
    with tqdm(total=total, desc="ChEES-HMC", disable=quiet) as shown:
        while True:
            try:
                step = next(steps, None)
            except KeyboardInterrupt:
                if kept == 0:
                    raise
                print(f"pplvm: interrupted; kept {kept} draws a chain.", file=sys.stderr)
                return
            if step is None:
                return
            kept += not step.warmup
            diverging += 0 if step.warmup or quiet else int(step.diverging.sum())
            shown.update()
            shown.set_postfix(divergences=diverging, refresh=False)
            yield step


def _check_options(counts: dict[str, int], num_warmup: int, seed: int) -> None:
    for name, value in counts.items():
        check_count(name, value)
    check_count("num_warmup", num_warmup, least=0)
    check_seed(seed)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"'{name}' should be one of {choices}, got {value!r}.")


def _prepare(
    model: Callable, device: torch.device, *data: Tensor
) -> tuple[Callable, tuple[Tensor, ...], dict[str, Site]]:
    """Returns the story at its parameters, its data as tensors, and its latents."""
    check_data(data)
    data = tuple(as_tensor(x, floating_dtype(model), device) for x in data)
    if device.type != "cpu" and module_of(model) is not None:
        model = copy.deepcopy(model)
        module_of(model).to(device)
    model, _ = bind(model, None, *data)
    sites = {n: s for n, s in traces.look(model, *data).items() if s.kind == "latent"}
    with torch.random.fork_rng():
        shapes = traces.unconstrained_shapes(model, *data)  # or an error that names the site
    if not shapes and sites:
        raise ValueError(
            f"the latents {sorted(sites)} are all discrete: there is nothing for a chain to move, so "
            "fit with 'reweighted_wake_sleep'."
        )
    if not shapes:
        raise ValueError("the model has no latent site: there is nothing for a chain to move.")
    return model, data, sites


def _draws(
    model: Callable,
    data: tuple[Tensor, ...],
    sites: dict[str, Site],
    values: dict[str, Tensor],
    stats: dict[str, Tensor],
    settings: dict[str, Any],
    start: float,
) -> Draws:
    """Returns the draws of all latents, the discrete ones drawn here."""
    C, S = next(iter(values.values())).shape[:2]
    discrete = [name for name in sites if name not in values]
    if discrete:
        with torch.random.fork_rng():
            torch.manual_seed(mix(settings["seed"], 2))
            rows = {name: value.flatten(0, 1) for name, value in values.items()}
            decoded = traces.decode(model, rows, *data)
        values = values | {name: decoded[name].unflatten(0, (C, S)) for name in discrete}
    return Draws(
        values={n: values[n].reshape(C, S, *site.value.shape) for n, site in sites.items()},
        plates={name: tuple(n for n, _, _ in site.plates) for name, site in sites.items()},
        stats=stats,
        model=model,
        data=data,
        settings=settings,
        seconds=time.perf_counter() - start,
    )
