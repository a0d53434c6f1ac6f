"""Rationales as text: every word on a ground as strong as the guide is sure of selecting it.

Shapes: N sentences, T words, C classes.
"""

__all__ = ["rationales_html", "review", "spelt", "vocabulary"]

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinja2
from torch import Tensor

from pplvm.batches import check_count
from pplvm.diagnostics_rationale import Rationales
from pplvm.parameters import module_of


class Word(NamedTuple):
    """A word, how probably it is selected, and whether it is known to be telling."""

    text: str
    q: float
    shade: float  # from 0 to 1: how strong its ground is
    telling: bool


class Review(NamedTuple):
    """What stands on the page of one sentence."""

    row: int
    words: list[Word]
    gold: str
    predicted: str
    p: float  # of what is predicted
    right: bool
    expected: float  # number of words selected


def rationales_html(
    found: Rationales,
    tokens: Sequence[Sequence[str]],
    *,
    classes: Sequence[str] | None = None,
    telling: Tensor | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
    num_data: int = 20,
    title: str = "Rationales",
) -> str:
    """Returns a self-contained page of HTML with the first sentences and their rationales.

    Args:
        found: What :func:`pplvm.diagnostics_rationale.rationale_summary` returned.
        tokens: The words of each of N sentences, as they are to be shown; any text, it is escaped.
        classes: The names of the C classes, by default their numbers.
        telling: Words that are known to be telling, (N, T) of bool, to be underlined.
        scale: Where the ground is blank and where it is strongest. Guides that stay near a prior
            of 0.3 want one such as (0.25, 0.45); the page says what it is.
        num_data: How many sentences to show at most; an arbitrary default.
        title: Of the page.

    Raises:
        ValueError: if the words or the names are not as many as there should be, or the scale is
            none.
    """
    check_count("num_data", num_data)
    if not 0 <= scale[0] < scale[1] <= 1:
        raise ValueError(f"'scale' should be two rising numbers from 0 to 1, got {scale}.")
    C = found.predicted.shape[-1]
    classes = [str(c) for c in range(C)] if classes is None else list(classes)
    if len(classes) != C:
        raise ValueError(
            f"'classes' has {len(classes)} names, but there are {C} classes: name each of them."
        )
    if len(tokens) != len(found.y):
        raise ValueError(
            f"'tokens' has {len(tokens)} sentences, but the rationales are of {len(found.y)}: give "
            "the words of each, in the same order."
        )
    if telling is not None and telling.shape != found.selected.shape:
        raise ValueError(
            f"'telling' has shape {tuple(telling.shape)}, but the rationales have "
            f"{tuple(found.selected.shape)}: give True or False for each word."
        )
    shown = range(min(num_data, len(tokens)))
    reviews = [review(found, n, tokens[n], classes, telling, scale) for n in shown]
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("pplvm", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("rationales.html.jinja")
    return template.render(
        title=title,
        found=found,
        reviews=reviews,
        num_data=len(tokens),
        marked=telling is not None,
        scale=scale,
    )


def vocabulary(model: Callable) -> list[str] | None:
    """Returns the words that a model says its numbers stand for, by its attribute ``vocabulary``."""
    said = getattr(module_of(model), "vocabulary", ())
    return list(map(str, said)) or None


def spelt(words: Sequence[str] | None, number: int) -> str:
    """Returns word ``number`` as it is written, as its number where that is not known."""
    known = words is not None and 0 <= number < len(words)
    return words[number] if known else f"#{number}"


def review(
    found: Rationales,
    n: int,
    tokens: Sequence[str],
    classes: Sequence[str],
    telling: Tensor | None,
    scale: tuple[float, float],
) -> Review:
    """Returns what there is to show of sentence n: see :func:`rationales_html`."""
    length = int(found.lengths[n])
    if len(tokens) != length:
        raise ValueError(
            f"'tokens' has {len(tokens)} words in row {n}, but 'lengths' says {length}: give the "
            "words that were encoded."
        )
    q = found.selected[n, :length].tolist()
    marks = [False] * length if telling is None else telling[n, :length].tolist()
    low, high = scale
    shades = [min(max((p - low) / (high - low), 0.0), 1.0) for p in q]
    y, best = int(found.y[n]), int(found.predicted[n].argmax())
    return Review(
        row=n,
        words=[Word(*word) for word in zip(tokens, q, shades, marks, strict=True)],
        gold=classes[y],
        predicted=classes[best],
        p=float(found.predicted[n, best]),
        right=best == y,
        expected=sum(q),
    )
