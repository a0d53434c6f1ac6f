"""Whether NumPyro's twins are the stories that they are compared with.

Run: PPLVM_DATA=… python benchmarks/check_peers.py

Log joint densities at random points, to 10⁻⁸; means of NUTS beside the reference draws, and the
expected loss of SVI at random parameters beside Pyro's, within 4 standard errors each. Ends with
an error if one of them is off.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import numpyro
import pyro
import torch
from arviz_stats.base import array_stats
from numpyro.infer.util import log_density
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import common
import peers_numpyro
import posteriordb
import stories

SAMPLES = 1500  # of each expected loss


def densities(name: str, points: int = 20) -> float:
    """Returns the largest difference at points of the size of one in unconstrained space."""
    model, data, _ = posteriordb.posterior(common.posteriordb_folder(), name)
    arrays = [x.numpy() for x in data]
    twin = peers_numpyro.twin(name, *arrays)
    init, _, transforms, _ = initialize_model(model, data)
    found = []
    for _ in range(points):
        values = {n: transforms[n].inv(torch.randn_like(x)) for n, x in init.items()}
        conditioned = poutine.condition(model, values)
        ours = poutine.trace(conditioned).get_trace(*data).log_prob_sum().item()
        theirs, _ = log_density(twin, arrays, {}, {n: v.numpy() for n, v in values.items()})
        found.append(abs(ours - float(theirs)) / max(1.0, abs(ours)))
    return np.max(found)  # NaN if one is


def means(name: str) -> float:
    """Returns the largest z of a posterior mean by NumPyro's NUTS."""
    folder = common.posteriordb_folder()
    _, data, sites = posteriordb.posterior(folder, name)
    arrays = [x.numpy() for x in data]
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(peers_numpyro.twin(name, *arrays)), num_warmup=500, num_samples=1000,
        num_chains=4, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), *arrays)
    samples = mcmc.get_samples(group_by_chain=True)
    got = np.concatenate([np.reshape(samples[s], (4, 1000, -1)) for s in sites], -1)
    want, _ = posteriordb.reference(folder, name)
    errors = [array_stats.mcse(x.transpose(2, 0, 1), method="mean") for x in (got, want)]
    return float(np.abs((got.mean((0, 1)) - want.mean((0, 1))) / np.hypot(*errors)).max())


def losses(name: str) -> Iterator[tuple[str, float]]:
    """Yields each of NumPyro's losses, and how far its mean is from that of Pyro's Trace_ELBO."""
    model, guide, data = stories.STORIES[name]()
    data = tuple(x.double() for x in data)
    arrays = [x.numpy() for x in data]
    twin = peers_numpyro.STORIES[name]
    begun = numpyro.infer.SVI(*twin, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    state = begun.init(jax.random.key(0), *arrays)
    shapes = {n: np.shape(p) for n, p in begun.get_params(state).items()}
    rng = np.random.default_rng(0)
    params = {n: 0.1 * rng.standard_normal(shape) for n, shape in shapes.items()}
    pyro.clear_param_store()
    theirs = torch.tensor(list(pyro_losses(model, guide, data, params)))
    for loss in (numpyro.infer.Trace_ELBO(), numpyro.infer.TraceMeanField_ELBO()):
        one = jax.jit(lambda key, loss=loss: loss.loss(key, params, *twin, *arrays))
        ours = np.array([one(key) for key in jax.random.split(jax.random.key(1), SAMPLES)])
        error = np.hypot(ours.std(), theirs.std().item()) / SAMPLES**0.5
        yield type(loss).__name__, float(abs(ours.mean() - theirs.mean().item()) / error)


def pyro_losses(model, guide, data, params) -> Iterator[float]:
    """Yields draws of Pyro's loss at parameters."""
    left = dict(params)
    with torch.no_grad():
        for program in (model, guide):
            if isinstance(program, torch.nn.Module):
                for name, p in program.double().named_parameters():
                    p.copy_(torch.tensor(left.pop(name)))
    for name, value in left.items():
        pyro.param(name, torch.tensor(value))
    model, guide = stories.registered(model, "model"), stories.registered(guide, "guide")
    with torch.no_grad(), pyro.validation_enabled(False):
        for _ in range(SAMPLES):
            yield pyro.infer.Trace_ELBO().loss(model, guide, *data)


def main() -> None:
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    good = True
    for name in posteriordb.POSTERIORS:
        difference, z = densities(name), means(name)
        good &= difference < 1e-8 and z < 4
        print(
            f"{name:42} densities differ by {difference:.1e}, means by {z:.1f} errors", flush=True
        )
    for name in stories.STORIES:
        for loss, z in losses(name):
            good &= z < 4
            print(f"{name:30} {loss:20} differs from Pyro's by {z:.1f} errors", flush=True)
    if not good:
        raise SystemExit("NumPyro's twins are not the same stories")


if __name__ == "__main__":
    main()
