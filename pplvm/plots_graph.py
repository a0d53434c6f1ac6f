"""The graph of a story: sites as nodes, plates as boxes, an arrow where one depends on another.

Nodes that the data share and that depend on nothing in a plate stand above; below, sites of the
same plates stand in columns of their own, so that no box holds a node that is not in its plate.
"""

__all__ = ["Node", "graph", "nodes"]

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
from pyro.infer.inspect import get_model_relations
from torch import Tensor

from pplvm import traces
from pplvm.naming import runs

_ROW, _HALF = 1.4, 0.36  # inches between rows, and of half a node
_BENDS = (0.0, 0.15, -0.15, 0.25, -0.25, 0.4, -0.4, 0.6, -0.6)


class Node(NamedTuple):
    """One node: a site, or a run of sites such as ``z_0`` to ``z_128``."""

    label: str
    kind: str  # "latent", "observed" or "deterministic"
    distribution: str
    plates: tuple[tuple[str, int], ...]  # (name, size), outermost first
    parents: frozenset[str]  # names of nodes

    @property
    def width(self) -> float:
        """The width of its ellipse in inches."""
        return max(1.0, 0.095 * max(len(self.label), 0.85 * len(self.distribution)) + 0.35)


def nodes(model: Callable, *data: Tensor) -> tuple[dict[str, Node], str]:
    """Returns the nodes of a story by name, and why there are no arrows, if there are none."""
    sites = traces.look(model, *data)
    try:
        parents, reason = _parents(model, data), ""
    except Exception as error:  # provenance goes through whatever code a story is made of
        parents, reason = {}, f"{type(error).__name__}: {error}".strip().splitlines()[0]
    groups = runs(
        {n: (s.kind, tuple((p, size) for p, size, _ in s.plates)) for n, s in sites.items()}
    )
    owner = {name: run[0] for run in groups.values() for name in run}
    found = {}
    for label, run in groups.items():
        name, site = run[0], sites[run[0]]
        above = {owner[p] for one in run for p in parents.get(one, ()) if p in owner}
        found[name] = Node(
            label=label,
            kind=site.kind,
            distribution="" if site.kind == "deterministic" else traces.distribution_name(site.fn),
            plates=tuple((n, size) for n, size, _ in site.plates),
            parents=frozenset(above if len(run) > 1 else above - {name}),
        )
    return found, reason


def _parents(model: Callable, data: tuple[Tensor, ...]) -> Mapping[str, Sequence[str]]:
    relations = get_model_relations(model, data, include_deterministic=True)
    return relations["sample_sample"]


def graph(found: Mapping[str, Node]) -> Figure:
    """Draws the nodes."""
    at = layout(found)
    boxes = plate_boxes(found, at)
    corners = [
        (x + side * found[n].width / 2, y + side * _HALF)
        for n, (x, y) in at.items()
        for side in (-1, 1)
    ]
    corners += [
        (x, y) for _, (left, low, right, high) in boxes for x, y in ((left, low), (right, high))
    ]
    (left, right), (low, high) = ((min(c) - 0.1, max(c) + 0.1) for c in zip(*corners, strict=True))
    figure = Figure(figsize=(right - left, high - low), layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(left, right), ylim=(low, high))
    ax.set_axis_off()
    for number, (label, box) in enumerate(boxes):
        cut = any(other[0] < box[2] < other[2] and box[0] < other[0] for _, other in boxes[number:])
        _draw_plate(ax, label, *box, on_the_left=cut)
    patches = {name: _draw_node(ax, node, *at[name]) for name, node in found.items()}
    for name, node in found.items():
        for parent in sorted(node.parents):
            _draw_edge(ax, at, patches, parent, name)
    return figure


def layout(found: Mapping[str, Node]) -> dict[str, tuple[float, float]]:
    """Returns the place of each node in inches."""
    order = list(found)  # a site comes after those that it depends on; what goes back is a loop
    parents = {n: [p for p in found[n].parents if order.index(p) < order.index(n)] for n in found}
    top: list[str] = []
    for name in order:
        if not found[name].plates and all(p in top for p in parents[name]):
            top.append(name)
    if len(top) == len(found):
        top = []
    depth: dict[str, int] = {}
    first = 1 + max((_depth(n, parents, top, depth) for n in top), default=-1)
    rest = [name for name in order if name not in top]
    for name in rest:
        depth[name] = first + _depth(name, parents, rest, {})
    at = _columns(found, rest, depth)
    children = {n: [at[c][0] for c in rest if n in parents[c]] for n in top}
    middle = sum(x for x, _ in at.values()) / len(at)
    for level in range(first):
        row = [n for n in top if depth[n] == level]
        row.sort(key=lambda n: sum(children[n]) / len(children[n]) if children[n] else middle)
        wish = [x for n in row for x in children[n]] or [middle]
        at |= _row(found, row, sum(wish) / len(wish), -level * _ROW)
    return at


def _depth(name: str, parents: dict, among: list[str], known: dict[str, int]) -> int:
    if name not in known:
        above = [_depth(p, parents, among, known) for p in parents[name] if p in among]
        known[name] = 1 + max(above, default=-1)
    return known[name]


def _columns(
    found: Mapping[str, Node], names: list[str], depth: dict[str, int]
) -> dict[str, tuple[float, float]]:
    groups: dict[tuple, list[str]] = {}
    for name in names:
        groups.setdefault(tuple(p for p, _ in found[name].plates), []).append(name)
    at, left = {}, 0.0
    for key in _in_order(list(groups)):
        rows = [[n for n in groups[key] if depth[n] == d] for d in sorted(set(depth.values()))]
        width = max(sum(found[n].width + 0.5 for n in row) for row in rows)
        for row in rows:
            if row:
                at |= _row(found, row, left + width / 2, -depth[row[0]] * _ROW)
        left += width + 0.9
    return at


