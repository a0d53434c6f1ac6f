r"""Estimators of discrete latents: bound over time, noise, and a step beside PyTorch by hand.

Run: python benchmarks/discrete.py [--quick] [--steps N ...] [--seeds N] [--only NAME ...]
     [--parts PART ...]

Protocol: the one-layer linear sigmoid belief network of 200 units on MNIST, binarised anew for each
epoch, batches of 100, Adam at 1e-3 for model and guide and for what estimators learn themselves; every
estimator for as many steps, from the same seeds. The bounds, of 100 draws and of one (the ELBO), are of
the first thousand images of each set, after each number of steps that is named. An evaluation is one of
log p(x, z) of an image, gradients counted with it. PPLVM_DATA names the data; without it, scikit-learn's
digits and 50 units take their place, of which nothing is published.

The noise is the variance of one gradient of a batch, summed over the guide's parameters, at those that
NVIL has learned, beside that of Pyro's TraceGraph_ELBO with its decaying average as a baseline; see
:func:`noise`.

Published, training: NVIL -112.5, MuProp -111.7, REBAR -111.6, RELAX -111.2; test: NVIL -113.1,
wake-sleep -120.7.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import common
import discrete_torch
import pyro
import torch
from pyro import infer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pplvm
from pplvm.datasets import binary_digits, mnist
from pplvm.guides.sigmoid_belief_network import SigmoidBeliefNetworkGuide
from pplvm.models.sigmoid_belief_network import SigmoidBeliefNetwork
from pplvm.objectives import (
    NVIL,
    REBAR,
    RELAX,
    arm,
    concrete,
    disarm,
    muprop,
    reweighted_wake_sleep,
    score_function,
    straight_through,
    vimco,
    wake_sleep,
)

OBJECTIVES: dict[str, Callable[[], Callable]] = {
    "score function": lambda: score_function,
    "NVIL": NVIL,
    "leave one out, P = 4": lambda: partial(
        score_function, num_particles=4, baseline="leave_one_out"
    ),
    "VIMCO, P = 8": lambda: partial(vimco, num_particles=8),
    "wake-sleep": lambda: wake_sleep,
    "RWS, P = 8": lambda: partial(reweighted_wake_sleep, num_particles=8),
    "MuProp": lambda: muprop,
    "REBAR": REBAR,
    "RELAX": RELAX,
    "ARM": lambda: arm,
    "DisARM": lambda: disarm,
    "concrete": lambda: concrete,
    "straight-through": lambda: straight_through,
}
EVALUATIONS = {  # of log p(x, z) in one step, for each image; 1 where nothing is said
    "leave one out, P = 4": 4, "VIMCO, P = 8": 8, "wake-sleep": 2, "RWS, P = 8": 8, "MuProp": 2,
    "REBAR": 3, "RELAX": 3, "ARM": 2, "DisARM": 2, "concrete": 2,
}  # fmt: skip
BATCH, CHECKED = 100, 1000
PARTS = ["steps", "learning", "noise"]


class Binarised(Dataset):
    """Grey levels of [0, 1] as the chances of 1, drawn each time an image is seen."""

    def __init__(self, grey: Tensor, seed: int) -> None:
        self.grey, self.random = grey, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.grey)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor]:
        """Returns a batch."""
        return (torch.bernoulli(self.grey[rows], generator=self.random),)

    def loader(self) -> DataLoader:
        """Returns the batches of an epoch, in an order of its own."""
        return DataLoader(
            self, BATCH, shuffle=True, collate_fn=lambda batch: batch, generator=self.random
        )


def data() -> tuple[Tensor, Tensor, int]:
    """Returns grey levels to train and to test with, and the number of units."""
    try:
        return mnist("train", binary=False), mnist("test", binary=False), 200
    except ValueError:
        x = binary_digits()
        return x[:1500], x[1500:], 50


def programs(grey: Tensor, num_units: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Returns a model and a guide as they start."""
    torch.manual_seed(seed)
    shape, mean = grey.shape[1:], grey.mean(0)
    return (
        SigmoidBeliefNetwork(shape, (num_units,), mean=mean),
        SigmoidBeliefNetworkGuide(shape, (num_units,), mean=mean),
    )


def bounds(fit: pplvm.Fit, x: Tensor) -> tuple[float, float]:
    """Returns the bound of 100 draws and the mean of that of one, in nats per image."""
    several = [fit.log_marginal(part, num_particles=100).value for part in x.split(50)]
    with torch.no_grad():
        one = [score_function(fit.model, fit.guide, x).bound for _ in range(10)]
    return torch.cat(several).mean().item(), torch.cat(one).mean().item()


