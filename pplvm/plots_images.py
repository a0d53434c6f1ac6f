"""Pictures of image stories: data, what each answer makes of them, and what it dreams."""

__all__ = ["Images", "gallery", "images"]

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pplvm import traces
from pplvm.draws import Draws
from pplvm.fit import Fit
from pplvm.parameters import module_of
from pplvm.plots import WIDTH
from pplvm.table import Table


class Images(NamedTuple):
    """The observed site whose values are images."""

    site: str
    shape: tuple[int, int]  # (height, width)


def images(table: Table) -> Images | None:
    """Finds images among the observed sites, if there are any.

    They are images if each datum's value is two-dimensional, or if the model says so by an
    attribute ``image_shape`` of as many elements.
    """
    model = next(iter(table.draws.values())).model
    said = tuple(getattr(module_of(model), "image_shape", ()))
    for site in traces.look(model, *table.data).values():
        if site.kind != "observed" or not traces.in_data_plate(site) or len(site.plates) > 1:
            continue
        shape = tuple(site.value.shape[1:])
        if len(shape) != 2 and len(said) == 2 and math.prod(said) == math.prod(shape):
            shape = said
        if len(shape) == 2 and min(shape) >= 4:
            return Images(site.name, shape)
    return None


def gallery(table: Table, found: Images, num_images: int = 12) -> Figure:
    """Draws the first data, each answer's mean prediction of them, and what each fit dreams."""
    first = {name: _first(draws, num_images) for name, draws in table.draws.items()}
    some = next(iter(first.values()))
    data = traces.look(some.model, *some.data)[found.site].value
    rows = {"data": data}
    for name, draws in first.items():
        rows[f"{name}: reconstructions"] = (
            draws.thin(200).predict()[found.site].float().mean((0, 1))
        )
    fits = [name for name, answer in table.answers.items() if isinstance(answer, Fit)]
    for name in fits or list(first)[:1]:
        rows[f"{name}: samples"] = first[name].prior_predict(num_draws=1)[1][found.site][0, 0]
    low, high = (float(f(data.float())) for f in (torch.min, torch.max))
    height = (WIDTH - _LABELS) / num_images * found.shape[0] / found.shape[1]
    figure = Figure(figsize=(WIDTH, max(0.35, height) * len(rows)), layout="none")
    for row, (label, values) in enumerate(rows.items()):
        top = 1 - row / len(rows)
        figure.text(
            (_LABELS - 0.1) / WIDTH,
            top - 0.5 / len(rows),
            label,
            ha="right",
            va="center",
            fontsize=8.5,
        )
        ax = figure.add_axes(
            (_LABELS / WIDTH, top - 0.94 / len(rows), 1 - _LABELS / WIDTH, 0.9 / len(rows))
        )
        ax.imshow(_strip(values, found.shape), cmap="gray_r", vmin=low, vmax=high, aspect="equal")
        ax.set_anchor("W")
        ax.set_axis_off()
    return figure


_LABELS = 2.7  # inches to the left of the images


def _strip(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Lays images (N, …) side by side, (height, N·(width + gap)), with gaps of nothing."""
    x = values.detach().cpu().float().reshape(-1, *shape)
    gap = max(1, shape[1] // 10)
    x = torch.nn.functional.pad(x, (0, gap), value=float("nan"))  # (N, height, width + gap)
    return x.movedim(0, 1).flatten(1)[:, :-gap].numpy()


def _first(draws: Draws, num_data: int) -> Draws:
    """Returns the draws of the first data and of what all data share."""
    values = {}
    for name, value in draws.values.items():
        plates = draws.plates[name]
        if traces.DATA in plates:
            value = value.narrow(
                2 + plates.index(traces.DATA), 0, min(num_data, len(draws.data[0]))
            )
        values[name] = value
    return replace(draws, values=values, data=tuple(x[:num_data] for x in draws.data))
