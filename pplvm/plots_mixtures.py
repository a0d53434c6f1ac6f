"""Pictures of mixtures: which component each datum is of, and what the components are.

Shapes: N data, K components, D features.
"""

__all__ = ["Mixture", "axes_of_data", "components", "mixture", "responsibilities"]

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pplvm import traces
from pplvm.diagnostics_discrete import probabilities, states
from pplvm.naming import runs
from pplvm.plots import PALETTE, WIDTH
from pplvm.plots_images import images
from pplvm.table import Table


class Mixture(NamedTuple):
    """A discrete latent of each datum, and what is observed of it."""

    latent: str
    x: Tensor  # (N, D)
    p: dict[str, Tensor]  # (N, K): by each answer, the reference first


def mixture(table: Table) -> Mixture | None:
    """Finds the discrete latent of a mixture, if the story has just one that is no loop's."""
    first = next(iter(table.draws.values()))
    sites = traces.look(first.model, *table.data)
    found = states(table.answers, table.draws)
    lone = [names[0] for names in runs(dict.fromkeys(found)).values() if len(names) == 1]
    local = [n for n in lone if [p for p, _, _ in sites[n].plates] == [traces.DATA]]
    seen = [
        site.value
        for site in sites.values()
        if site.kind == "observed" and [p for p, _, _ in site.plates] == [traces.DATA]
    ]
    if len(local) != 1 or not seen or found[local[0]].ndim != 1 or len(found[local[0]]) < 2:
        return None
    order = sorted(table.answers, key=lambda name: name != table.reference)
    p = {
        name: probabilities(table.answers[name], table.draws[name], found)[local[0]]
        for name in order
    }
    x = seen[0].detach().cpu().double()
    return Mixture(local[0], x.reshape(len(x), -1), p)


def axes_of_data(found: Mixture) -> Figure:
    """Draws the data along their first two principal axes, in the colour of their component."""
    centred = found.x - found.x.mean(0)
    _, _, V = torch.linalg.svd(centred, full_matrices=False)
    along = (centred @ V[:2].T).numpy()  # (N, 2)
    rows = math.ceil(len(found.p) / 3)
    figure = Figure(figsize=(WIDTH, 3.1 * rows))
    panels = figure.subplots(rows, min(3, len(found.p)), squeeze=False, sharex=True, sharey=True)
    for ax in panels.flat[len(found.p) :]:
        ax.set_axis_off()
    for ax, (name, p) in zip(panels.flat, found.p.items(), strict=False):
        best, at = p.max(-1)
        for k in at.unique().tolist():
            mine = (at == k).numpy()
            ax.scatter(*along[mine].T, s=22, color=_colour(k), lw=0, alpha=0.85, label=f"{k}")
        unsure = (best < 0.95).numpy()
        ax.scatter(*along[unsure].T, s=60, facecolors="none", edgecolors="black", lw=0.8)
        ax.set(title=f"{name}: {unsure.sum()} of {len(p)} below 95 %", xlabel="first axis")
    panels[0, 0].set_ylabel("second axis")
    return figure


def responsibilities(found: Mixture, most: int = 150) -> Figure:
    """Draws the probability of each component for the first data, in the order of the first answer."""
    figure = Figure(figsize=(WIDTH, 0.7 + 1.3 * len(found.p)))
    panels = figure.subplots(len(found.p), 1, squeeze=False, sharex=True)[:, 0]
    first = next(iter(found.p.values()))[:most]
    sure, at = first.max(-1)
    order = np.lexsort((-sure.numpy(), at.numpy()))
    for ax, (name, p) in zip(panels, found.p.items(), strict=True):
        image = heatmap(ax, p[:most][order].T)
        ax.set(title=name, ylabel=found.latent, yticks=range(p.shape[-1]))
    panels[-1].set_xlabel("data, sorted by component")
    figure.colorbar(image, ax=panels, label="probability", fraction=0.04)
    return figure


def components(table: Table, found: Mixture) -> Figure:
    """Draws the mean of what is observed in each component, weighed by the first answer."""
    p = next(iter(found.p.values()))  # (N, K)
    mean = (p.T @ found.x) / p.sum(0)[:, None].clamp(min=1e-12)  # (K, D)
    pictured, K = images(table), p.shape[-1]
    share = [f"{k}: {100 * w:.0f} %" for k, w in enumerate(p.mean(0).tolist())]
    if pictured is None or math.prod(pictured.shape) != mean.shape[1]:
        figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * K))
        ax = figure.subplots()
        image = heatmap(ax, mean, signed=bool(mean.min() < 0))
        ax.set(yticks=range(K), yticklabels=share, xlabel="feature", ylabel="component")
        figure.colorbar(image, ax=ax, label="mean", fraction=0.04)
        return figure
    columns = min(10, K)
    rows = math.ceil(K / columns)
    figure = Figure(figsize=(WIDTH, 1.3 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for k, ax in enumerate(panels):
        ax.set_axis_off()
        if k < K:
            ax.imshow(
                mean[k].reshape(pictured.shape).numpy(), cmap="gray_r", vmin=float(mean.min())
            )
            ax.set_title(share[k])
    return figure


def heatmap(ax: Axes, values: Tensor, signed: bool = False, start: int = 0) -> AxesImage:
    """Draws numbers (rows, columns), the first row on top: probabilities, or means of any sign."""
    rows, columns = values.shape
    reach = float(values.abs().max()) if signed or values.max() > 1 else 1.0
    options = {"cmap": "RdBu_r", "vmin": -reach} if signed else {"cmap": "Blues", "vmin": 0.0}
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return ax.imshow(
        values.numpy(), aspect="auto", interpolation="nearest", vmax=reach,
        extent=(start - 0.5, start + columns - 0.5, rows - 0.5, -0.5), **options,
    )  # fmt: skip


def _colour(k: int) -> str:
    return PALETTE[k % len(PALETTE)]
