"""One step of SVI, by Pyro and by pplvm, on the same stories in one run.

Run: python benchmarks/overhead.py [--rounds 30]

Each round takes a block of steps with every contender in turn, so that whatever else the machine
does falls on all of them; the table has medians over the rounds. Contenders:

- pyro: ``pyro.infer.SVI.step`` with ``TraceMeanField_ELBO`` (closed-form divergences, as pplvm's
  ``elbo`` has) or, where Pyro's is cheaper, ``Trace_ELBO``; Pyro's Adam; validation off.
- pplvm: the steps of ``pplvm.fit`` with the objective ``elbo``, its default optimiser, the bound
  recorded and checked each step.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pplvm.batches import Batches
from pplvm.datasets import binary_digits, digits
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE
from pplvm.objectives import elbo
from pplvm.training import Run


def schools(y: Tensor, sigma: Tensor) -> Tensor:
    """Eight schools, non-centred (Rubin, 1981; Gelman et al., Bayesian Data Analysis)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def schools_guide(y: Tensor, sigma: Tensor) -> None:
    """Mean field with a log-normal scale."""
    m, s = pyro.param("m", torch.zeros(2)), pyro.param("s", torch.zeros(2))
    mz, sz = pyro.param("mz", torch.zeros(8)), pyro.param("sz", torch.zeros(8))
    pyro.sample("mu", dist.Normal(m[0], s[0].exp()))
    pyro.sample("tau", dist.LogNormal(m[1], s[1].exp()))
    with pyro.plate("school", len(y), dim=-1):
        pyro.sample("z", dist.Normal(mz, sz.exp()))


def stories() -> Iterator[tuple[str, Callable, Callable, tuple[Tensor, ...]]]:
    """Yields name, model, guide and data."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    yield "eight schools", schools, schools_guide, (y, sigma)
    x = digits()
    yield "FA, full batch", FactorAnalysis(61, 10), LinearGaussian(61, 10), (x,)
    yield "FA, 100 data", FactorAnalysis(61, 10), AmortisedMeanField(61, 10), (x[:100],)
    images = binary_digits()[:128]
    yield "VAE 64-400-20, 128", VAE((8, 8)), VAEGuide((8, 8)), (images,)
    images = (torch.rand(128, 28, 28) < 0.2).float()
    yield "VAE 784-400-20, 128", VAE((28, 28)), VAEGuide((28, 28)), (images,)


def registered(program: Callable, name: str) -> Callable:
    """Returns the program with its module in Pyro's parameter store."""
    if not isinstance(program, torch.nn.Module):
        return program

    def named(*data: Tensor) -> Tensor:
        pyro.module(name, program)
        return program(*data)

    return named


def pyro_step(model: Callable, guide: Callable, data: tuple[Tensor, ...], loss) -> Callable:
    """Returns a function that takes one step of Pyro's SVI."""
    svi = SVI(
        registered(model, "model"), registered(guide, "guide"), pyro.optim.Adam({"lr": 1e-3}), loss
    )
    return lambda: svi.step(*data)


def pplvm_step(model: Callable, guide: Callable, data: tuple[Tensor, ...]) -> tuple[Run, Callable]:
    """Returns a run and a function that takes one of its steps."""
    run = Run(
        model, guide, objective=elbo, batches=Batches(data, None, 0, lambda x: x),
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, fused=True), scheduler=None,
        clip_norm=None, kl_schedule=None, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    steps = run.steps()
    return run, lambda: next(steps)


def seconds(step: Callable, count: int) -> float:
    """Returns the seconds of a step, averaged over a block."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    threads = torch.get_num_threads()
    print(
        f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.machine()}, {threads} threads"
    )
    print(f"{'µs a step, median of ' + str(rounds):28} {'pyro':>8} {'pplvm':>8} {'ratio':>7}")
    for name, model, guide, data in stories():
        pyro.clear_param_store()
        torch.manual_seed(0)
        with pyro.validation_enabled(False):
            run, own = pplvm_step(model, guide, data)
            losses = {"mean field": TraceMeanField_ELBO(), "sampled": Trace_ELBO()}
            theirs = {k: pyro_step(model, guide, data, loss) for k, loss in losses.items()}
            times: dict[str, list[float]] = {k: [] for k in ("pplvm", *theirs)}
            for step in theirs.values():
                seconds(step, 5)
            with run.scope():
                seconds(own, 5)
            count = max(5, int(0.05 / seconds(theirs["sampled"], 5)))
            for _ in range(rounds):
                for k, step in theirs.items():
                    times[k].append(seconds(step, count))
                with run.scope():
                    times["pplvm"].append(seconds(own, count))
        medians = {k: 1e6 * statistics.median(v) for k, v in times.items()}
        peer = min(medians["mean field"], medians["sampled"])
        print(
            f"{name:28} {peer:8.0f} {medians['pplvm']:8.0f} {peer / medians['pplvm']:6.2f}×",
            flush=True,
        )


if __name__ == "__main__":
    main()
