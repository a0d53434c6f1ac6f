"""Sections of a report about texts: numbers against those by hand, and every text escaped."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_report import Reader
from torch import Tensor, nn

import pplvm
from pplvm import plots_factors, plots_rationales
from pplvm.cli_job import Job
from pplvm.datasets import small_corpus, small_reviews
from pplvm.diagnostics_rationale import rationale_summary
from pplvm.guides.document_model import DocumentModelGuide
from pplvm.guides.rationale import RationaleGuide
from pplvm.models.document_model import DocumentModel
from pplvm.models.rationale import Rationale
from pplvm.objectives import reweighted_wake_sleep
from pplvm.table import Table

NASTY = "<script>alert('&')</script>"
V, K, C = 8, 3, 2


def fitted(model: nn.Module, guide: nn.Module, *data: Tensor, seed: int = 0) -> pplvm.Fit:
    objective = partial(reweighted_wake_sleep, num_particles=4)
    options = {"num_steps": 5, "compile": "off", "seed": seed}
    return pplvm.fit(model, guide, *data, objective=objective, **options)


def compared(fits: dict[str, pplvm.Fit]) -> Table:
    return pplvm.compare(fits, num_draws=200, num_particles=30)


def table_of_reviews(known: bool = True) -> Table:
    y, lengths = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 1, 5, 4])
    x = torch.randint(1, V, (4, 5))
    model = Rationale(V, C, 4, 4)
    if known:
        model.vocabulary, model.classes = ["", NASTY, *"abcdef"], ["<b>bad</b>", "good"]
    guides = {"a <b>": RationaleGuide(V, 4, 4), "other": RationaleGuide(V, 4, 4)}
    fits = {name: fitted(model, guide, y, x, lengths) for name, guide in guides.items()}
    return compared(fits)


def table_of_documents(known: bool = True) -> Table:
    model = DocumentModel(V, K)
    with torch.no_grad():
        model.words.weight.mul_(8.0)
    if known:
        model.vocabulary = [NASTY, *"bcdefgh"]
    x = torch.poisson(torch.full((30, V), 3.0))
    guide = DocumentModelGuide(V, K)
    with torch.no_grad():
        guide.encoder[-1].bias.fill_(2.0)  # on in most documents
    return compared({f"seed {s}": fitted(model, guide, x, seed=s) for s in range(2)})


MAKERS = {"rationales": table_of_reviews, "factors": table_of_documents}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("key", MAKERS)
def test_the_section_is_there_and_escaped(key, known, tmp_path):
    text = MAKERS[key](known).report(tmp_path / "r.html").read_text()
    reader = Reader(text)
    assert reader.open == []
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "b"} & set(tags)
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section"] == [
        "comparison", "story", "learning", key, "provenance",
    ]  # fmt: skip
    assert f'<a href="#{key}">' in text
    assert "failed" not in text
    escaped = "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"
    assert (escaped in text) == known
    assert ("attribute <code>vocabulary</code>" in text) != known
    assert bool(re.search(r"#\d\b", text.partition(f'id="{key}"')[2])) != known
    assert tags.count("article") == {"rationales": 4, "factors": K}[key]


def test_rationales_are_those_of_every_fit():
    table = table_of_reviews()
    y, x, lengths = table.data
    found = plots_rationales.rationales(table)
    assert found.num_data == 4
    for name, fit in table.answers.items():
        want = rationale_summary(fit.model, fit.guide, y, x, lengths)
        assert torch.equal(found.summaries[name].selected, want.selected)
        reader = fit.model.reader
        inside = torch.arange(5) < lengths[:, None]
        best = reader(x, inside, inside).argmax(-1)
        assert found.given_all[name] == (best == y).double().mean()
        for n, sentence in enumerate(found.sentences):
            shown = sentence[name]
            assert [word.text for word in shown.words] == [
                ["", NASTY, *"abcdef"][i] for i in x[n, : lengths[n]]
            ]
            assert shown.gold == ["<b>bad</b>", "good"][y[n]]
            assert [word.q for word in shown.words] == want.selected[n, : lengths[n]].tolist()
    low, high = found.scale
    assert 0 <= low < high <= 1


def log_words(model: DocumentModel, z: Tensor) -> Tensor:
    return (model.words.weight @ z + model.words.bias).log_softmax(-1).detach()


def test_factors_are_in_words():
    table = table_of_documents()
    (x,) = table.data
    found = plots_factors.factors(table)
    model = next(iter(table.answers.values())).model
    q = {name: draws["z"].mean((0, 1)) for name, draws in table.draws.items()}
    mode = (next(iter(q.values())) > 0.5).double()
    assert [factor.index for factor in found.factors] == list(range(K))
    assert sum(len(factor.typical) for factor in found.factors) >= 3
    for k, factor in enumerate(found.factors):
        on, off = (log_words(model, z) for z in (torch.eye(K)[k], torch.zeros(K)))
        for words, p, other in ((factor.likelier, on, off), (factor.less_likely, off, on)):
            terms = p.exp() * (p - other)
            order = [v for v in terms.argsort(descending=True).tolist() if terms[v] > 0]
            assert [word.text for word in words] == [[NASTY, *"bcdefgh"][v] for v in order]
            for v, word in zip(order, words, strict=True):
                assert word.times == pytest.approx((on - off)[v].exp().item())
        assert factor.shares == pytest.approx(
            {name: p[:, k].mean().item() for name, p in q.items()}
        )
        for document in factor.typical:
            z = mode[document.row].clone()
            densities = []
            for state in (1.0, 0.0):
                z[k] = state
                densities.append((x[document.row] * log_words(model, z)).sum())
            assert document.gain == pytest.approx(float(densities[0] - densities[1]))
            assert document.p == pytest.approx(float(next(iter(q.values()))[document.row, k]))
            assert document.p > 0.5
        gains = [document.gain for document in factor.typical]
        assert gains == sorted(gains, reverse=True)


def switches(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(x.new_full((2,), 0.5)).to_event(1))
        at = dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], V), 1.0).to_event(1)
        return pyro.sample("x", at, obs=x)


class SwitchesGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(V, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.linear(x)).to_event(1))


@pytest.mark.parametrize("find", [plots_factors.factors, plots_rationales.rationales])
def test_other_stories_have_no_such_section(find: Callable):
    table = compared({"fit": fitted(switches, SwitchesGuide(), torch.randn(6, V))})
    assert find(table) is None


def test_a_section_that_fails_leaves_a_sentence(monkeypatch, tmp_path: Path):
    def broken(*_: object) -> None:
        raise RuntimeError("no <ink>\nand no paper")

    monkeypatch.setattr(plots_factors, "_typical", broken)
    text = table_of_documents().report(tmp_path / "r.html").read_text()
    assert "This section failed: RuntimeError: no &lt;ink&gt;</p>" in text


def test_the_command_line_knows_the_words_of_its_data():
    model = Job("document-model", None, None, None, False, False, None, 0).model
    assert model.vocabulary == small_corpus().vocabulary
    model = Job("rationale", None, None, None, False, False, None, 0).model
    assert list(model.vocabulary) == small_reviews().vocabulary
    assert model.classes == ("negative", "positive")
    assert not hasattr(Job("vae", None, None, None, False, False, None, 0).model, "vocabulary")
