"""Hidden Markov models by maximum likelihood: a step on all chorales, and long chains.

Run: python benchmarks/hmm.py [--quick] [--rounds 7]

A step is the gradient of the exact log-likelihood of all sequences, and Adam. With PPLVM_DATA it is
of the JSB chorales (229 sequences, up to 129 steps, 88 notes), else of generated ones; 16 states. The
contenders take turns in one process:

- Pyro: ``SVI`` with ``TraceEnum_ELBO`` on the same story, whose loop it runs step by step.
- by hand: the forward recursion in PyTorch, log-sum-exps as products of shifted exponentials, and
  emissions as one product of matrices; autograd.
- pplvm, eager and traced: ``pplvm.fit(model, None, x, lengths)``.

Then log Z with its gradient for chains of 10,000 steps.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import common
import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pplvm.batches import Batches, as_tensor
from pplvm.datasets import jsb, small_chorales
from pplvm.models.hmm import HMM
from pplvm.objectives import elbo
from pplvm.traces.recursions import log_normaliser
from pplvm.training import Run

STATES, LR = 16, 0.01


def by_hand(model: HMM, x: Tensor, lengths: Tensor) -> Tensor:
    """Returns log p(x_n), (N,)."""
    A = model.log_A.softmax(-1)
    emitted = x @ model.W.T - torch.nn.functional.softplus(model.W).sum(-1)  # (N, T, K)
    alpha = model.log_pi.log_softmax(-1) + emitted[:, 0]
    for t in range(1, x.shape[1]):
        top = alpha.amax(-1, keepdim=True)
        moved = ((alpha - top).exp() @ A).log() + top + emitted[:, t]
        alpha = torch.where((t < lengths)[:, None], moved, alpha)
    return alpha.logsumexp(-1)


def contenders(x: Tensor, lengths: Tensor) -> dict[str, Callable[[], float]]:
    """Returns functions that take a step, and return the log-likelihood before it."""

    def model() -> HMM:
        torch.manual_seed(0)
        return HMM(STATES, x.shape[2], "bernoulli")

    def of_pyro() -> Callable[[], float]:
        pyro.clear_param_store()
        story = model()

        def named(*data: Tensor) -> Tensor:
            return pyro.module("hmm", story)(*data)

        loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        marked = pyro.infer.config_enumerate(named, "parallel")
        svi = SVI(marked, lambda *_: None, pyro.optim.Adam({"lr": LR}), loss)
        return lambda: -svi.step(x, lengths)

    def of_torch() -> Callable[[], float]:
        story = model()
        adam = torch.optim.Adam(story.parameters(), lr=LR, fused=True)

        def step() -> float:
            adam.zero_grad()
            total = by_hand(story, x, lengths).sum()
            (-total / len(x)).backward()
            adam.step()
            return total.item()

        return step

    def of_pplvm(mode: str) -> Callable[[], float]:
        cpu = torch.device("cpu")
        batches = Batches((x, lengths), None, 0, lambda v: as_tensor(v, torch.float32, cpu))
        run = Run(
            model(), None, objective=elbo, batches=batches, scheduler=None, clip_norm=None,
            optimizer=lambda p: torch.optim.Adam(p, lr=LR, fused=True), kl_schedule=None,
            device=cpu, seed=0, compile=mode, num_steps=10**6,
        )  # fmt: skip
        steps = run.steps()

        def step() -> float:
            with run.scope():
                return len(x) * next(steps)

        return step

    return {
        "Pyro": of_pyro(),
        "by hand": of_torch(),
        "pplvm, eager": of_pplvm("off"),
        "pplvm": of_pplvm("graph"),
    }


def long_chains() -> list[common.Row]:
    """Returns the time and memory of one chain of ten thousand steps."""
    import psutil

    T, rows = 10_000, []
    for K in (2, 4, 16, 64):
        first, later = torch.randn(1, K), torch.randn(T - 1, 1, K, requires_grad=True)
        A = torch.randn(1, 1, K, K).log_softmax(-1).requires_grad_()
        before = psutil.Process().memory_info().rss

        def step(first=first, later=later, A=A) -> None:
            torch.autograd.grad(log_normaliser(first, [A], later).sum(), [later, A])

        step()
        seconds = median(_seconds(step) for _ in range(3))
        grown = psutil.Process().memory_info().rss - before
        rows.append({"T, K": f"{T}, {K}", "ms": 1e3 * seconds, "MB grown": grown / 2**20})
    return rows


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    options = common.parser(__doc__, rounds=7).parse_args()
    about = common.machine(options.cores)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        x, lengths = jsb("train")
    except ValueError:
        x, lengths = small_chorales("train")
    found = contenders(x, lengths)
    firsts = {name: step() for name, step in found.items()}
    assert max(firsts.values()) - min(firsts.values()) < 1e-3 * abs(firsts["by hand"]), firsts
    for step in found.values():
        step()  # traces it
    times = {name: [] for name in found}
    for _ in range(2 if options.quick else options.rounds):
        for name, step in found.items():
            count = 1 if name == "Pyro" else 5
            times[name].append(_seconds(lambda: [step() for _ in range(count)]) / count)  # noqa: B023
    m = {name: median(seconds) for name, seconds in times.items()}
    row = {"data": f"{tuple(x.shape)}"} | {f"{name}, ms": 1e3 * s for name, s in m.items()}
    ratios = {"Pyro / pplvm": m["Pyro"] / m["pplvm"], "pplvm / by hand": m["pplvm"] / m["by hand"]}
    tables = {"A step of maximum likelihood": [row | ratios]}
    if not options.quick:
        tables["Long chains"] = long_chains()
    common.keep("hmm", about, vars(options), tables, times)


if __name__ == "__main__":
    main()
