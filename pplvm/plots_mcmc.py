"""ArviZ's plots: of chains, of leave-one-out prediction, and of all answers in a forest.

References:
    | Rank-normalization, folding, and localization: an improved R̂ (Vehtari et al., 2021)
    | https://doi.org/10.1214/20-BA1221
"""

__all__ = ["energy", "forest", "loo_khat", "loo_pit", "pairs", "ranks", "traces_of_chains"]

import warnings
from collections.abc import Sequence

import arviz_plots
import numpy as np
import torch
from arviz_base import dict_to_dataset
from arviz_stats import loo
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from xarray import DataTree

from pplvm.diagnostics import MOST_KHAT
from pplvm.draws import Draws
from pplvm.plots import RED, WIDTH, colours
from pplvm.plots_posteriors import Scalar
from pplvm.table import Table

# plot_trace_dist is no choice: arviz-plots 0.8 fails in it on xarray 2026.9.


def traces_of_chains(draws: Draws, chosen: Sequence[Scalar]) -> Figure:
    """Draws the course of each chain."""
    tree = _tree(draws.thin(500), chosen)
    visuals = {"trace": {"width": 0.6, "alpha": 0.85}, "divergence": {"color": RED}}
    plot = arviz_plots.plot_trace(
        tree, backend="matplotlib", visuals=visuals, col_wrap=3, **_size(chosen, 1.5)
    )
    return _labelled_below(_figure(plot), len(chosen))


def ranks(draws: Draws, chosen: Sequence[Scalar]) -> Figure:
    """Draws the ranks of each chain's draws among all, against the band of chains that agree."""
    tree = _tree(draws.thin(1000), chosen)
    visuals = {"ecdf_lines": {"width": 0.9}}
    plot = arviz_plots.plot_rank(
        tree, backend="matplotlib", visuals=visuals, col_wrap=3, **_size(chosen, 1.5)
    )
    return _labelled_below(_figure(plot), len(chosen))


