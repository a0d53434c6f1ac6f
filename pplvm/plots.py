"""Figures of answers side by side: learning curves, importance weights, posteriors over each other.

Every function takes a table and returns a figure that no backend knows of.
"""

__all__ = [
    "Scalar",
    "colours",
    "importance_khat",
    "learning_curves",
    "overlays",
    "scalars",
    "style",
]

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import constraints

from pplvm import diagnostics, traces
from pplvm.compare import Table
from pplvm.diagnostics import MOST_KHAT
from pplvm.draws import Draws
from pplvm.exact import Exact
from pplvm.fit import Fit
from pplvm.training import History

WIDTH = 10.0  # inches, of every figure
RED = "#b00020"  # of what is not to be trusted
# Okabe & Ito (2008), black kept for what is exact, and a few more.
_PALETTE = (
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
    inexact = [name for name, answer in table.answers.items() if not isinstance(answer, Exact)]
    found = dict(zip(inexact, itertools.cycle(_PALETTE), strict=False))
    return {name: found.get(name, "black") for name in table.answers}


class Scalar(NamedTuple):
    """One number among the latents."""

    site: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        """Returns its name, such as ``z[22, 5]``."""
        return f"{self.site}[{', '.join(map(str, self.index))}]" if self.index else self.site

    def of(self, draws: Draws) -> Tensor:
        """Returns its draws, (C, S)."""
        return draws[self.site][(..., *self.index)].detach().cpu()


def scalars(table: Table, most: int = 6) -> list[Scalar]:
    """Returns the few numbers to look at: those that mix worst, then some of every site."""
    shapes = {n: v.shape[2:] for n, v in next(iter(table.draws.values())).values.items()}
    queues = [
        [Scalar(n, i) for i in itertools.islice(itertools.product(*map(range, shape)), most)]
        for n, shape in shapes.items()
    ]
    turns = [s for turn in itertools.zip_longest(*queues) for s in turn if s is not None]
    worst = [
        _parse(diagnostics.mixing(answer).rhat_at)
        for answer in table.answers.values()
        if isinstance(answer, Draws) and not answer.independent
    ]
    chosen = list(dict.fromkeys([*worst, *turns]))[:most]
    return sorted(chosen, key=lambda s: (list(shapes).index(s.site), s.index))


def _parse(name: str) -> Scalar:
    site, inside = re.fullmatch(r"(.*?)(?:\[([\d, ]+)\])?", name).groups()
    return Scalar(site, tuple(int(i) for i in inside.split(",")) if inside else ())


# ---- learning curves ----


def learning_curves(table: Table) -> Figure:
    """Draws the bound of every fit against steps and against seconds."""
    fits = {n: a for n, a in table.answers.items() if isinstance(a, Fit) and a.history.bound}
    truth = [(n, table[n].log_marginal) for n, a in table.answers.items() if isinstance(a, Exact)]
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
        torch.equal(torch.as_tensor(a).to(b), b) for a, b in zip(fit.data, table.data, strict=True)
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


def importance_khat(table: Table, num_particles: int = 1000) -> Figure:
    """Draws the Pareto k̂ of every fit's importance weights, data in order of k̂."""
    fits = {n: a for n, a in table.answers.items() if isinstance(a, Fit)}
    khat = {
        n: f.log_marginal(*table.data, num_particles=num_particles).khat.sort().values.numpy()
        for n, f in fits.items()
    }
    dots = all(len(k) == 1 or not np.isfinite(k).any() for k in khat.values())
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * len(fits) if dots else 3.4))
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
        ax.plot(100 * share, np.where(np.isfinite(k), k, np.nan), color=colour[name], label=label)
    ax.axhline(MOST_KHAT, color=RED, ls="--", lw=1)
    ax.set(xlabel=r"% of the data, in order of $\hat k$", ylabel=r"$\hat k$", xlim=(0, 100))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


# ---- posteriors over each other ----


def overlays(table: Table, chosen: list[Scalar]) -> Figure:
    """Draws the marginal posterior of each number by every answer."""
    rows = math.ceil(len(chosen) / 3)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.5))
    axes, colour = figure.subplots(rows, min(3, len(chosen)), squeeze=False), colours(table)
    sites = traces.look(next(iter(table.draws.values())).model, *table.data)
    for ax, scalar in itertools.zip_longest(axes.flat, chosen):
        if scalar is None:
            ax.set_axis_off()
            continue
        support = sites[scalar.site].fn.support
        (_bars if support.is_discrete else _curves)(ax, table, scalar, colour, _unbounded(support))
        ax.set(title=str(scalar), yticks=[], ylim=(0, None))
        ax.spines["left"].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def _curves(
    ax: Axes, table: Table, scalar: Scalar, colour: dict[str, str], unbounded: bool
) -> None:
    low, high = _window(table, scalar)
    for name in sorted(table.answers, key=lambda n: colour[n] == "black"):  # exact on top
        draws = scalar.of(table.draws[name]).double().flatten().numpy()
        if np.ptp(draws) == 0:  # a guide that is certain
            ax.axvline(draws[0], color=colour[name], label=name)
            continue
        answer = table.answers[name]
        if isinstance(answer, Exact):
            x, density = _gaussian(answer, scalar, low, high)
        else:
            x, density = _kernel(draws, unbounded)
        width = 1.8 if name == table.reference else 1.2
        ax.plot(x, density, color=colour[name], label=name, lw=width)
        if name == table.reference:
            ax.fill_between(x, density, color=colour[name], alpha=0.08, lw=0)
    ax.set_xlim(low, high)


def _bars(ax: Axes, table: Table, scalar: Scalar, colour: dict[str, str], _: bool) -> None:
    width = 0.8 / len(table.answers)
    for number, name in enumerate(table.answers):
        x, counts = np.unique(scalar.of(table.draws[name]).numpy(), return_counts=True)
        shift = (number + 0.5) * width - 0.4
        ax.bar(x + shift, counts / counts.sum(), width, color=colour[name], label=name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _gaussian(
    answer: Exact, scalar: Scalar, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    mean, sd = (float(part[scalar.site][scalar.index]) for part in (answer.mean, answer.sd))
    x = np.linspace(low, high, 400)
    return x, np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


def _kernel(draws: np.ndarray, unbounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns a density that ends with the draws only where their support may end."""
    options = {}
    if unbounded:
        ends = draws.min() - 0.3 * np.ptp(draws), draws.max() + 0.3 * np.ptp(draws)
        options = {"custom_lims": ends, "bound_correction": False}
    x, density, _ = array_stats.kde(draws, **options)
    return x, density


def _unbounded(support: constraints.Constraint) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def _window(table: Table, scalar: Scalar) -> tuple[float, float]:
    """Returns what to show: nearly all of every answer, but not three times the reference's."""
    ends = {
        name: np.quantile(scalar.of(draws).double().numpy(), (0.003, 0.997))
        for name, draws in table.draws.items()
    }
    low, high = min(e[0] for e in ends.values()), max(e[1] for e in ends.values())
    if table.reference is not None:
        a, b = ends[table.reference]
        low, high = max(low, a - (b - a)), min(high, b + (b - a))
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad
