"""The report is whole and self-contained, and says what the table says."""

import base64
import html
import io
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

import pplvm
from pplvm import (
    plots,
    plots_graph,
    plots_images,
    plots_mixtures,
    plots_posteriors,
    report_facts,
)
from pplvm.datasets import binary_digits
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE
from pplvm.objectives import iwae, reweighted_wake_sleep
from pplvm.table import Table

# ---- stories, and their tables and reports: each made once ----


def schools(y: Tensor, s: Tensor) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        return pyro.sample("y", dist.Normal(theta, s), obs=y)


def regression(y: Tensor, X: Tensor) -> Tensor:
    w = pyro.sample("w", dist.Normal(X.new_zeros(X.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal((X * w[..., None, :]).sum(-1), 0.5), obs=y)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(x.new_ones(2) / 2))
            return pyro.sample("x", dist.Normal(self.loc[k], 1.0), obs=x)


class MixtureGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(logits=self.linear(x[:, None])))


def table_of_factors() -> Table:
    x = torch.randn(20, 2) @ torch.randn(2, 6) + 0.5 * torch.randn(20, 6)
    fit = pplvm.fit(FactorAnalysis(6, 2), LinearGaussian(6, 2), x, num_steps=300, validation=(x,))
    model = fit.model.requires_grad_(False)
    guide = AmortisedMeanField(6, 2)
    answers = {
        "full": pplvm.fit(model, LinearGaussian(6, 2), torch.cat([x, x]), num_steps=300),
        "mean <field>": pplvm.fit(model, guide, x, num_steps=100),
        "IWAE": pplvm.fit(
            model, guide, x, objective=partial(iwae, num_particles=4), num_steps=100, seed=7
        ),
        "NUTS": pplvm.nuts(model, x, num_chains=2, num_warmup=60, num_samples=60),
        "exact": pplvm.exact(model, x),
    }
    return pplvm.compare(answers)


def table_of_schools() -> Table:
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    chain = pplvm.nuts(schools, y, s, num_chains=2, num_warmup=80, num_samples=80)
    return pplvm.compare({"NUTS": chain, "SVI": pplvm.fit(schools, None, y, s, num_steps=300)})


def table_of_regression() -> Table:
    X = torch.randn(40, 3)
    y = X @ torch.tensor([1.0, -1.0, 2.0]) + 0.5 * torch.randn(40)
    chain = pplvm.nuts(regression, y, X, num_chains=2, num_warmup=100, num_samples=400)
    fit = pplvm.fit(regression, None, y, X, num_steps=200)
    return pplvm.compare({"NUTS": chain, "SVI": fit})


def table_of_images() -> Table:
    x = binary_digits()[:60].to(torch.get_default_dtype())
    shape = tuple(x.shape[1:])
    answers = {
        name: pplvm.fit(VAE(shape, 3, 16), VAEGuide(shape, 3, 16), x, num_steps=60, seed=seed)
        for seed, name in enumerate(("VAE", "another VAE"))
    }
    return pplvm.compare(answers, num_draws=200, num_particles=100)


def table_of_mixture() -> Table:
    x = torch.randn(30) + torch.tensor([-3.0, 3.0]).repeat(15)
    objective = partial(reweighted_wake_sleep, num_particles=4)
    fit = pplvm.fit(Mixture(), MixtureGuide(), x, objective=objective, num_steps=60)
    return pplvm.compare({"RWS": fit}, num_draws=300)


def counts(y: Tensor) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y), dim=-1):
        return pyro.sample("y", dist.Poisson(rate), obs=y)


def table_of_counts() -> Table:
    y = torch.poisson(torch.full((20,), 3.0))
    answers = {
        "one chain": pplvm.nuts(counts, y, num_chains=1, num_warmup=60, num_samples=60),
        "MAP": pplvm.fit(counts, AutoDelta(counts), y, num_steps=60),
    }
    return pplvm.compare(answers, num_draws=300)


MAKERS = {
    "factors": table_of_factors,
    "schools": table_of_schools,
    "regression": table_of_regression,
    "images": table_of_images,
    "mixture": table_of_mixture,
    "counts": table_of_counts,
}


