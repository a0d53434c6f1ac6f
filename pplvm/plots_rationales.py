"""Rationales in a comparison: what each fit reads of a sentence, and what it makes of it.

Shapes: N sentences, T words, C classes.
"""

__all__ = ["RationalesCompared", "rationales"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pplvm import traces
from pplvm.diagnostics_rationale import (
    Rationales,
    accuracy,
    class_log_probs,
    num_classes,
    rationale_summary,
)
from pplvm.fit import Fit
from pplvm.parameters import module_of
from pplvm.plots_text import Review, review, spelt, vocabulary
from pplvm.table import Table

_SHOWN = 8  # sentences; arbitrary


class RationalesCompared(NamedTuple):
    """Rationales by every fit of a table."""

    summaries: dict[str, Rationales]
    given_all: dict[str, float]  # accuracy of the same model where every word is selected
    sentences: list[dict[str, Review]]  # the first, by each fit
    scale: tuple[float, float]  # of grounds
    num_data: int
    known: bool  # whether the words are


def rationales(table: Table) -> RationalesCompared | None:
    """Returns the rationales of a table, if its story is one of those and somebody has fitted it.

    Words are shown as the model's attribute ``vocabulary``, of V texts, has them, and classes as
    its attribute ``classes``, of C names; else as numbers.
    """
    fits = {name: answer for name, answer in table.answers.items() if isinstance(answer, Fit)}
    if not fits or not _selects(next(iter(fits.values())), *table.data):
        return None
    y, x, lengths = table.data
    found, given_all = {}, {}
    for name, fit in fits.items():
        found[name] = rationale_summary(fit.model, fit.guide, y, x, lengths)
        with torch.no_grad():
            z = torch.ones_like(found[name].selected)[None]  # (1, N, T)
            log_p = class_log_probs(fit.model, z, y, x, lengths)
        given_all[name] = accuracy(log_p[0], y)
    model = next(iter(fits.values())).model
    C, texts = found[next(iter(found))].predicted.shape[-1], vocabulary(model)
    classes = getattr(module_of(model), "classes", None)
    classes = list(map(str, range(C) if classes is None or len(classes) != C else classes))
    scale = _scale(list(found.values()))
    sentences = []
    for n in range(min(_SHOWN, len(x))):
        tokens = [spelt(texts, i) for i in x[n, : int(lengths[n])].tolist()]
        sentences.append(
            {name: review(one, n, tokens, classes, None, scale) for name, one in found.items()}
        )
    return RationalesCompared(found, given_all, sentences, scale, len(x), texts is not None)


def _selects(fit: Fit, *data: Tensor) -> bool:
    """Returns whether a story selects words, z of (N, T), and observes classes y of sentences x."""
    if len(data) != 3 or [x.ndim for x in data] != [1, 2, 1]:
        return False
    sites = traces.look(fit.model, *data)
    latents = [name for name, site in sites.items() if site.kind == "latent"]
    if latents != ["z"] or sites["z"].value.shape != data[1].shape:
        return False
    if not sites["z"].fn.support.is_discrete or data[1].is_floating_point():
        return False
    try:
        return num_classes(fit.model, *data) > 0
    except ValueError:
        return False


def _scale(found: Sequence[Rationales]) -> tuple[float, float]:
    """Returns where nearly all of the probabilities are, in steps of 0.05."""
    inside = [
        one.selected[torch.arange(one.selected.shape[1]) < one.lengths[:, None].cpu()].cpu()
        for one in found
    ]
    low, high = torch.cat(inside).double().quantile(torch.tensor([0.02, 0.98]).double()).tolist()
    low = min(math.floor(20 * low) / 20, 0.9)
    return low, min(max(math.ceil(20 * high) / 20, low + 0.1), 1.0)
