"""The command line of topic models: learn topics, read them, and find them in new texts."""

__all__ = ["NAMES", "fit", "topics", "transform"]

import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from pplvm.checkpoint import check_writable
from pplvm.cli_documents import Reading, documents, held_out
from pplvm.cli_learn import Steps, learn
from pplvm.report_page import beside
from pplvm.text import document_halves
from pplvm.text.corpus import Corpus
from pplvm.topics import report as topics_report
from pplvm.topics import storage
from pplvm.topics.overview import Overview, overview
from pplvm.topics.perplexity import completion_perplexity
from pplvm.topics.summaries import lengths

NAMES = {
    "lda": "Latent Dirichlet allocation",
    "neural-lda": "Neural topic model",
    "avi-lda": "Logistic-normal topic model",
}

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="A data set's name; a folder of .txt, or one .txt, each a document; a .csv or .jsonl with "
        "a text a line; or a .npz of counts.",
    ),
]
Column = Annotated[
    str | None, typer.Option("--column", help="The column of a .csv or .jsonl that has the texts.")
]
Groups = Annotated[
    str | None, typer.Option(help='Columns to show topics by, such as "year,party".')
]
MinDF = Annotated[int, typer.Option("--min-df", min=1, help="Leave out words of fewer documents.")]
MaxDF = Annotated[
    float, typer.Option("--max-df", min=0, max=1, help="Leave out words of more of them: a share.")
]
MaxWords = Annotated[
    int | None, typer.Option("--max-words", min=1, help="Keep so many words, the most frequent.")
]
Encoding = Annotated[str, typer.Option("--encoding", help="Of texts.")]
Errors = Annotated[
    str, typer.Option("--errors", help='"skip" leaves out texts that are not of it.')
]
Folder = Annotated[Path, typer.Argument(help="A folder that `pplvm fit lda --save` wrote.")]
NumWords = Annotated[int, typer.Option("--num-words", min=1, help="Words of each topic.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fit(
    story: Annotated[str, typer.Argument(help="lda, neural-lda or avi-lda.")],
    data: DataOption = "small-corpus",
    column: Column = None,
    groups: Groups = None,
    min_df: MinDF = 2,
    max_df: MaxDF = 0.9,
    max_words: MaxWords = None,
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    num_topics: Annotated[
        int, typer.Option("--topics", "--latent-dim", min=1, help="How many: K.")
    ] = 20,
    guide: Annotated[
        str | None, typer.Option(help="For gradients; else LDA is learnt in closed form.")
    ] = None,
    share: Annotated[float, typer.Option("--held-out", help="Of documents, for perplexity.")] = 0.1,
    objective: Annotated[
        str | None, typer.Option(help="One of those in `pplvm list`; by default svi.")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Documents of a minibatch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Of gradients: auto, cpu or cuda; by default auto.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the topics to this folder.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    num_words: NumWords = 10,
    as_json: AsJson = False,
) -> None:
    """Learn topics of texts."""
    if save is not None:
        storage.check_folder(save)
    if report is not None:
        check_writable(report)
    columns = groups.split(",") if groups else ()
    read = documents(data, Reading(column, columns, min_df, max_df, max_words, encoding, errors))
    _say(read.notes)
    corpus = read.corpus
    learnt, kept = held_out(corpus, share, seed)
    _check_size(learnt, num_topics)
    how = "in closed form" if story == "lda" and guide is None else "by gradients"
    _say([f"learning {num_topics} topics of {len(learnt):,} documents {how}"])
    steps = Steps(num_steps, batch_size, lr, objective, device)
    model, settings = learn(story, learnt.counts, num_topics, guide=guide, steps=steps, seed=seed)
    facts = overview(model, corpus)
    if kept is not None:
        found = completion_perplexity(model, *document_halves(kept.counts, seed=seed))
        facts = replace(facts, perplexity=found, num_held_out=len(kept))
    settings = {"story": story, "data": data, **settings}
    if save is not None:
        storage.save(save, model, corpus.vocabulary, facts, settings=settings, text=read.text)
    if report is not None:
        topics_report.write(
            model, corpus, report, facts=facts, settings={**settings, **read.text},
            notes=read.notes, title=f"{NAMES[story]}: {num_topics} topics",
        )  # fmt: skip
    _print_topics(model.topics, corpus.vocabulary, facts, num_words, as_json)
    _say([f"wrote {path}" for path in (save, report) if path is not None])


def topics(folder: Folder, num_words: NumWords = 10, as_json: AsJson = False) -> None:
    """Print the topics of a saved model: words and their probabilities, prevalence, coherence."""
    found = storage.load(folder)
    _print_topics(found.model.topics, found.vocabulary, found.facts, num_words, as_json)


def transform(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="New texts: what --data of `pplvm fit lda` takes.")],
    column: Column = None,
    encoding: Encoding = "utf-8",
    errors: Errors = "strict",
    out: Annotated[
        Path | None, typer.Option(help="Write the proportions here, a .csv, a document a line.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the topics of new texts: print the largest of each, or write all of them."""
    if out is not None:
        check_writable(out)
    found = storage.load(folder)
    reading = Reading(column, encoding=encoding, errors=errors)
    read = documents(data, reading, vocabulary=found.vocabulary, text=found.text)
    _say(read.notes)
    empty = (lengths(read.corpus.counts) == 0).nonzero().flatten().tolist()
    theta = found.model.proportions(read.corpus.counts).detach().cpu()  # (N, K)
    titles = read.corpus.titles
    if empty:
        named = ", ".join(f"'{titles[d]}'" for d in empty[:3])
        _say(
            [
                f"{named}{' …' * (len(empty) > 3)}: no known words, so what is given is the prior's mean"
            ]
        )
    if out is not None:
        _write_csv(out, titles, theta)
        _say([f"wrote {out}"])
    if as_json:
        rows = zip(titles, theta.tolist(), strict=True)
        print(json.dumps({"documents": [{"title": t, "proportions": row} for t, row in rows]}))
    elif out is None:
        _print_proportions(found, titles, theta)


# ---- within ----


def _check_size(corpus: Corpus, num_topics: int) -> None:
    N, V = corpus.counts.shape
    if V == 0 or not corpus.counts.data.any():
        raise ValueError("'--data' leaves no words: give other texts, or keep more of their words.")
    if num_topics > N:
        raise ValueError(
            f"'--topics' is {num_topics}, but there are {N} documents to learn from: ask for fewer "
            "topics."
        )


def _print_topics(
    topics: Tensor, vocabulary: Sequence[str], facts: Overview, num_words: int, as_json: bool
) -> None:
    order = facts.prevalence.argsort(descending=True).tolist()
    top = topics.detach().cpu().topk(min(num_words, topics.shape[1]))
    rows = [
        {
            "topic": k,
            "prevalence": float(facts.prevalence[k]),
            "coherence": _plain(float(facts.coherence[k])),
            "words": {
                vocabulary[w]: float(p)
                for w, p in zip(top.indices[k].tolist(), top.values[k].tolist(), strict=True)
            },
        }
        for k in order
    ]
    whole = {
        "num_documents": facts.num_documents,
        "num_tokens": facts.num_tokens,
        "num_words": len(vocabulary),
        "perplexity": facts.perplexity,
        "num_held_out": facts.num_held_out,
        "coherence": _plain(float(facts.coherence.nanmean())),
        "diversity": facts.diversity,
        "warnings": list(facts.warnings),
    }
    if as_json:
        print(json.dumps({**whole, "topics": rows}, indent=2))
        return
    print(
        f"{len(rows)} topics of {facts.num_documents:,} documents, {facts.num_tokens:,} tokens, "
        f"{len(vocabulary):,} words"
    )
    if facts.perplexity is not None:
        held = f"{facts.num_held_out:,} documents held out, each completed from half of it"
        print(f"perplexity {facts.perplexity:,.1f} of {held}")
    print(f"coherence (NPMI) {_shown(whole['coherence'])}, topic diversity {facts.diversity:.2f}\n")
    print("topic  tokens  coherence  words and their probabilities")
    for row in rows:
        words = "  ".join(f"{word} {p:.3f}" for word, p in row["words"].items())
        share = f"{100 * row['prevalence']:.1f} %"
        print(f"{row['topic']:>5}  {share:>6}  {_shown(row['coherence']):>9}  {words}")
    if facts.warnings:
        print()
    for warning in facts.warnings:
        print(f"⚠ {warning}")


def _print_proportions(found: storage.Saved, titles: Sequence[str], theta: Tensor) -> None:
    """Prints the topics of each document that are above an equal share, at most four of them."""
    top = found.model.topics.detach().cpu().topk(min(3, len(found.vocabulary))).indices.tolist()
    names = [" ".join(found.vocabulary[w] for w in row) for row in top]
    for title, row in zip(titles, theta, strict=True):
        print(title)
        share, which = row.topk(min(4, len(row)))
        for p, k in zip(share.tolist(), which.tolist(), strict=True):
            if p * len(row) > 1 or k == which[0]:
                print(f"  {100 * p:5.1f} %  {k:>3}  {names[k]}")


def _write_csv(path: Path, titles: Sequence[str], theta: Tensor) -> None:
    with beside(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["document", *(f"topic_{k}" for k in range(theta.shape[1]))])
        writer.writerows(
            [title, *(f"{p:.6g}" for p in row)]
            for title, row in zip(titles, theta.tolist(), strict=True)
        )


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"· {line}", file=sys.stderr)