def _in_order(keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Orders sets of plates so that each plate's are together, as far as they can be."""
    if len(keys) > 6:
        return sorted(keys)

    def breaks(order: tuple[tuple[str, ...], ...]) -> int:
        plates = {p for key in keys for p in key}
        return sum(
            (p in a) != (p in b) for p in plates for a, b in itertools.pairwise([(), *order, ()])
        )

    return list(min(itertools.permutations(keys), key=breaks))


def _row(
    found: Mapping[str, Node], names: list[str], middle: float, y: float
) -> dict[str, tuple[float, float]]:
    left, at = middle - sum(found[n].width + 0.5 for n in names) / 2, {}
    for name in names:
        step = found[name].width + 0.5
        at[name] = (left + step / 2, y)
        left += step
    return at


# ---- drawing ----


def _draw_node(ax: Axes, node: Node, x: float, y: float) -> Ellipse:
    face = {"observed": "#c9ced6", "latent": "white", "deterministic": "white"}[node.kind]
    dashes = (0, (4, 3)) if node.kind == "deterministic" else "-"
    ellipse = Ellipse(
        (x, y), node.width, 2 * _HALF, fc=face, ec="#222222", ls=dashes, lw=1.1, zorder=3
    )
    ax.add_patch(ellipse)
    lift = 0.09 if node.distribution else 0.0
    ax.text(x, y + lift, node.label, ha="center", va="center", fontsize=11, zorder=4)
    ax.text(x, y - 0.16, node.distribution, ha="center", va="center", fontsize=8, color="#444444",
            zorder=4)  # fmt: skip
    return ellipse


def _draw_edge(ax: Axes, at: dict, patches: dict[str, Ellipse], start: str, end: str) -> None:
    if start == end:
        _draw_loop(ax, patches[start])
        return
    others = [patch for name, patch in patches.items() if name not in (start, end)]
    bend = min(_BENDS, key=lambda rad: _hits(at[start], at[end], rad, others))
    arrow = FancyArrowPatch(
        at[start], at[end], patchA=patches[start], patchB=patches[end], arrowstyle="-|>",
        connectionstyle=f"arc3,rad={bend}", mutation_scale=13, color="#222222", lw=1.0, zorder=2,
        shrinkA=0, shrinkB=1,
    )  # fmt: skip
    ax.add_patch(arrow)


def _hits(start: tuple, end: tuple, rad: float, others: list[Ellipse]) -> int:
    """Counts the nodes that a bent arrow would run through."""
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1) / 2 + rad * (y1 - y0), (y0 + y1) / 2 - rad * (x1 - x0)
    t = np.linspace(0, 1, 60)
    along = (1 - t) ** 2, 2 * t * (1 - t), t**2
    curve_x = along[0] * x0 + along[1] * x + along[2] * x1
    curve_y = along[0] * y0 + along[1] * y + along[2] * y1
    return sum(
        bool(
            np.any(
                ((curve_x - o.center[0]) / (o.width / 2 + 0.08)) ** 2
                + ((curve_y - o.center[1]) / (o.height / 2 + 0.08)) ** 2
                < 1
            )
        )
        for o in others
    )


def _draw_loop(ax: Axes, patch: Ellipse) -> None:
    (x, y), side = patch.center, patch.width / 2
    arrow = FancyArrowPatch(
        (x + 0.8 * side, y + 0.22), (x + 0.8 * side, y - 0.22), arrowstyle="-|>", zorder=2,
        connectionstyle="arc3,rad=-1.4", mutation_scale=11, color="#222222", lw=1.0,
    )  # fmt: skip
    ax.add_patch(arrow)


def plate_boxes(found: Mapping[str, Node], at: Mapping) -> list[tuple[str, tuple[float, ...]]]:
    """Returns label and (left, low, right, high) of each plate, inner ones first."""
    inside: dict[tuple[str, int], set[str]] = {}
    for name, node in found.items():
        for plate in node.plates:
            inside.setdefault(plate, set()).add(name)
    boxes, placed = [], []
    for (plate, size), names in sorted(inside.items(), key=lambda item: len(item[1])):
        nested = sum(1 for other in placed if other & names)
        placed.append(names)
        pad = 0.2 + 0.16 * nested
        left = min(at[n][0] - found[n].width / 2 for n in names) - pad
        right = max(at[n][0] + found[n].width / 2 for n in names) + pad
        low = min(at[n][1] for n in names) - _HALF - 0.3 - 0.28 * nested
        high = max(at[n][1] for n in names) + _HALF + pad
        boxes.append((f"{plate}  {size}", (left, low, right, high)))
    return boxes


def _draw_plate(
    ax: Axes, label: str, left: float, low: float, right: float, high: float, on_the_left: bool
) -> None:
    frame = FancyBboxPatch(
        (left, low), right - left, high - low, boxstyle="round,pad=0,rounding_size=0.12",
        fc="none", ec="#7a8494", lw=1.0, zorder=1,
    )  # fmt: skip
    ax.add_patch(frame)
    x, side = (left + 0.1, "left") if on_the_left else (right - 0.1, "right")
    ax.text(x, low + 0.07, label, ha=side, va="bottom", fontsize=9, color="#4a5361", zorder=4)