class Made:
    """A table, its report as text, and what making it left behind."""

    def __init__(self, make: Callable[[], Table], path: Path) -> None:
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = make()
            self.states = [self._state()]
            self.path = self.table.report(path)
            self.states.append(self._state())
        torch.set_default_dtype(dtype)
        self.text = self.path.read_text(encoding="utf-8")

    @staticmethod
    def _state() -> tuple:
        random = tuple(torch.get_rng_state().tolist())
        return random, matplotlib.get_backend(), dict(matplotlib.rcParams), plt.get_fignums()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = Made(MAKERS[name], tmp_path_factory.mktemp(name) / "report.html")
        return known[name]

    return get


class Reader(HTMLParser):
    """Collects the tags, and the rows of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data


FIGURES = {
    "factors": ["Graph", "Learning curves", "Importance weights", "Posteriors over each other",
                "All answers", "Traces", "Ranks", "Pairs", "Energy"],
    "schools": ["Graph", "Learning curves", "Importance weights", "Posteriors over each other",
                "All answers", "Traces", "Ranks", "Pairs", "Energy", "LOO-PIT", "LOO k̂"],
    "images": ["Graph", "Learning curves", "Importance weights", "Posteriors over each other",
               "All answers", "Images"],
    "mixture": ["Graph", "Learning curves", "Importance weights", "Responsibilities"],
}  # fmt: skip
FIGURES["regression"] = FIGURES["schools"]
# One chain has no ranks among others, and one number no pairs.
FIGURES["counts"] = [title for title in FIGURES["schools"] if title not in ("Ranks", "Pairs")]


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_is_there_and_none_failed(made, name):
    text = made(name).text
    shown = [attrs["alt"] for tag, attrs in Reader(text).tags if tag == "img"]
    assert shown == FIGURES[name], re.findall("This figure failed[^<]*", text)
    assert "failed" not in text


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_whole_and_self_contained(made, name):
    reader = Reader(made(name).text)
    assert reader.open == []
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "iframe", "object"} & set(tags)
    for _, attrs in reader.tags:
        assert attrs.get("href", "#").startswith("#")
        assert attrs.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attrs
    assert "url(" not in made(name).text
    assert "@import" not in made(name).text
    targets = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
    assert {a["href"][1:] for tag, a in reader.tags if tag == "a"} <= targets


@pytest.mark.parametrize("name", MAKERS)
def test_pictures_decode_and_are_not_empty(made, name):
    for tag, attrs in Reader(made(name).text).tags:
        if tag == "img":
            blob = base64.b64decode(attrs["src"].partition(",")[2], validate=True)
            with Image.open(io.BytesIO(blob)) as image:
                image.load()
                assert image.format == "PNG"
                assert min(image.size) > 60
                assert len(image.convert("L").getcolors()) > 10  # something is drawn


@pytest.mark.parametrize("name", MAKERS)
def test_the_table_is_the_tables(made, name):
    table, rows = made(name).table, Reader(made(name).text).tables[0]
    head, *body = table.cells()
    assert rows[0] == head[:-1]
    numbers = [row for row in rows[1:] if len(row) == len(head) - 1]
    assert [row[1:] for row in numbers] == [cells[1:-1] for cells in body]
    assert [row[0].removesuffix("reference") for row in numbers] == [cells[0] for cells in body]
    worries = "".join(row[0] for row in rows[1:] if len(row) == 1)
    assert worries == "".join(worry for row in table.rows for worry in row.worries)


def test_the_reference_is_named_or_said_to_be_missing(made):
    assert "Reference: <strong>exact</strong>" in made("factors").text
    assert "No healthy reference" in made("images").text


def test_settings_and_versions(made):
    made = made("factors")
    settings = Reader(made.text).tables[-1]
    assert settings[0] == ["setting", *made.table.answers]
    rows = {row[0]: dict(zip(settings[0][1:], row[1:], strict=True)) for row in settings[1:]}
    assert rows["seed"] == {
        "full": "0",
        "mean <field>": "0",
        "IWAE": "7",
        "NUTS": "0",
        "exact": "—",
    }
    assert rows["method"]["IWAE"] == "iwae(num_particles=4)"
    assert rows["num_warmup"]["NUTS"] == "60"
    assert rows["draws compared"]["NUTS"] == "2 × 60"
    for package in ("pplvm", "torch", "pyro-ppl", "arviz-plots", "numpy", "python", "platform"):
        assert f"{package} {report_facts.versions()[package]}" in html.unescape(made.text)


def test_the_story_is_told(made):
    text = html.unescape(made("schools").text)
    tables = Reader(made("schools").text).tables
    assert "<h1>schools: 2 answers compared</h1>" in text
    assert ["theta", "deterministic", "(8,)", "school 8", "—"] in tables[1]
    assert ["SVI", "tau", "AutoNormal", "pathwise"] in tables[2]
    assert 'pyro.deterministic("theta", mu + tau * z)' in text
    assert "<h1>FactorAnalysis: 5 answers compared</h1>" in made("factors").text
    assert "mean &lt;field&gt;" in made("factors").text


@pytest.mark.parametrize("name", MAKERS)
def test_it_leaves_nothing_behind(made, name):
    before, after = made(name).states
    assert before == after
    assert [file.name for file in made(name).path.parent.iterdir()] == ["report.html"]


# ---- the file ----


@pytest.mark.parametrize("where", ["a directory", "below a file"])
def test_unwritable_path(made, tmp_path, where):
    (tmp_path / "file").write_text("")
    path = tmp_path if where == "a directory" else tmp_path / "file" / "report.html"
    with pytest.raises(ValueError, match=rf"cannot write '{re.escape(str(path))}'") as caught:
        made("mixture").table.report(path)
    assert str(caught.value).count("\n") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]


def test_a_crash_leaves_the_old_report(made, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(report_facts, "versions", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made("mixture").table.report(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_that_fails_leaves_a_sentence(made, tmp_path, monkeypatch):
    def broken(found: plots_mixtures.Mixture) -> None:
        plt.figure()
        raise RuntimeError("no ink\nand no paper")

    monkeypatch.setattr(plots_mixtures, "responsibilities", broken)
    text = made("mixture").table.report(tmp_path / "new" / "report.html").read_text()
    assert "This figure failed: RuntimeError: no ink</p>" in text
    shown = [attrs["alt"] for tag, attrs in Reader(text).tags if tag == "img"]
    assert shown == [title for title in FIGURES["mixture"] if title != "Responsibilities"]
    assert plt.get_fignums() == []


# ---- figures ----


def test_scalars_come_from_every_site_and_hold_the_worst(made):
    table = made("schools").table
    chosen = plots_posteriors.scalars(table)
    assert len(chosen) == 6
    assert {s.site for s in chosen} == {"mu", "tau", "z"}
    worst = pplvm.diagnostics.mixing(table.answers["NUTS"]).rhat_at
    assert worst in map(str, chosen)
    last = chosen[-1]
    assert torch.equal(last.of(table.draws["SVI"]), table.draws["SVI"]["z"][..., *last.index])


def test_learning_curves_show_where_fits_end(made):
    table = made("factors").table
    figure = plots.learning_curves(table)
    low, high = figure.axes[0].get_ylim()
    for name in ("full", "mean <field>", "IWAE"):
        history = table.answers[name].history
        assert low < plots.smoothed(history.bound)[1][-1] < high
    assert low < table["exact"].log_marginal < high
    assert min(table.answers["full"].history.bound) < low  # the first steps are left out
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert [label for label in labels if "(other data)" in label] == [labels[0]]


def test_smoothing_is_a_running_mean():
    steps, means = plots.smoothed([float(i) for i in range(100)])
    assert steps.tolist() == list(range(2, 101))
    assert means.tolist() == [i + 0.5 for i in range(99)]


def test_exact_densities_are_black_and_exact(made):
    table = made("factors").table
    chosen = plots_posteriors.scalars(table)
    ax = plots_posteriors.overlays(table, chosen).axes[0]
    (line,) = [line for line in ax.lines if line.get_color() == "black"]
    x, density = (torch.as_tensor(part) for part in line.get_data())
    exact = table.answers["exact"]
    mean, sd = (part[chosen[0].site][chosen[0].index] for part in (exact.mean, exact.sd))
    torch.testing.assert_close(density, torch.distributions.Normal(mean, sd).log_prob(x).exp())


def test_images_are_found_by_shape_or_by_word(made):
    assert plots_images.images(made("images").table) == ("x", (8, 8))
    assert plots_images.images(made("factors").table) is None
    flat = FactorAnalysis(64, 2)
    flat.image_shape = (8, 8)
    fit = pplvm.fit(flat, LinearGaussian(64, 2), torch.randn(5, 64), num_steps=3)
    table = pplvm.compare({"flat": fit}, num_draws=20, num_particles=20)
    found = plots_images.images(table)
    assert found == ("x", (8, 8))
    assert len(plots_images.gallery(table, found).axes) == 3  # data, reconstructions, samples


# ---- the graph ----


def topics(w: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Gamma(1.0, 1.0))
    with pyro.plate("topics", 4):
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(9)))
    with pyro.plate("data", len(w), dim=-1):
        theta = pyro.sample("theta", dist.Dirichlet(alpha * torch.ones(4)))
        with pyro.plate("words", w.shape[1], dim=-2):
            z = pyro.sample("z", dist.Categorical(theta))
            pyro.sample("w", dist.Categorical(phi[z]), obs=w.T)


def series(x: Tensor) -> None:
    z = torch.zeros(len(x))
    with pyro.plate("data", len(x), dim=-1):
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def abilities(y: Tensor) -> None:
    people, items = pyro.plate("data", len(y), dim=-1), pyro.plate("items", y.shape[1], dim=-2)
    with people:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with items:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=a - b), obs=y.T)


STORIES = {
    "topics": (topics, (torch.zeros(6, 5).long(),)),
    "series": (series, (torch.zeros(6, 20),)),
    "abilities": (abilities, (torch.zeros(6, 4),)),
    "schools": (schools, (torch.zeros(8), torch.ones(8))),
}


def test_arrows_follow_dependencies():
    found, reason = plots_graph.nodes(schools, torch.zeros(8), torch.ones(8))
    assert reason == ""
    assert {name: set(node.parents) for name, node in found.items()} == {
        "mu": set(), "tau": set(), "z": set(), "theta": {"mu", "tau", "z"}, "y": {"theta"},
    }  # fmt: skip
    assert found["theta"].kind == "deterministic"
    assert found["y"].plates == (("school", 8),)


def test_a_run_of_sites_is_one_node():
    found, _ = plots_graph.nodes(series, torch.zeros(6, 20))
    assert {name: (node.label, set(node.parents)) for name, node in found.items()} == {
        "z_0": ("z_0 … z_19", {"z_0"}),
        "x_0": ("x_0 … x_19", {"z_0"}),
    }


@pytest.mark.parametrize("name", STORIES)
def test_boxes_hold_their_nodes_and_no_others(name):
    story, data = STORIES[name]
    found, _ = plots_graph.nodes(story, *data)
    at = plots_graph.layout(found)
    assert at.keys() == found.keys()
    for label, (left, low, right, high) in plots_graph.plate_boxes(found, at):
        for node, (x, y) in at.items():
            inside = left < x < right and low < y < high
            assert inside == (label.split()[0] in dict(found[node].plates)), (label, node)
    plots_graph.graph(found).savefig(io.BytesIO())


@pytest.mark.parametrize("name", STORIES)
def test_nodes_do_not_cover_each_other(name):
    story, data = STORIES[name]
    found, _ = plots_graph.nodes(story, *data)
    places = [(*place, found[node].width) for node, place in plots_graph.layout(found).items()]
    for i, (x, y, width) in enumerate(places):
        for x2, y2, width2 in places[:i]:
            assert abs(y - y2) > 1 or abs(x - x2) > (width + width2) / 2


def test_a_story_that_cannot_be_followed_has_no_arrows(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("provenance is lost")

    monkeypatch.setattr(plots_graph, "get_model_relations", broken)
    found, reason = plots_graph.nodes(schools, torch.zeros(8), torch.ones(8))
    assert reason == "RuntimeError: provenance is lost"
    assert not any(node.parents for node in found.values())
    plots_graph.graph(found).savefig(io.BytesIO())
