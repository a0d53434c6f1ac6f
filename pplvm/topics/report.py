"""One self-contained HTML file on a topic model: its warnings, its topics, and where they are.

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["write"]

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pplvm import report_facts
from pplvm.report_page import Picture, Section, beside, picture, template
from pplvm.text.corpus import Corpus
from pplvm.topics import plots
from pplvm.topics.overview import Overview, check_words, overview
from pplvm.topics.summaries import (
    lengths,
    periods,
    prevalence_by,
    relevance,
    typical_documents,
)
from pplvm.topics.types import TopicModel

NUM_WORDS = 10  # of each topic
WEIGHT = 0.6  # of the relevance
_PACKAGES = (
    "pplvm", "torch", "pyro-ppl", "numpy", "scipy", "scikit-learn", "gensim", "matplotlib",
)  # fmt: skip


class Topic(NamedTuple):
    """What stands in the row of one topic."""

    number: int
    prevalence: float
    coherence: float
    probable: list[str]
    relevant: list[tuple[str, bool]]  # and whether it is not among the probable
    documents: list[tuple[str, float]]  # titles and the proportion of the topic


def write(
    model: TopicModel,
    corpus: Corpus,
    path: str | Path,
    *,
    facts: Overview | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    title: str = "Topics",
) -> Path:
    """Writes the report of a topic model about documents, and returns where to.

    Args:
        model: The topics, however they were found.
        corpus: The documents; the report shows the topics by each of their groups.
        path: The file, which is written beside and then renamed.
        facts: What :func:`pplvm.topics.overview.overview` returned, which knows of held-out
            documents; by default that of these documents.
        settings: What made the topics, to be listed.
        notes: Sentences on what was read, such as words that were left out.
        title: What the report is called.

    Raises:
        ValueError: before anything is computed if the file cannot be written, or if model and
            corpus have different words.
    """
    path = Path(path)
    with beside(path) as part:
        part.write_text(_html(model, corpus, facts, settings or {}, notes, title), encoding="utf-8")
    return path


def _html(
    model: TopicModel, corpus: Corpus, facts: Overview | None, settings: Mapping[str, Any],
    notes: Sequence[str], title: str,
) -> str:  # fmt: skip
    check_words(model, corpus)
    theta = model.proportions(corpus.counts).detach().cpu()
    facts = facts or overview(model, corpus, theta)
    topics = model.topics.detach().cpu()
    order = facts.prevalence.argsort(descending=True).tolist()
    return template("topics.html.jinja").render(
        title=title,
        date=datetime.now().astimezone(),
        versions=report_facts.versions(_PACKAGES),
        facts=facts,
        figures=_figures(facts, corpus),
        notes=notes,
        topics=_table(topics, theta, corpus, facts, order),
        weight=WEIGHT,
        settings=[(key, report_facts.plain(value)) for key, value in settings.items()],
        sections=list(_sections(topics, theta, corpus, facts, order)),
    )


def _figures(facts: Overview, corpus: Corpus) -> list[tuple[str, str]]:
    N, V = corpus.counts.shape
    found = [("documents", f"{N:,}"), ("tokens", f"{facts.num_tokens:,}"), ("words", f"{V:,}")]
    found.append(("topics", str(len(facts.prevalence))))
    if facts.perplexity is not None:
        found.append((f"perplexity, {facts.num_held_out:,} held out", f"{facts.perplexity:,.1f}"))
    found.append(("coherence (NPMI)", f"{facts.coherence.nanmean():.3f}"))
    return [*found, ("topic diversity", f"{facts.diversity:.2f}")]


def _table(
    topics: Tensor, theta: Tensor, corpus: Corpus, facts: Overview, order: list[int]
) -> list[Topic]:
    num = min(NUM_WORDS, topics.shape[1])
    typical = typical_documents(theta, lengths(corpus.counts))
    relevant = relevance(topics, facts.shares, WEIGHT).topk(num).indices.tolist()
    probable = topics.topk(num).indices.tolist()
    return [
        Topic(
            number=k,
            prevalence=float(facts.prevalence[k]),
            coherence=float(facts.coherence[k]),
            probable=[corpus.vocabulary[w] for w in probable[k]],
            relevant=[(corpus.vocabulary[w], w not in probable[k]) for w in relevant[k]],
            documents=[
                (corpus.titles[d], float(theta[d, k]))
                for d in typical[k]
                if theta[d, k] * len(topics) > 1
            ],
        )
        for k in order
    ]


# ---- figures ----

_BARS = (
    "The most probable words of each topic, topics in the order of their prevalence. A bar is as long "
    "as the word is probable; the first one's probability stands at its end, and each panel has a "
    "scale of its own. The grey line below is the word's share of the whole corpus: a word whose "
    "line is about as long as its bar is as common everywhere."
)
_MAP = (
    "Topics that use similar words are near each other: distances of Jensen and Shannon, scaled to two "
    "dimensions, which cannot keep all of them. Areas are prevalences. Words stand where there is room "
    "for them."
)
_PREVALENCE = "How many of all tokens belong to each topic, by the mean proportions of documents."
_STRIP = (
    "The proportions of documents. Above the line: those that have most of each topic, which are the "
    "extremes. Below it: documents at equal distances in the corpus, in the order of their largest "
    "topics."
)
_GROUPS = (
    "The prevalence of each topic by {name}, with bands of two standard errors over documents; these "
    "know nothing of the uncertainty of the proportions. Each panel has a scale of its own."
)


def _sections(
    topics: Tensor, theta: Tensor, corpus: Corpus, facts: Overview, order: list[int]
) -> Iterator[Section]:
    leading = topics.topk(min(3, topics.shape[1])).indices.tolist()
    words = [" ".join(corpus.vocabulary[w] for w in row) for row in leading]
    typical = typical_documents(theta, lengths(corpus.counts), 1 if len(topics) > 12 else 2)

    def bars() -> Figure:
        return plots.topic_bars(topics, facts.shares, corpus.vocabulary, order)

    yield Section("words", "Words", [picture("Words", _BARS, bars)])
    if len(topics) > 2:  # two points are a line
        draw = picture("Map", _MAP, lambda: plots.topic_map(topics, facts.prevalence, words))
        yield Section("map", "Map", [draw])
    draw = picture(
        "Prevalence", _PREVALENCE, lambda: plots.prevalence_bars(facts.prevalence, words, order)
    )
    grouped = [_grouped(name, theta, corpus, words, order) for name in corpus.groups]
    yield Section("prevalence", "Prevalence", [draw, *grouped])

    def strip() -> Figure:
        return plots.document_strip(theta, typical, corpus.titles, order)

    yield Section("documents", "Documents", [picture("Documents", _STRIP, strip)])


def _grouped(
    name: str, theta: Tensor, corpus: Corpus, words: list[str], order: list[int]
) -> Picture:
    group, length = np.asarray(corpus.groups[name]), 0.0
    caption = _GROUPS
    if group.dtype.kind in "iuf":
        group, length = periods(group)
    elif (num := len(np.unique(group))) > plots.MOST_GROUPS:
        caption += f" These are the {plots.MOST_GROUPS} with most tokens, of {num}."

    def draw() -> Figure:
        found = prevalence_by(theta, lengths(corpus.counts), group)
        return plots.group_prevalence(found, words, order, name)

    by = f"{name}, in periods of {length:g}" if length else name
    return picture(f"By {name}", caption.format(name=by), draw)
