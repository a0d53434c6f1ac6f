"""Posteriors over each other, a few numbers of them.

A figure is one that no backend knows of.
"""

__all__ = ["Scalar", "is_label", "overlays", "scalars"]

import itertools
import math
import re
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import constraints

from pplvm import diagnostics, traces
from pplvm.draws import Draws
from pplvm.exact import Exact
from pplvm.plots import WIDTH, colours
from pplvm.table import Table


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


def is_label(table: Table, scalar: Scalar) -> bool:
    """Returns whether a number is a discrete latent's, so that it stands for a state."""
    sites = traces.look(next(iter(table.draws.values())).model, *table.data)
    return bool(sites[scalar.site].fn.support.is_discrete)


def _parse(name: str) -> Scalar:
    site, inside = re.fullmatch(r"(.*?)(?:\[([\d, ]+)\])?", name).groups()
    return Scalar(site, tuple(int(i) for i in inside.split(",")) if inside else ())


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
    values = torch.cat([draws[scalar.site].flatten().cpu() for draws in table.draws.values()])
    low, high = int(values.min()), int(values.max())
    if high - low < 20:  # the same states in every panel
        ax.set_xlim(low - 0.6, high + 0.6)
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
