"""Effective draws a second by NUTS on posteriordb's models: Pyro, NumPyro and pplvm.

Run: PPLVM_DATA=… python benchmarks/nuts.py [--quick] [--rounds 3] [--models eight_schools …]

The number is the least bulk ESS of the model's quantities, the columns of posteriordb's reference
draws, over all seconds from the call to having these quantities, warm-up included. Everybody has
the same parametrisation (``peers_numpyro.py``), float64, four chains of 500 + 1000 draws, target
acceptance 0.8 and a diagonal metric. Each has a process of its own; they take turns.

- Pyro: ``pplvm.nuts(backend="pyro")``, chains in processes, half as many draws of each as it
  takes minutes, and once, as it compiles nothing.
- NumPyro: chains in sequence, vectorised, and in parallel on one XLA device each, as its
  ``chain_method`` has them but compiled once; whichever does best on a model counts.
- pplvm: ``pplvm.nuts(backend="nutpie")``.

The first call of a process has all compilation in it, with empty caches; the other numbers are
medians over the next calls, which have the same shapes and other seeds, and have none. (NumPyro's
``MCMC.run`` compiles whenever it is called, so that all its calls are first ones; here ``jit``
keeps it. pplvm checks and traces a story at every call, because it may have changed; what that
took, ``prepare_seconds``, is left out here as the compilation is.)
Agreement with the reference is the largest difference of a mean, in standard errors of both: fast
and wrong would show.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import common
import turns

sys.path.append(str(Path(__file__).parents[1] / "tests"))

METHODS = ("sequential", "vectorized", "parallel")  # of NumPyro


# ---- contenders: each in a process of its own, which imports what it needs ----


def by_pplvm(name: str, backend: str, chains: int, warmup: int, draws: int) -> Callable:
    """Returns a function that maps a seed to facts about draws."""
    import posteriordb
    import torch

    import pplvm

    torch.set_default_dtype(torch.float64)
    model, data, sites = posteriordb.posterior(common.posteriordb_folder(), name)
    called: list[int] = []

    def run(seed: int) -> dict[str, float]:
        start = time.perf_counter()
        found = pplvm.nuts(
            model, *data, num_chains=chains, num_warmup=warmup, num_samples=draws, seed=seed,
            backend=backend, progress=False,
        )  # fmt: skip
        values = found.values | found.deterministic()
        got = [values[site].reshape(chains, draws, -1).numpy() for site in sites]
        seconds = time.perf_counter() - start
        if called:
            seconds -= found.settings.get("prepare_seconds", 0.0)
        called.append(seed)
        return facts(name, got, seconds, int(found.stats["diverging"].sum()))

    return run


def by_numpyro(name: str, method: str, chains: int, warmup: int, draws: int) -> Callable:
    """Returns the same for NumPyro."""
    import numpyro

    numpyro.set_host_device_count(chains if method == "parallel" else 1)
    numpyro.enable_x64()
    import jax
    import numpy as np
    import peers_numpyro
    import posteriordb
    import torch

    torch.set_default_dtype(torch.float64)
    _, data, sites = posteriordb.posterior(common.posteriordb_folder(), name)
    arrays = [jax.numpy.asarray(x.numpy()) for x in data]
    kernel = numpyro.infer.NUTS(peers_numpyro.twin(name, *(x.numpy() for x in data)))

    def chain(key):
        mcmc = numpyro.infer.MCMC(
            kernel, num_warmup=warmup, num_samples=draws, num_chains=1, progress_bar=False
        )
        mcmc.run(key, *arrays)
        samples = mcmc.get_samples()
        return [samples[site] for site in sites], mcmc.get_extra_fields()["diverging"]

    # By itself, with num_chains and chain_method, MCMC.run would compile at every call.
    sampler = {
        "sequential": jax.jit(lambda keys: jax.lax.map(chain, keys)),
        "vectorized": jax.jit(jax.vmap(chain)),
        "parallel": jax.pmap(chain),
    }[method]

    def run(seed: int) -> dict[str, float]:
        start = time.perf_counter()
        samples, diverging = sampler(jax.random.split(jax.random.key(seed), chains))
        got = [np.asarray(value).reshape(chains, draws, -1) for value in samples]  # waits
        seconds = time.perf_counter() - start
        return facts(name, got, seconds, int(diverging.sum()))

    return run


def facts(name: str, got: list, seconds: float, diverging: int) -> dict[str, float]:
    """Returns what there is to say about draws of the reference's columns, (C, S, …) each."""
    import numpy as np
    import posteriordb
    from arviz_stats.base import array_stats

    x = np.concatenate(got, -1).transpose(2, 0, 1)  # (columns, C, S)
    y = posteriordb.reference(common.posteriordb_folder(), name)[0].transpose(2, 0, 1)
    errors = [array_stats.mcse(d, method="mean") for d in (x, y)]
    ess = float(array_stats.ess(x, method="bulk").min())
    return {
        "ess": ess,
        "seconds": seconds,
        "rate": ess / seconds,
        "rhat": float(array_stats.rhat(x).max()),
        "z": float(np.abs((x.mean((1, 2)) - y.mean((1, 2))) / np.hypot(*errors)).max()),
        "diverging": diverging,
    }