# ---- learning ----


def learning(
    train: Tensor, test: Tensor, num_units: int, names: list[str], marks: list[int], seeds: int
) -> tuple[list[dict], list[dict], dict, pplvm.Fit | None]:
    """Returns a row for each estimator, its bounds on the way, all figures, and NVIL's first fit."""
    rows, over_time, raw, kept = [], [], {}, None
    random = torch.Generator().manual_seed(0)
    fixed = [torch.bernoulli(x[:CHECKED], generator=random) for x in (train, test)]
    for name in names:
        found: list[list[dict]] = []  # for each seed, at each mark
        for seed in range(seeds):
            fit, figures = _along(name, train, num_units, fixed, marks, seed)
            found.append(figures)
            kept = fit if name == "NVIL" and kept is None else kept
        last = [figures[-1] for figures in found]
        rows.append({
            "estimator": name,
            **{
                label: part
                for which in ("training", "test", "training ELBO")
                for label, part in zip((which, f"± of {which}"),
                                       _mean([f[which] for f in last]), strict=True)
            },
            "seconds": statistics.mean(f["seconds"] for f in last),
        })  # fmt: skip
        over_time.append({
            "estimator": name,
            "evaluations a step": str(EVALUATIONS.get(name, 1)),
            **{
                f"{mark:,}": f"{statistics.mean(figures[i]['test'] for figures in found):.1f}"
                for i, mark in enumerate(marks)
            },
        })  # fmt: skip
        raw[name] = found
    return rows, over_time, raw, kept


def _along(
    name: str, train: Tensor, num_units: int, fixed: list[Tensor], marks: list[int], seed: int
) -> tuple[pplvm.Fit, list[dict]]:
    """Learns up to one mark after another, and returns the last fit and the figures at each."""
    model, guide = programs(train, num_units, seed)
    objective, figures = OBJECTIVES[name](), []
    with tempfile.TemporaryDirectory() as folder:
        for mark in marks:
            fit = pplvm.fit(
                model, guide, Binarised(train, seed).loader(), objective=objective,
                num_steps=mark, optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
                seed=seed, checkpoint=Path(folder, "fit"), checkpoint_every=mark, resume=True,
            )  # fmt: skip
            (training, single), (test, _) = (bounds(fit, x) for x in fixed)
            figures.append({
                "steps": mark, "training": training, "test": test, "training ELBO": single,
                "seconds": fit.seconds, "compile": fit.settings["compile"],
            })  # fmt: skip
            print(f"  {name}, seed {seed}: {figures[-1]}", flush=True)
    return fit, figures


def _mean(values: list[float]) -> tuple[str, float | None]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return f"{statistics.mean(values):.1f}", error


# ---- noise ----


def noise(fit: pplvm.Fit, grey: Tensor, names: list[str], num_draws: int) -> list[dict]:
    """Returns the variance of a gradient in the guide, for each estimator at the same parameters.

    NVIL's baselines are those of its fit, its division by the standard deviation undone; what others
    learn, Pyro's averages included, they have learned from a thousand batches that leave out the one
    that is asked about.
    """
    x = torch.bernoulli(grey[:BATCH], generator=torch.Generator().manual_seed(1))
    variance = {"Pyro's TraceGraph_ELBO": _pyros(fit, grey, x, num_draws)}
    for name in (name for name in names if name not in _OF_OTHER_BOUNDS):
        objective, scale = OBJECTIVES[name](), 1.0
        if name == "NVIL":
            objective = fit.objective.eval()
            scale = objective._statistics()[1].item()
        elif isinstance(objective, nn.Module):
            _teach(objective, fit, grey)
        parameters, draws = list(fit.guide.parameters()), []
        for _ in range(num_draws):
            g = torch.autograd.grad(objective(fit.model, fit.guide, x).loss, parameters)
            draws.append(scale * torch.cat([part.flatten() for part in g]))
        variance[name] = torch.stack(draws).double().var(0).sum().item()
    peer = next(iter(variance.values()))
    return [
        {"estimator": name, "variance": value, "Pyro's / it": peer / value}
        for name, value in variance.items()
    ]


# Whose gradient in the guide is of something else than the ELBO.
_OF_OTHER_BOUNDS = ("VIMCO, P = 8", "wake-sleep", "RWS, P = 8")


def _others(grey: Tensor) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(2)
    for _ in range(1000):
        rows = torch.randint(BATCH, len(grey), (BATCH,), generator=random)
        yield torch.bernoulli(grey[rows], generator=random)


