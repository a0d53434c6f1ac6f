"""One self-contained HTML file: a table of answers, what made them, and the plots behind it."""

__all__ = ["write"]

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from pplvm import (
    diagnostics,
    plots,
    plots_factors,
    plots_graph,
    plots_images,
    plots_mcmc,
    plots_mixtures,
    plots_posteriors,
    plots_rationales,
    plots_sequences,
    report_facts,
)
from pplvm.contract import grouped, site_table
from pplvm.draws import Draws
from pplvm.fit import Fit
from pplvm.report_page import Picture, Section, Text, beside, failed, picture, template
from pplvm.table import Table


def write(table: Table, path: str | Path) -> Path:
    """Writes the report of a table and returns where to.

    A figure that fails leaves a sentence in its place.

    Args:
        table: What :func:`pplvm.compare` returned.
        path: The file, which is written beside and then renamed; one that cannot be written is a
            ``ValueError``, raised before any figure is drawn.
    """
    path = Path(path)
    with beside(path) as part:
        part.write_text(_html(table), encoding="utf-8")
    return path


def _html(table: Table) -> str:
    first = next(iter(table.draws.values()))
    found, reason = plots_graph.nodes(first.model, *table.data)
    return template("report.html.jinja").render(
        story=report_facts.story_name(first.model),
        source=report_facts.source(first.model),
        date=datetime.now().astimezone(),
        data=[f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in table.data],
        table=table,
        cells=table.cells(),
        legend=table.legend(),
        colours=plots.colours(table),
        sites=grouped(site_table(first.model, None, *table.data)),
        guides=report_facts.guides(table),
        settings=report_facts.settings(table),
        versions=report_facts.versions(),
        graph=picture("Graph", _GRAPH, lambda: plots_graph.graph(found)),
        no_arrows=reason,
        sections=list(_sections(table)),
    )


# ---- figures ----

_GRAPH = (
    "White: latent. Shaded: observed. Dashed: deterministic. A box repeats what is in it, as often "
    "as the number in its corner says; an arrow leads from a site to one whose distribution "
    "depends on it."
)
_CURVES = (
    "The objective's bound of each step's batch, averaged over a fiftieth of all steps; dots are "
    "held-out data; dashed lines are of fits to other data than the table's. The legend has the "
    "mean of the last tenth. The axis begins where the fits become comparable: the first steps are "
    "far below it. Bounds of different objectives estimate different things; only log p(x) is "
    "common to them."
)
_KHAT = (
    "Pareto k̂ of the importance weights with the guide as proposal. "
    "Above 0.7, the dashed line, log p(x) is not to be trusted. Weights that are all the same, as "
    "those of an exact proposal or of a single point or state, or that take few values, have no tail to "
    "fit."
)
_OVERLAYS = (
    "Marginal posteriors, by kernel density estimates of draws, or shares of them where a latent is "
    "discrete; black is exact, shaded the "
    "reference. Guides that minimise KL(q\u00a0‖\u00a0p) tend to be too narrow; wake-sleep tends to "
    "be too wide. Topics, states or components of a mixture have the numbers that each answer gave "
    "them, which need not be those of another."
)
_FOREST = "Points are means; thick lines hold 50 %, thin lines 94 % of the draws."
_IMAGES = (
    "First row: data. Reconstructions: the mean of what the model predicts at draws of the latents "
    "given the data. Samples: drawn from the model alone, not their means."
)
_SEQUENCES = (
    "Above: what was observed, features that ever differ from 0 against time. Below: the probability "
    "of every state at every step by each answer, white 0 and dark 1, with the most probable state of "
    "each step as a dot. The red line is the jointly most probable path, where an exact answer knows "
    "it; states are numbered from the top."
)
_STATES = (
    "What is observed in each state, averaged over all data and weighed by the probabilities of the "
    "first answer above, beside the state's share of all steps; and, where the answer is exact, the "
    "expected moves from state to state, each row summing to 1."
)
_AXES = (
    "The data along their first two principal axes, coloured by the most probable component; circled "
    "are those whose component is less than 95 % sure."
)
_RESPONSIBILITIES = "The probability of each component for the first data, white 0 and dark 1."
_COMPONENTS = (
    "What is observed in each component, averaged over the data and weighed by the probabilities of "
    "the first answer above, with the component's share of the data."
)


_TEXTS = (
    ("rationales", "Rationales", plots_rationales.rationales),
    ("factors", "Factors in words", plots_factors.factors),
)


