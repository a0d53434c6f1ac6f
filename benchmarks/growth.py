"""Factorial hidden Markov models: how time grows with the chains M and their states K.

Run: python benchmarks/growth.py [--quick] [--rounds 3]

A hundred sequences of 100 steps. Exact: log Z and its gradient, which should grow as T M K^(M+1), and
not as the K^(2M) of one chain whose states are all combinations. Structured mean field: a sweep over
all chains, which should grow as T M K^2. Lines of both laws are drawn through the largest measurement of
each, since at small sizes a step costs what it costs to call torch. Written to ``results/growth.png``.
"""

import os
import time
from collections.abc import Callable
from math import log
from statistics import median

import common
import torch
from matplotlib.figure import Figure

from pplvm import traces
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.traces.recursions import log_normaliser

N, T, D = 100, 100, 8
EXACT = [(1, 16), (1, 32), (1, 64), (1, 128), (2, 8), (2, 16), (2, 24), (2, 32), (3, 4), (3, 8), (3, 12),
         (4, 4), (4, 6), (5, 3), (5, 4), (6, 3)]  # fmt: skip
SWEEPS = [(2, 8), (2, 16), (2, 32), (2, 64), (4, 8), (4, 16), (4, 32), (8, 4), (8, 8), (8, 16)]


def exact(M: int, K: int) -> Callable[[], None]:
    """Returns what takes log Z and its gradient."""
    torch.manual_seed(0)
    tensors = [torch.randn(N, *[K] * M), torch.randn(T - 1, N, *[K] * M)]
    tensors += [torch.randn(1, 1, K, K).log_softmax(-1) for _ in range(M)]
    first, later, *moves = leaves = [x.requires_grad_() for x in tensors]
    return lambda: torch.autograd.grad(log_normaliser(first, moves, later).sum(), leaves)


def sweep(M: int, K: int) -> Callable[[], None]:
    """Returns what updates each chain once."""
    torch.manual_seed(0)
    model = FactorialHMM(M, K, D).requires_grad_(False)
    blocks = traces.Blocks(model, torch.randn(N, T, D), torch.full((N,), T), structured=True)
    blocks.start(torch.Generator().manual_seed(0))
    return blocks.sweep


def timed(function: Callable, rounds: int) -> float:
    """Returns the median of so many rounds, in seconds, after one."""
    function()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def rows_of(
    sizes: list[tuple[int, int]], make: Callable, work: Callable[[int, int], float], rounds: int
) -> list[common.Row]:
    """Returns a row for each size."""
    rows = []
    for M, K in sizes:
        seconds, millions = timed(make(M, K), rounds), T * work(M, K) / 1e6
        rows.append({
            "M, K": f"{M}, {K}", "ms": 1e3 * seconds, "millions": millions,
            "ns each, a sequence": 1e3 * seconds / millions / N,
            "T K^(2M), millions": T * K ** (2 * M) / 1e6,
        })  # fmt: skip
    return rows


def exponents(rows: list[common.Row], law: Callable[[int], int]) -> list[common.Row]:
    """Returns how time grows with K between the two largest sizes of each M: as K to what power."""
    found = []
    for M in sorted({int(row["M, K"].split(",")[0]) for row in rows}):
        own = [row for row in rows if row["M, K"].startswith(f"{M},")]
        if len(own) > 1:
            K = [int(row["M, K"].split(",")[1]) for row in own[-2:]]
            power = log(own[-1]["ms"] / own[-2]["ms"]) / log(K[1] / K[0])
            found.append({
                "M": str(M), "K": f"{K[0]} to {K[1]}", "exponent of K": power,
                "by its law": float(law(M)), "by K^(2M)": 2.0 * M,
            })  # fmt: skip
    return found


def picture(exact_rows: list[common.Row], sweep_rows: list[common.Row]) -> Figure:
    """Draws time against the work that theory expects."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    titles = "exact: log Z and its gradient", "structured mean field: a sweep"
    laws = r"$T M K^{M+1}$, millions", r"$T M K^2$, millions"
    for ax, rows, title, law in zip(
        figure.subplots(1, 2), (exact_rows, sweep_rows), titles, laws, strict=True
    ):
        for M in sorted({row["M, K"].split(",")[0] for row in rows}, key=int):
            own = [row for row in rows if row["M, K"].split(",")[0] == M]
            ax.plot([r["millions"] for r in own], [r["ms"] for r in own], "o-", label=f"M = {M}")
        top = max(rows, key=lambda row: row["millions"])
        ends = [min(row["millions"] for row in rows), top["millions"]]
        ax.plot(ends, [top["ms"] * e / ends[1] for e in ends], "k--", lw=1, label="in proportion")
        ax.set(xscale="log", yscale="log", xlabel=law, ylabel="milliseconds", title=title)
        ax.legend()
    return figure


def main() -> None:
    options = common.parser(__doc__, rounds=3).parse_args()
    about = common.machine(options.cores)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rounds = 1 if options.quick else options.rounds
    exact_rows = rows_of(EXACT, exact, lambda M, K: M * K ** (M + 1), rounds)
    sweep_rows = rows_of(SWEEPS, sweep, lambda M, K: M * K**2, rounds)
    tables = {
        "Exact, T M K^(M+1)": exact_rows,
        "Exact, as K grows": exponents(exact_rows, lambda M: M + 1),
        "A sweep, T M K^2": sweep_rows,
        "A sweep, as K grows": exponents(sweep_rows, lambda M: 2),
    }
    common.keep("growth", about, vars(options), tables, {})
    picture(exact_rows, sweep_rows).savefig(common.RESULTS / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
