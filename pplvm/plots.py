"""The report's style, and figures of fits: learning curves and importance weights.

A figure is one that no backend knows of.
"""

__all__ = ["colours", "importance_khat", "learning_curves", "other_data", "smoothed", "style"]

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pplvm import traces
from pplvm.batches import as_tensor
from pplvm.diagnostics import MOST_KHAT
from pplvm.fit import Fit
from pplvm.table import Table, Truth
from pplvm.training import History

WIDTH = 10.0  # inches, of every figure
RED = "#b00020"  # of what is not to be trusted
# Okabe & Ito (2008), black kept for what is exact, and a few more.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C6D31",
    "#6B6B6B", "#B8B000",
)  # fmt: skip
_STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "axes.edgecolor": "#555555", "legend.frameon": False, "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True, "figure.constrained_layout.wspace": 0.04,
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 150,
    "savefig.bbox": None, "mathtext.fontset": "dejavusans",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Draws in the report's style; the user's own is as it was afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


def colours(table: Table) -> dict[str, str]:
    """Returns one colour for each answer; black is for the exact."""
    inexact = [name for name, answer in table.answers.items() if not isinstance(answer, Truth)]
    found = dict(zip(inexact, itertools.cycle(PALETTE), strict=False))
    return {name: found.get(name, "black") for name in table.answers}


# ---- learning curves ----


def learning_curves(table: Table) -> Figure:
    """Draws the bound of every fit against steps and against seconds."""
    fits = {n: a for n, a in table.answers.items() if isinstance(a, Fit) and a.history.bound}
    truth = [(n, table[n].log_marginal) for n, a in table.answers.items() if isinstance(a, Truth)]
    figure = Figure(figsize=(WIDTH, 3.8))
    axes, colour = figure.subplots(1, 2, sharey=True), colours(table)
    for name, fit in fits.items():
        history = fit.history
        steps, bound = smoothed(history.bound)
        pace = history.seconds / len(history.bound)
        dots = "--" if other_data(fit, table) else "-"
        for ax, unit in zip(axes, (1.0, pace), strict=True):
            ax.plot(
                steps * unit, bound, dots, color=colour[name], label=_ending(name, history, dots)
            )
            at = np.array(history.validated_at) * unit
            ax.plot(at, history.validation, ".", ms=4, color=colour[name], alpha=0.6)
    for ax, unit in zip(axes, ("steps", "seconds"), strict=True):
        for name, value in truth:
            ax.axhline(value, color="black", lw=1, label=f"log p(x), {name}: {value:.3f}")
        ax.set(xlabel=unit, xlim=(0, None))
    axes[0].set(ylabel=f"bound, {_unit(table)}", ylim=_limits(fits, [v for _, v in truth]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def smoothed(bound: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps, and means over a fiftieth of all steps."""
    window = max(1, len(bound) // 50)
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(bound, dtype=float)]))
    means = (sums[window:] - sums[:-window]) / window
    return np.arange(window, len(bound) + 1), means


def other_data(fit: Fit, table: Table) -> bool:
    """Returns whether a fit learned from data other than the table's."""
    shapes = [tuple(x.shape) for x in fit.data]
    if shapes != [tuple(x.shape) for x in table.data]:
        return True
    return not all(
        torch.equal(as_tensor(a, b.dtype, b.device).to(b), b)
        for a, b in zip(fit.data, table.data, strict=True)
    )


def _unit(table: Table) -> str:
    sites = traces.look(next(iter(table.draws.values())).model, *table.data).values()
    return "nats per datum" if any(map(traces.in_data_plate, sites)) else "nats"


def _ending(name: str, history: History, dots: str) -> str:
    late = history.bound[-max(1, len(history.bound) // 10) :]
    return f"{name}: {np.mean(late):.3f}" + (" (other data)" if dots == "--" else "")


def _limits(fits: dict[str, Fit], truth: list[float]) -> tuple[float, float]:
    """Leaves out the first tenth of the steps, and a fit that ends far below the others."""
    curves = [smoothed(fit.history.bound)[1] for fit in fits.values()]
    ends = np.array([np.mean(c[-max(1, len(c) // 10) :]) for c in curves])
    points = [*truth, *(max(f.history.validation) for f in fits.values() if f.history.validation)]
    high = max([*points, *(np.quantile(c, 0.99) for c in curves)])
    gaps = high - ends
    reach = gaps[gaps <= 5 * np.median(gaps)].max()
    noise = max(np.std(c[len(c) // 2 :]) for c in curves)
    early = high - min(np.quantile(c[len(c) // 10 :], 0.05) for c in curves)
    span = max(min(early, 3 * reach), 1.2 * reach, 4 * noise, 1e-3)
    return high - 1.1 * span, high + 0.08 * span


# ---- importance weights ----


def importance_khat(table: Table) -> Figure:
    """Draws the Pareto k̂ of every fit's importance weights, data in order of k̂."""
    khat = {name: w.khat.sort().values.numpy() for name, w in table.weights.items()}
    dots = all(len(k) == 1 or not np.isfinite(k).any() for k in khat.values())
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(khat) if dots else 3.4))
    (_khat_dots if dots else _khat_curves)(figure.subplots(), khat, colours(table))
    return figure


def _khat_dots(ax: Axes, khat: dict[str, np.ndarray], colour: dict[str, str]) -> None:
    for row, (name, k) in enumerate(khat.items()):
        if np.isfinite(k).any():
            ax.plot(k, row, "o", color=colour[name])
        else:
            ax.annotate("no tail to fit", (0, row), va="center", color=colour[name])
    ax.axvline(MOST_KHAT, color=RED, ls="--", lw=1)
    finite = [float(x) for k in khat.values() for x in k if np.isfinite(x)]
    ax.set(yticks=range(len(khat)), ylim=(len(khat) - 0.5, -0.5), xlabel=r"$\hat k$")
    ax.set(yticklabels=list(khat), xlim=(min(0, *finite, 0) - 0.05, max(1, *finite, 1) + 0.05))


def _khat_curves(ax: Axes, khat: dict[str, np.ndarray], colour: dict[str, str]) -> None:
    for name, k in khat.items():
        share = (np.arange(len(k)) + 0.5) / len(k)
        bad = np.mean(k > MOST_KHAT)
        label = f"{name}: {bad:.0%} above {MOST_KHAT}"
        if not np.isfinite(k).any():
            label = f"{name}: no tail to fit"
        if np.isnan(k).any():
            label += f", {np.isnan(k).mean():.0%} unknown"
        ax.plot(100 * share, np.where(np.isfinite(k), k, np.nan), color=colour[name], label=label)
    ax.axhline(MOST_KHAT, color=RED, ls="--", lw=1)
    ax.set(xlabel=r"% of the data, in order of $\hat k$", ylabel=r"$\hat k$", xlim=(0, 100))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