def pairs(draws: Draws, chosen: Sequence[Scalar], most: int = 5) -> Figure:
    """Draws numbers two by two, where funnels and ridges show."""
    C, _ = draws.shape
    tree = _tree(draws.thin(max(2, 1200 // C)), chosen[:most])
    side = WIDTH * (0.55 + 0.09 * min(len(chosen), most))
    visuals = {
        "scatter": {"size": 4, "alpha": 0.35},
        "divergence": {"size": 12, "color": RED},
    }
    plot = arviz_plots.plot_pair(
        tree,
        backend="matplotlib",
        visuals=visuals,
        figure_kwargs={"figsize": (side, 0.75 * side)},
    )
    figure = _figure(plot)
    for ax in figure.axes:
        if ax.lines and not ax.collections:  # heights of densities say nothing
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
    return figure


def energy(draws: Draws) -> Figure:
    """Draws the energies of the sampler, and E-BFMI for each chain."""
    plot = arviz_plots.plot_energy(
        _tree(draws, []), backend="matplotlib", figure_kwargs={"figsize": (WIDTH, 2.4)}
    )
    figure = _figure(plot)
    figure.axes[0].set(yticks=range(draws.shape[0]))
    return figure


def forest(table: Table, chosen: Sequence[Scalar]) -> Figure:
    """Draws the 50 % and 94 % intervals of each number by every answer."""
    trees = {
        name: _tree(_pooled(draws), chosen, stats=False) for name, draws in table.draws.items()
    }
    height = 0.5 + len(chosen) * (0.15 + 0.12 * len(trees))
    plot = arviz_plots.plot_forest(
        trees,
        combined=True,
        backend="matplotlib",
        color=[colours(table)[name] for name in trees],
        visuals={"point_estimate": {"size": 16}},
        figure_kwargs={"figsize": (WIDTH, height), "width_ratios": [1, 9]},
    )
    figure = _figure(plot)
    labels, intervals = figure.axes
    labels.set_axis_off()
    _spread(intervals, np.array([text.get_position()[1] for text in labels.texts]), len(trees))
    plot.add_legend("model", title="")
    return figure


def _spread(ax: Axes, rows: np.ndarray, count: int) -> None:
    """Gives each answer its share of a row, where ArviZ takes the middle 40 % for them all."""
    factor = (count - 1) / (count + 1) / 0.4

    def moved(y: np.ndarray) -> np.ndarray:
        row = rows[np.abs(y[:, None] - rows).argmin(1)]
        return row + factor * (y - row)

    for line in ax.lines:
        line.set_ydata(moved(np.asarray(line.get_ydata(), dtype=float)))
    for points in ax.collections:
        x, y = np.asarray(points.get_offsets()).T
        points.set_offsets(np.column_stack([x, moved(y)]))
    ax.set_ylim(rows.min() - 0.55, rows.max() + 0.55)


# ---- leave-one-out ----


def loo_pit(draws: Draws) -> Figure:
    """Draws the distribution of each datum's rank in its leave-one-out prediction."""
    plot = arviz_plots.plot_loo_pit(
        _predictions(draws), backend="matplotlib", figure_kwargs={"figsize": (0.6 * WIDTH, 3.0)}
    )
    return _figure(plot)


def loo_khat(draws: Draws) -> Figure:
    """Draws the Pareto k̂ of leaving out each datum."""
    with warnings.catch_warnings():
        # ArviZ warns of the very k̂ that this figure shows.
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution")
        result = loo(_predictions(draws), pointwise=True)
    plot = arviz_plots.plot_khat(
        result,
        backend="matplotlib",
        visuals={"khat": {"size": 12}},
        figure_kwargs={"figsize": (0.6 * WIDTH, 3.0)},
    )
    figure = _figure(plot)
    figure.axes[0].axhline(MOST_KHAT, color=RED, ls="--", lw=1)
    figure.axes[0].set(xlabel="datum", ylabel=r"$\hat k$")
    return figure


def _predictions(draws: Draws) -> DataTree:
    """Returns what leaving one out needs, in bounded memory."""
    C, _ = draws.shape
    tree = draws.thin(max(50, 4_000_000 // (C * len(draws.data[0])))).to_arviz()
    groups = ("posterior", "log_likelihood", "posterior_predictive", "observed_data")
    return DataTree.from_dict({name: tree[name].to_dataset() for name in groups})


# ---- within ----


def _tree(draws: Draws, chosen: Sequence[Scalar], stats: bool = True) -> DataTree:
    """Returns a DataTree of these numbers, each a variable of its own."""
    groups = {"posterior": dict_to_dataset({str(s): _array(s.of(draws)) for s in chosen})}
    if stats and draws.stats:
        groups["sample_stats"] = dict_to_dataset({n: _array(v) for n, v in draws.stats.items()})
    return DataTree.from_dict(groups)


def _pooled(draws: Draws, num_draws: int = 2000) -> Draws:
    """Returns as many draws of every answer, in one chain: ArviZ then lines them up."""
    C, S = draws.shape
    rows = torch.linspace(0, C * S - 1, num_draws).round().long()
    values = {name: v.flatten(0, 1)[rows][None] for name, v in draws.values.items()}
    return Draws(values, draws.plates, {}, draws.model, draws.data)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _size(chosen: Sequence[Scalar], row: float) -> dict:
    rows = -(-len(chosen) // 3)
    return {"figure_kwargs": {"figsize": (WIDTH, row * rows + 0.3)}}


def _labelled_below(figure: Figure, count: int) -> Figure:
    """Leaves the label of the x axis to the lowest panel of each column."""
    for ax in figure.axes[: max(0, count - 3)]:
        ax.set_xlabel("")
    return figure


def _figure(plot: arviz_plots.PlotCollection) -> Figure:
    return plot.viz["figure"].item()