def _teach(objective: nn.Module, fit: pplvm.Fit, grey: Tensor) -> None:
    objective.prepare(fit.model, fit.guide, next(_others(grey)))
    own = list(objective.parameters())
    learner = torch.optim.Adam(own, lr=1e-3) if own else None
    for batch in _others(grey):
        loss = objective(fit.model, fit.guide, batch).loss
        if learner is not None:
            for p, g in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
                p.grad = g
            learner.step()
    objective.eval()


def _pyros(fit: pplvm.Fit, grey: Tensor, x: Tensor, num_draws: int) -> float:
    """Returns the variance of Pyro's own gradient, its averages those of the other batches."""
    pyro.clear_param_store()
    loss, average = infer.TraceGraph_ELBO(), {"baseline": {"use_decaying_avg_baseline": True}}

    def guide(x: Tensor) -> None:
        pyro.module("guide", fit.guide)
        with pyro.poutine.infer_config(config_fn=lambda site: average):
            fit.guide(x)

    for batch in _others(grey):
        loss.loss_and_grads(fit.model, guide, batch)
    store, draws = pyro.get_param_store(), []
    known = {name: store[name].detach().clone() for name in store if "baseline" in name}
    for _ in range(num_draws):
        for name, value in known.items():
            store[name] = value.clone()
        fit.guide.zero_grad()
        loss.loss_and_grads(fit.model, guide, x)
        draws.append(torch.cat([p.grad.flatten() for p in fit.guide.parameters()]) / len(x))
    assert known, "Pyro keeps its averages elsewhere"
    return torch.stack(draws).double().var(0).sum().item()


# ---- steps ----


def steps(train: Tensor, num_units: int, names: list[str], rounds: int) -> list[dict]:
    """Returns milliseconds a step, by hand and compiled, in turns."""
    x = torch.bernoulli(train[:BATCH])
    rows = []
    for name in names:
        ours, theirs = _ours(name, train, num_units, x), _by_hand(name, train, num_units, x)
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for which, run in enumerate((ours, theirs)):
                start = time.perf_counter()
                for _ in range(50):
                    run()
                times[which].append((time.perf_counter() - start) / 50)
        mine, hand = (1e3 * statistics.median(t) for t in times)
        rows.append({
            "estimator": name, "by hand, ms": hand, "pplvm, ms": mine, "by hand / pplvm": hand / mine,
        })  # fmt: skip
    return rows


def _ours(name: str, train: Tensor, num_units: int, x: Tensor) -> Callable[[], None]:
    model, guide = programs(train, num_units, 0)
    fit = pplvm.fit(
        model, guide, x, objective=OBJECTIVES[name](), num_steps=5, compile="inductor",
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
    )  # fmt: skip
    for module in fit.run._modules().values():
        module.train()  # which the end of the fit has undone
    entered = fit.run.scope()
    entered.__enter__()
    taken = fit.run.steps()
    return lambda: next(taken)


def _by_hand(name: str, train: Tensor, num_units: int, x: Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    x, mean = x.flatten(1), train.mean(0).flatten()
    net = discrete_torch.Network(x.shape[1], num_units, mean)
    estimator = discrete_torch.ESTIMATORS[name](net)
    own = list(estimator.parameters()) if isinstance(estimator, nn.Module) else []
    optimiser = torch.optim.Adam([*net.parameters(), *own], lr=1e-3, fused=True)

    def step() -> None:
        loss = estimator(net, x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[600, 1500, 3000])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    about = common.machine(options.cores)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    train, test, num_units = data()
    marks, seeds = ([30, 60], 1) if options.quick else (sorted(options.steps), options.seeds)
    tables, raw, fit = {}, {}, None
    if "steps" in options.parts:  # before all else, while the process is small
        tables["A step of 100 images"] = steps(
            train, num_units, options.only, 2 if options.quick else options.rounds
        )
    if "learning" in options.parts:
        rows, over_time, raw, fit = learning(train, test, num_units, options.only, marks, seeds)
        tables[f"After {marks[-1]:,} steps, bounds of 100 draws and the ELBO"] = rows
        tables["Bound of 100 draws on test images, after so many steps"] = over_time
    if "noise" in options.parts and fit is not None:
        tables["Variance of one gradient in the guide, at NVIL's parameters"] = noise(
            fit, train, options.only, 50 if options.quick else 300
        )
    common.keep("discrete", about, vars(options), tables, raw)


if __name__ == "__main__":
    main()
