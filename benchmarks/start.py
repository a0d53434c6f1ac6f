"""Seconds from the call to the first draw by NUTS in a fresh process: Pyro, NumPyro and pplvm.

Run: python benchmarks/start.py [--quick] [--rounds 3]

Eight schools in float64, four chains, 100 draws of warm-up and one to keep. "cold": everything is
compiled. "warm": another process has done the same before, and left what it compiled on the disk,
in inductor's cache for pplvm and in JAX's, which is off unless asked for, for NumPyro. Imports are
not in the seconds but in a column of their own. NumPyro's chains are in parallel, which compiles
fastest.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import common
import turns

SIZE = {"num_chains": 4, "num_warmup": 100, "num_samples": 1}
CACHES = {  # of compiled code, at a folder
    "pplvm": lambda folder: {"TORCHINDUCTOR_CACHE_DIR": folder},
    "NumPyro": lambda folder: {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    },
    "Pyro": lambda folder: {},
}


def by_pplvm(backend: str) -> Callable[[], tuple[float, float]]:
    """Returns a function that returns the seconds of imports, and those to the first draw."""

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        import stories
        import torch

        import pplvm

        torch.set_default_dtype(torch.float64)
        imported = time.perf_counter()
        model, _, data = stories.STORIES["eight schools"]()
        pplvm.nuts(model, *data, **SIZE, seed=0, backend=backend, progress=False)
        return imported - start, time.perf_counter() - imported

    return run


def by_numpyro() -> Callable[[], tuple[float, float]]:
    """Returns the same for NumPyro."""

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        import numpyro

        numpyro.set_host_device_count(SIZE["num_chains"])
        numpyro.enable_x64()
        import jax
        import peers_numpyro

        imported = time.perf_counter()
        y = jax.numpy.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        sigma = jax.numpy.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        kernel = numpyro.infer.NUTS(peers_numpyro.schools)
        mcmc = numpyro.infer.MCMC(kernel, **SIZE, chain_method="parallel", progress_bar=False)
        mcmc.run(jax.random.key(0), y, sigma)
        jax.block_until_ready(mcmc.get_samples())
        return imported - start, time.perf_counter() - imported

    return run


def once(library: str, folder: str) -> tuple[float, float]:
    """Returns both in a process of its own."""
    setup = by_numpyro if library == "NumPyro" else by_pplvm
    args = {"pplvm": ("nutpie",), "Pyro": ("pyro",), "NumPyro": ()}[library]
    worker = turns.Worker(setup, *args, env=CACHES[library](folder))
    with turns.closing({library: worker}):
        return worker()


def main() -> None:
    options = common.parser(__doc__, rounds=3).parse_args()
    rounds = 1 if options.quick else options.rounds
    about = common.machine(options.cores)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for library in ("pplvm", "NumPyro", "Pyro"):
            print(library, file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(f"{library}, cold", []).append(once(library, folder))
                if library != "Pyro":  # which keeps nothing
                    found.setdefault(f"{library}, warm", []).append(once(library, folder))
    rows = [
        {
            "process": name,
            "imports, s": median(s for s, _ in seconds),
            "first draw, s": median(s for _, s in seconds),
        }
        for name, seconds in found.items()
    ]
    title = f"Seconds to the first draw of eight schools, medians of {rounds} processes"
    common.keep("start", about, vars(options), {title: rows}, found)


if __name__ == "__main__":
    main()