def _sections(table: Table) -> Iterator[Section]:
    yield Section("learning", "Learning", list(_learning(table)))
    chosen, series = plots_posteriors.scalars(table), plots_sequences.sequences(table)
    clusters = plots_mixtures.mixture(table)
    told = [
        Section(key, title, [], text)
        for key, title, find in _TEXTS
        if (text := _text(find, table)) is not None
    ]
    numbers = [scalar for scalar in chosen if not plots_posteriors.is_label(table, scalar)]
    if numbers or not (series or clusters or told):  # labels have figures of their own
        pictures = list(_posteriors(table, chosen, numbers))
        yield Section("posteriors", "Posteriors", pictures)
    if series is not None:
        yield Section("sequences", "Sequences", list(_sequences(table, series)))
    if clusters is not None:
        yield Section("components", "Components", list(_components(table, clusters)))
    yield from told
    found = plots_images.images(table)
    if found is not None:
        draw = picture("Images", _IMAGES, lambda: plots_images.gallery(table, found))
        yield Section("images", "Images", [draw])
    for number, (name, answer) in enumerate(table.answers.items()):
        if isinstance(answer, Draws) and not answer.independent:
            pictures = list(_chains(answer, chosen))
            yield Section(f"chains-{number}", f"Chains of {name}", pictures)


def _learning(table: Table) -> Iterator[Picture]:
    if any(isinstance(answer, Fit) for answer in table.answers.values()):
        yield picture("Learning curves", _CURVES, lambda: plots.learning_curves(table))
        yield picture("Importance weights", _KHAT, lambda: plots.importance_khat(table))


def _posteriors(
    table: Table, chosen: list[plots_posteriors.Scalar], numbers: list[plots_posteriors.Scalar]
) -> Iterator[Picture]:
    yield picture(
        "Posteriors over each other", _OVERLAYS, lambda: plots_posteriors.overlays(table, chosen)
    )
    if numbers:  # labels have no means and no intervals
        yield picture("All answers", _FOREST, lambda: plots_mcmc.forest(table, numbers))


def _sequences(table: Table, series: plots_sequences.Sequences) -> Iterator[Picture]:
    draw = plots_sequences.posteriors
    yield picture("States along time", _SEQUENCES, lambda: draw(table, series))
    yield picture("States", _STATES, lambda: plots_sequences.summary(table, series))


def _components(table: Table, clusters: plots_mixtures.Mixture) -> Iterator[Picture]:
    if clusters.x.shape[1] > 1:
        yield picture("Principal axes", _AXES, lambda: plots_mixtures.axes_of_data(clusters))
    draw = plots_mixtures.responsibilities
    yield picture("Responsibilities", _RESPONSIBILITIES, lambda: draw(clusters))
    if clusters.x.shape[1] > 1:
        yield picture("Means", _COMPONENTS, lambda: plots_mixtures.components(table, clusters))


def _chains(draws: Draws, chosen: list[plots_posteriors.Scalar]) -> Iterator[Picture]:
    yield picture(
        "Traces",
        "Each colour is a chain. Chains that agree cover each other; steps and drifts are bad signs.",
        lambda: plots_mcmc.traces_of_chains(draws, chosen),
    )
    if draws.shape[0] > 1:
        yield picture(
            "Ranks",
            "How the ranks of each chain's draws differ from uniform: lines that leave the band "
            "(99 %) are of chains that disagree.",
            lambda: plots_mcmc.ranks(draws, chosen),
        )
    if len(chosen) > 1:
        yield picture(
            "Pairs",
            "Funnels and thin ridges are where samplers get stuck; divergences are red.",
            lambda: plots_mcmc.pairs(draws, chosen),
        )
    if "energy" in draws.stats:
        yield picture(
            "Energy",
            "Where the transitions' energies are much narrower than the marginal ones, and E-BFMI "
            "is below 0.3, the sampler explores the tails slowly.",
            lambda: plots_mcmc.energy(draws),
        )
    if diagnostics.psis_loo(draws) is not None:
        yield picture(
            "LOO-PIT",
            "The distribution function of each datum's rank in its leave-one-out prediction, less "
            "the uniform one. Outside the band (99 %) the model is badly calibrated.",
            lambda: plots_mcmc.loo_pit(draws),
        )
        yield picture(
            "LOO k̂",
            "Pareto k̂ of leaving out each datum. Above 0.7 LOO is not to be trusted there.",
            lambda: plots_mcmc.loo_khat(draws),
        )


def _text(find: Callable[[Table], object | None], table: Table) -> Text | None:
    """Returns what there is to write, if there is anything, and survives what goes wrong."""
    try:
        found = find(table)
    except Exception as error:  # likewise
        return Text(failure=failed("section", error))
    return None if found is None else Text(found)