# ---- rounds and tables ----


def measure(name: str, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Returns the facts of every call, the first one first, by contender."""
    size = options.chains, options.warmup, options.draws
    less = options.chains, options.warmup // 2, options.draws // 2
    print(name, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        env = {"TORCHINDUCTOR_CACHE_DIR": cache}
        slow = turns.Worker(by_pplvm, name, "pyro", *less, env=env)
        with turns.closing({"Pyro": slow}):
            found = {"Pyro": [slow(0)]}
        workers = {"pplvm": turns.Worker(by_pplvm, name, "nutpie", *size, env=env)}
        with turns.closing(workers):
            for method in METHODS:
                workers[f"NumPyro {method}"] = turns.Worker(by_numpyro, name, method, *size)
            found |= {contender: [] for contender in workers}
            for seed in range(options.rounds + 1):
                for contender, worker in workers.items():
                    found[contender].append(worker(seed))
    return found


def rates(found: dict[str, list[dict[str, float]]], first: bool) -> common.Row:
    """Returns effective draws a second of the first call, or of those after it."""
    each = {
        contender: calls[0]["rate"] if first or len(calls) == 1
        else median(call["rate"] for call in calls[1:])
        for contender, calls in found.items()
    }  # fmt: skip
    peer = max((c for c in each if c.startswith("NumPyro")), key=each.get)
    return {
        "Pyro": each["Pyro"],
        "NumPyro": each[peer],
        "its chains": peer.split()[1],
        "pplvm": each["pplvm"],
        "pplvm / Pyro": each["pplvm"] / each["Pyro"],
        "pplvm / NumPyro": each["pplvm"] / each[peer],
    }


def speeds(found: dict[str, dict], first: bool) -> list[common.Row]:
    """Returns a table of effective draws a second, with the geometric means of the ratios."""
    rows = [{"model": n.split("-")[0]} | rates(calls, first) for n, calls in found.items()]
    return common.with_means(rows, " / ")


def checks(found: dict[str, dict]) -> list[common.Row]:
    """Returns a table of what all the calls' draws were like."""
    return [
        {
            "model": name.split("-")[0],
            "by": contender,
            "first call, s": calls[0]["seconds"],
            "next, s": median(c["seconds"] for c in calls[1:]) if calls[1:] else None,
            "bulk ESS": median(c["ess"] for c in calls),
            "worst R-hat": f"{max(c['rhat'] for c in calls):.4f}",
            "worst z": max(c["z"] for c in calls),
            "divergences": sum(c["diverging"] for c in calls),
        }
        for name, contenders in found.items()
        for contender, calls in contenders.items()
    ]


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=[n.split("-")[0] for n in common.POSTERIORS])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds = ["eight_schools"], 1
        options.warmup, options.draws = 200, 400
    common.posteriordb_folder()
    about = common.machine(options.cores)
    names = [name for name in common.POSTERIORS if name.split("-")[0] in options.models]
    found = {name: measure(name, options) for name in names}
    tables = {
        "Effective draws a second, compilation done": speeds(found, first=False),
        "Effective draws a second, first call": speeds(found, first=True),
        "Seconds, and what the draws are like": checks(found),
    }
    common.keep("nuts", about, vars(options), tables, found)


if __name__ == "__main__":
    main()
