"""Pictures of sequences with hidden states: what was observed, and which state when.

Shapes: N data, T steps, K states, D features.
"""

__all__ = ["Chain", "Sequences", "posteriors", "sequences", "summary"]

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pplvm import traces
from pplvm.diagnostics_discrete import counts, probabilities, states
from pplvm.enumeration import Enumerated
from pplvm.naming import runs
from pplvm.plots import RED, WIDTH
from pplvm.plots_mixtures import heatmap
from pplvm.table import Table


class Chain(NamedTuple):
    """The discrete latents of one loop over time."""

    sites: list[str]  # T
    states: Tensor  # (K,)
    p: dict[str, Tensor]  # (N, T, K): by each answer, the reference first
    counted: Tensor  # (N, T): where there is anything to know

    @property
    def stem(self) -> str:
        """What the names of its sites have in common."""
        return self.sites[0].rstrip("0123456789").rstrip("_.[")


class Sequences(NamedTuple):
    """Chains of discrete latents side by side, and what is observed at each of their steps."""

    chains: list[Chain]
    x: Tensor  # (N, T, D)
    lengths: Tensor  # (N,)


def sequences(table: Table) -> Sequences | None:
    """Finds the loops over time whose latents are discrete, if there are any."""
    first = next(iter(table.draws.values()))
    sites = traces.look(first.model, *table.data)
    own = {n: site for n, site in sites.items() if [p for p, _, _ in site.plates] == [traces.DATA]}
    found = {
        n: k for n, k in states(table.answers, table.draws).items() if n in own and k.ndim == 1
    }
    loops = [run for run in runs({n: len(k) for n, k in found.items()}).values() if len(run) > 1]
    seen = {n: site.value for n, site in own.items() if site.kind == "observed"}
    seen = list(runs({n: x.shape for n, x in seen.items()}).values())
    seen = next((run for run in seen if loops and len(run) == len(loops[0])), None)
    if seen is None:
        return None
    order = sorted(table.answers, key=lambda name: name != table.reference)
    p = {n: probabilities(table.answers[n], table.draws[n], found) for n in order}
    where = counts(first, found)
    chains = [
        Chain(
            run,
            found[run[0]],
            {name: torch.stack([p[name][site] for site in run], 1) for name in order},
            torch.stack([where[site] for site in run], 1),
        )
        for run in loops
        if len(run) == len(seen)
    ]
    x = torch.stack([own[name].value.detach().cpu().double() for name in seen], 1)  # (N, T[, D])
    steps = torch.arange(1, len(seen) + 1) * chains[0].counted  # (N, T)
    return Sequences(chains, x.flatten(2) if x.ndim > 2 else x[..., None], steps.amax(1))


def posteriors(table: Table, found: Sequences, num_data: int = 3) -> Figure:
    """Draws the first sequences, and below each the probability of every state at every step."""
    num_data = min(num_data, len(found.x))
    panels = [(chain, name) for name in found.chains[0].p for chain in found.chains]
    paths = _exact_paths(table)
    heights = [1.5, *(0.16 * len(chain.states) + 0.25 for chain, _ in panels)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5))
    widths = found.lengths[:num_data].clamp(min=int(found.lengths.max()) // 4).tolist()
    grid = figure.subplots(
        len(heights), num_data, squeeze=False, sharex="col",
        gridspec_kw={"height_ratios": heights, "width_ratios": widths},
    )  # fmt: skip
    low, high = _heard(found.x)
    for n in range(num_data):
        T = int(found.lengths[n])
        roll = found.x[n, :T, low : high + 1].T  # (D, T)
        grid[0, n].imshow(
            roll.numpy(), aspect="auto", cmap="gray_r", interpolation="nearest", origin="lower",
            extent=(-0.5, T - 0.5, low - 0.5, high + 0.5),
        )  # fmt: skip
        grid[0, n].set_title(f"row {n}: {T} steps")
        for ax, (chain, name) in zip(grid[1:, n], panels, strict=True):
            _states(ax, chain, chain.p[name][n, :T], paths.get(chain.stem, chain.p[name])[n][:T])
            if n == 0:
                label = f"{name}\n{chain.stem}"
                ax.set_ylabel(label, rotation=0, ha="right", va="center")
        grid[-1, n].set_xlabel("step")
    grid[0, 0].set_ylabel("feature")
    return figure


def summary(table: Table, found: Sequences) -> Figure:
    """Draws the mean of what is observed in each state and, where known, how states follow."""
    name = next(iter(found.chains[0].p))
    exact = table.answers[name] if isinstance(table.answers[name], Enumerated) else None
    rows, (low, high) = len(found.chains), _heard(found.x)
    K = max(len(chain.states) for chain in found.chains)
    figure = Figure(figsize=(WIDTH, rows * (0.75 + 0.22 * K)))
    columns = 1 if exact is None else 2
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"width_ratios": [5, 2][:columns]}
    )
    for row, chain in zip(grid, found.chains, strict=True):
        p = chain.p[name] * chain.counted[..., None]  # (N, T, K)
        total = p.sum((0, 1)).clamp(min=1e-12)
        mean = torch.einsum("ntk,ntd->kd", p, found.x) / total[:, None]
        image = heatmap(row[0], mean[:, low : high + 1], signed=bool(mean.min() < 0), start=low)
        shares = [f"{k}: {100 * w:.0f} %" for k, w in enumerate((total / total.sum()).tolist())]
        row[0].set(yticks=range(len(shares)), yticklabels=shares, xlabel="feature")
        row[0].set_title(f"{chain.stem}: mean of what is observed in each state")
        figure.colorbar(image, ax=row[0], fraction=0.04)
        if exact is not None:
            both = chain.counted[:, 1:] & chain.counted[:, :-1]  # (N, T - 1)
            moves = exact.pairwise(chain.stem).cpu() * both[..., None, None]  # (N, T - 1, K, K)
            moves = moves.sum((0, 1))
            image = heatmap(row[1], moves / moves.sum(-1, keepdim=True).clamp(min=1e-12))
            row[1].set(title=f"{chain.stem}: how states follow", xlabel="to", ylabel="from")
            row[1].set(yticks=range(len(shares)), xticks=range(len(shares)))
            figure.colorbar(image, ax=row[1], fraction=0.06)
    return figure


def _states(ax: Axes, chain: Chain, p: Tensor, path: Tensor) -> None:
    """Draws probabilities (T, K), the most probable states, and a path of indices (T,) or none."""
    heatmap(ax, p.T)
    if path.ndim == 1:
        index = (path[:, None] == chain.states).long().argmax(-1)  # (T,)
        ax.plot(index.numpy(), color=RED, lw=0.9, drawstyle="steps-mid")
    ax.plot(p.argmax(-1).numpy(), ".", ms=3, color="black")
    ax.set(yticks=[0, len(chain.states) - 1], ylim=(len(chain.states) - 0.5, -0.5))


def _heard(x: Tensor) -> tuple[int, int]:
    """Returns the first and the last of the features that ever differ from 0."""
    heard = x.ne(0).flatten(0, 1).any(0).nonzero()[:, 0]
    return (int(heard[0]), int(heard[-1])) if len(heard) else (0, x.shape[-1] - 1)


def _exact_paths(table: Table) -> dict[str, Tensor]:
    """Returns the jointly most probable states, (N, T), of every loop, if an answer knows them."""
    for answer in table.answers.values():
        if isinstance(answer, Enumerated):
            return {name: path.cpu() for name, path in answer.most_probable().items()}
    return {}
