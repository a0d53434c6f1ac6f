"""What a gradient of 64 chains at once costs, beside that of one: Pyro, NumPyro and pplvm.

Run: PPLVM_DATA=… python benchmarks/chains.py [--quick] [--rounds 15] [--seconds 0.1]

The potential and its gradient on the unconstrained scale, in float64, of posteriordb's models:
Pyro's own, of one chain; NumPyro's by ``jax.jit`` and ``jax.vmap``; pplvm's as traced and
compiled, and as batched and compiled. Medians over rounds in which everybody has a block of calls.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import common
import turns

sys.path.append(str(Path(__file__).parents[1] / "tests"))

CHAINS = 64


def by_torch(name: str) -> Callable[[str, float], float]:
    """Returns a function that maps a contender and a budget to the seconds of a gradient."""
    import posteriordb
    import pyro
    import torch
    from pyro.infer.mcmc.util import initialize_model
    from pyro.ops.integrator import potential_grad

    from pplvm.potentials import Potential

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pyro.enable_validation(False)
    model, data, _ = posteriordb.posterior(common.posteriordb_folder(), name)
    potential = Potential(model, *data, mode="inductor")
    one, many = potential.single, potential.rows(CHAINS)
    x, xs = torch.randn(potential.dim), torch.randn(CHAINS, potential.dim)
    init, theirs, _, _ = initialize_model(model, data)
    steps = {
        "Pyro": turns.Step(lambda: potential_grad(theirs, init)),
        "pplvm": turns.Step(lambda: one(x)),
        "pplvm, all": turns.Step(lambda: many(xs)),
    }
    return lambda kind, budget: steps[kind].seconds(budget)


def by_numpyro(name: str) -> Callable[[str, float], float]:
    """Returns the same for NumPyro."""
    import jax
    import numpyro
    import peers_numpyro
    import posteriordb
    import torch
    from numpyro.infer.util import initialize_model

    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    _, data, _ = posteriordb.posterior(common.posteriordb_folder(), name)
    arrays = [x.numpy() for x in data]
    keys = jax.random.split(jax.random.key(0), CHAINS)
    twin = peers_numpyro.twin(name, *arrays)
    one = initialize_model(keys[0], twin, model_args=arrays)
    x, gradient = one.param_info.z, jax.value_and_grad(one.potential_fn)
    xs = initialize_model(keys, twin, model_args=arrays).param_info.z
    single, many = jax.jit(gradient), jax.jit(jax.vmap(gradient))
    steps = {
        "NumPyro": turns.Step(lambda: single(x), wait=jax.block_until_ready),
        "NumPyro, all": turns.Step(lambda: many(xs), wait=jax.block_until_ready),
    }
    return lambda kind, budget: steps[kind].seconds(budget)


CONTENDERS = {by_torch: ("Pyro", "pplvm", "pplvm, all"), by_numpyro: ("NumPyro", "NumPyro, all")}


def row(name: str, times: dict[str, list[float]]) -> common.Row:
    """Returns medians in µs, and ratios."""
    m = {kind: median(seconds) for kind, seconds in times.items()}
    return {
        "model": name.split("-")[0],
        "Pyro, 1": 1e6 * m["Pyro"],
        "NumPyro, 1": 1e6 * m["NumPyro"],
        "pplvm, 1": 1e6 * m["pplvm"],
        f"NumPyro, {CHAINS}": 1e6 * m["NumPyro, all"],
        f"pplvm, {CHAINS}": 1e6 * m["pplvm, all"],
        f"NumPyro, {CHAINS} / 1": m["NumPyro, all"] / m["NumPyro"],
        f"pplvm, {CHAINS} / 1": m["pplvm, all"] / m["pplvm"],
    }


def main() -> None:
    parser = common.parser(__doc__, rounds=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a block, about")
    options = parser.parse_args()
    names = common.POSTERIORS[:1] if options.quick else common.POSTERIORS
    rounds = 3 if options.quick else options.rounds
    common.posteriordb_folder()
    about = common.machine(options.cores)
    found = {n: turns.measure(CONTENDERS, n, rounds, options.seconds) for n in names}
    rows = [row(name, times) for name, times in found.items()]
    title = f"µs a potential with its gradient, medians of {rounds} rounds"
    common.keep("chains", about, vars(options), {title: common.with_means(rows, " / 1")}, found)


if __name__ == "__main__":
    main()
