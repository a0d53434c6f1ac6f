r"""Figures of topics: their words, how they lie to each other, and where they are prevalent.

The map shows distances of Jensen and Shannon in two dimensions, by classical scaling: with D the
distances (K, K) and J = I - 1/K, the two leading eigenvectors of -J D^2 J / 2, each times the root
of its eigenvalue.

References:
    | LDAvis: A Method for Visualizing and Interpreting Topics (Sievert & Shirley, 2014)
    | https://nlp.stanford.edu/events/illvi2014/papers/sievert-illvi2014.pdf

Shapes: N documents, V words of the vocabulary, K topics, G groups.
"""

__all__ = [
    "document_strip",
    "group_prevalence",
    "positions",
    "prevalence_bars",
    "shortened",
    "topic_bars",
    "topic_map",
]

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.spatial.distance import cdist
from torch import Tensor

from pplvm.plots import PALETTE, WIDTH
from pplvm.topics.summaries import GroupPrevalence

BLUE, PALE, GREY = PALETTE[0], "#b9d3ea", "#777777"
COLUMNS = 5  # of small multiples
MOST_GROUPS = 12  # that are shown by name; numbers may be as many as they are


# ---- words ----


def topic_bars(
    topics: Tensor, shares: Tensor, vocabulary: Sequence[str], order: Sequence[int], num: int = 10
) -> Figure:
    """Draws the most probable words of each topic as bars, and their shares of all tokens as lines.

    Args:
        topics: The probabilities of words, (K, V).
        shares: The words' shares of all tokens, (V,).
        vocabulary: The V words.
        order: The topics to draw, in this order.
        num: How many words of each.
    """
    num = min(num, len(vocabulary))
    rows = -(-len(order) // COLUMNS)
    figure = Figure(figsize=(WIDTH, rows * (0.165 * num + 0.42)), layout="none")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(
        left=0.01, right=0.99, wspace=0.08, top=1 - 0.26 * inch, bottom=0.1 * inch, hspace=0.24
    )
    for ax in axes:
        ax.axis("off")
    for ax, k in zip(axes, order, strict=False):
        p, words = (found.tolist() for found in topics[k].topk(num))
        ax.barh(range(num), p, height=0.82, color=PALE)
        ax.barh(np.arange(num) + 0.37, shares[words].numpy(), height=0.1, color=GREY)
        for row, word in enumerate(words):
            ax.text(0.01 * max(p), row, shortened(vocabulary[word], 24), va="center", fontsize=8)
        ax.text(max(p), 0, f"{p[0]:.2g}", va="center", ha="right", fontsize=6.5, color=GREY)
        ax.set(xlim=(0, 1.02 * max(p)), ylim=(num - 0.4, -0.6))
        ax.set_title(f"topic {k}", loc="left", fontsize=9, fontweight="bold", pad=2)
    return figure


# ---- how topics lie ----


def positions(topics: Tensor) -> np.ndarray:
    """Returns places of topics in two dimensions, (K, 2), from distances of Jensen and Shannon."""
    K = len(topics)
    p = topics.double().numpy()
    J = np.eye(K) - 1 / K
    values, vectors = np.linalg.eigh(-J @ cdist(p, p, "jensenshannon") ** 2 @ J / 2)
    places = np.zeros((K, 2))
    for axis, i in enumerate(range(K - 1, max(K - 3, -1), -1)):  # the largest two
        v = vectors[:, i] * np.sqrt(max(values[i], 0.0))
        places[:, axis] = v * (np.sign(v[np.abs(v).argmax()]) or 1.0)  # a sign that stays
    return places


def topic_map(topics: Tensor, prevalence: Tensor, words: Sequence[str]) -> Figure:
    """Draws topics as circles, near to those that are alike, with areas as their prevalence.

    Args:
        topics: The probabilities of words, (K, V).
        prevalence: Their shares of all tokens, (K,).
        words: What to write at each topic, where there is room.
    """
    places, share = positions(topics), prevalence.numpy()
    figure = Figure(figsize=(WIDTH, 6.2), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color="#dddddd", lw=0.8, zorder=0)
    ax.axvline(0, color="#dddddd", lw=0.8, zorder=0)
    area = 9000 * share / max(share.sum(), 1e-12)  # in points squared: all topics make one inch
    ax.scatter(*places.T, s=area, color=BLUE, alpha=0.35, edgecolor=BLUE, lw=0.8)
    ax.margins(0.12)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    order = np.argsort(-share)
    for k in order:
        ax.text(*places[k], str(k), ha="center", va="center", fontsize=8.5, fontweight="bold")
    figure.draw_without_rendering()  # which lays out the axes, so that texts have extents
    taken = [text.get_window_extent() for text in ax.texts]
    for k in order:
        below = -np.sqrt(area[k] / np.pi) - 2
        text = ax.annotate(
            words[k], places[k], (0, below), textcoords="offset points",
            ha="center", va="top", fontsize=7.5, color="#333333",
        )  # fmt: skip
        _keep_if_free(text, ax, taken)
    return figure


def _keep_if_free(text: Text, ax: Axes, taken: list) -> None:
    """Removes a text that covers another or leaves the figure."""
    box, page = text.get_window_extent(), ax.figure.bbox
    if any(box.overlaps(other) for other in taken) or box.x0 < page.x0 or box.x1 > page.x1:
        text.remove()
    else:
        taken.append(box)


# ---- where topics are ----


def prevalence_bars(prevalence: Tensor, words: Sequence[str], order: Sequence[int]) -> Figure:
    """Draws the share of all tokens that each topic has, with some of its words."""
    share = 100 * prevalence[list(order)].numpy()
    figure = Figure(figsize=(WIDTH, 0.5 + 0.2 * len(order)), layout="constrained")
    ax, rows = figure.subplots(), range(len(order))
    ax.barh(rows, share, height=0.75, color=BLUE)
    for row, value in zip(rows, share, strict=True):
        ax.text(value, row, f" {value:.1f}", va="center", fontsize=7.5, color=GREY)
    width = len(str(max(order)))  # of numbers, filled with spaces as wide as digits
    labels = [f"{words[k]}   {str(k).rjust(width, chr(0x2007))}" for k in order]
    ax.set(yticks=rows, yticklabels=labels, ylim=(len(order) - 0.4, -0.6))
    ax.set(xlabel="% of all tokens", xlim=(0, 1.06 * share.max()))
    ax.tick_params(axis="y", length=0, labelsize=8)
    return figure


def group_prevalence(
    found: GroupPrevalence, words: Sequence[str], order: Sequence[int], name: str
) -> Figure:
    """Draws the prevalence of topics by group with bands of two standard errors.

    Groups that are numbers, such as years, are an axis; of others the largest twelve are shown.

    Args:
        found: What :func:`pplvm.topics.summaries.prevalence_by` returned.
        words: What to write over each topic.
        order: The topics to draw, in this order.
        name: What the groups are, such as "year".
    """
    timely = found.values.dtype.kind in "iuf" and len(found.values) > 2
    kept = np.arange(len(found.values))
    if not timely:  # the largest ones, in their own order
        kept = np.sort(found.tokens.argsort(descending=True)[:MOST_GROUPS].numpy())
    rows = -(-len(order) // COLUMNS)
    height = 1.35 if timely else 0.55 + 0.17 * len(kept)
    figure = Figure(figsize=(WIDTH, rows * height + 0.3), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=timely, sharey=not timely)
    for ax in axes.flat[len(order) :]:
        ax.axis("off")
    for ax, k in zip(axes.flat, order, strict=False):
        mean, error = 100 * found.mean[kept, k].numpy(), 200 * found.error[kept, k].numpy()
        (_line if timely else _points)(ax, found.values[kept], mean, np.nan_to_num(error))
        ax.set_title(f"{k}  {shortened(words[k], 22)}", loc="left", fontsize=8)
        ax.tick_params(labelsize=7.5)
    if timely:
        for column in range(min(COLUMNS, len(order))):  # the lowest that is drawn in each
            last = (len(order) - 1 - column) // COLUMNS
            axes[last, column].tick_params(labelbottom=True)
    figure.supxlabel(name if timely else "% of the tokens", fontsize=9)
    if timely:
        figure.supylabel("% of the tokens", fontsize=9)
    return figure


def _line(ax: Axes, x: np.ndarray, mean: np.ndarray, error: np.ndarray) -> None:
    ax.fill_between(x, np.maximum(mean - error, 0), mean + error, color=PALE, lw=0)
    ax.plot(x, mean, color=BLUE, lw=1)
    ax.set(ylim=(0, 1.15 * max(mean.max(), 1e-9)), xlim=(x[0], x[-1]))


def _points(ax: Axes, names: np.ndarray, mean: np.ndarray, error: np.ndarray) -> None:
    rows = np.arange(len(names))
    ax.hlines(rows, np.maximum(mean - error, 0), mean + error, color=PALE, lw=4)
    ax.plot(mean, rows, "o", ms=4, color=BLUE)
    ax.set(yticks=rows, yticklabels=[shortened(str(name), 20) for name in names])
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1.15 * max((mean + error).max(), 1e-9)))


# ---- documents ----


def document_strip(
    theta: Tensor, typical: Tensor, titles: Sequence[str], order: Sequence[int], num: int = 20
) -> Figure:
    """Draws the proportions of documents, as shades from white 0 to dark 1.

    Above the line are the typical documents of topics; below it some at equal distances in the
    corpus, in the order of their largest topics.

    Args:
        theta: The proportions of all documents, (N, K).
        typical: The typical documents of each topic, (K, M).
        titles: Of the N documents.
        order: The topics to draw, in this order.
        num: How many documents are below the line; an arbitrary default.
    """
    above = list(dict.fromkeys(typical[list(order)].flatten().tolist()))
    below = np.unique(np.linspace(0, len(theta) - 1, num).round().astype(int)).tolist()
    below.sort(key=lambda row: list(order).index(int(theta[row].argmax())))
    rows = above + below
    shares = theta[rows][:, list(order)].numpy()
    figure = Figure(figsize=(WIDTH, 0.7 + 0.155 * len(rows)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    ax.set(yticks=range(len(rows)), yticklabels=[shortened(titles[row], 56) for row in rows])
    ax.set(xticks=range(len(order)), xticklabels=list(order), xlabel="topic")
    ax.tick_params(length=0, labelsize=7.5)
    ax.set_xticks(np.arange(len(order) + 1) - 0.5, minor=True)
    ax.grid(which="minor", axis="x", color="#e6e6e6", lw=0.6)
    ax.tick_params(which="minor", length=0)
    ax.axhline(len(above) - 0.5, color="black", lw=1)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, pad=0.01, fraction=0.025, label="proportion")
    return figure


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many characters, which ends in … if it was longer."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
