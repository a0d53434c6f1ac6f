"""What is said of rationales: numbers against all masks by hand, and the page that shows them."""

import math
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_datasets import one_sentence
from test_rationale import (
    C,
    E,
    H,
    N,
    T,
    V,
    data_of,
    guide_of,
    log_likelihood,
    log_q,
    masks,
    model_of,
    select_logits,
)

from pplvm.diagnostics_rationale import rationale_summary
from pplvm.models.rationale import Classifier
from pplvm.plots_text import rationales_html

# ---- the summary ----


def test_a_summary_is_what_all_masks_say():
    model, guide = model_of(), guide_of()
    y, lengths = torch.tensor([0, 2]), torch.tensor([3, 2])
    x = torch.tensor([[3, 8, 1], [5, 2, 0]])
    S = 4000
    found = rationale_summary(model, guide, y, x, lengths, num_draws=S)
    want, share = torch.zeros(2, C), 0.0
    for n, L in enumerate(lengths):
        words = x[n, :L]
        q = select_logits(guide, words).sigmoid()
        share += q.sum() / lengths.sum()
        torch.testing.assert_close(found.selected[n, :L], q)
        for z in masks(L):
            p = [log_likelihood(model, torch.tensor(c), words, z).exp() for c in range(C)]
            want[n] += log_q(guide, words, z).exp() * torch.stack(p)
    assert (found.selected[1, 2:] == 0).all()
    assert found.share == pytest.approx(share.item())
    torch.testing.assert_close(found.predicted, want, atol=4 * 0.5 / math.sqrt(S), rtol=0)
    assert found.accuracy == ((want.argmax(-1) == y).double().mean())
    assert found.full is None
    torch.rand(3)  # which is of no concern
    again = rationale_summary(model, guide, y, x, lengths, num_draws=S)
    assert torch.equal(again.predicted, found.predicted)
    other = rationale_summary(model, guide, y, x, lengths, num_draws=S, seed=1)
    assert not torch.equal(other.predicted, found.predicted)
    assert "words selected, accuracy" in str(found)


def test_a_majority_is_of_draws_and_not_of_probabilities():
    def model(y, x, lengths):  # three classes: one sure at few draws, one hardly ahead at most
        odds = torch.tensor([[0.45, 0.40, 0.15], [0.0, 0.01, 0.99]])
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.full(x.shape, 0.4)).to_event(1))
            return pyro.sample("y", dist.Categorical(odds[z[..., 0].long()]), obs=y)

    def guide(y, x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(torch.full(x.shape, 0.4)).to_event(1))

    data = torch.tensor([0, 2]), torch.ones(2, 1, dtype=torch.long), torch.ones(2).long()
    found = rationale_summary(model, guide, *data, num_draws=500)
    assert found.predicted.argmax(-1).tolist() == [2, 2]
    assert (found.accuracy, found.majority) == (0.5, 0.5)
    (y, *rest) = data
    found = rationale_summary(model, guide, torch.zeros_like(y), *rest, num_draws=500)
    assert (found.accuracy, found.majority) == (0.0, 1.0)


def test_a_summary_of_another_story_is_refused():
    data = data_of()
    with pytest.raises(ValueError, match=r"and observe 'y', got the sites \['y'\]") as info:
        rationale_summary(Classifier(V, C, E, H), guide_of(), *data)
    one_sentence(info, "Rationale")

    def gaussian(y, x, lengths):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(T), 1.0).to_event(1))
            return pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    with pytest.raises(ValueError, match="site 'y' is Normal") as info:
        rationale_summary(gaussian, guide_of(), *data)
    one_sentence(info)


# ---- the page ----


class Words(HTMLParser):
    """Collects the words of a page, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags, self._inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = "title" in dict(attrs)

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.words.append(data)


def test_a_page_shows_words_as_they_are_and_escapes_them():
    y, x, lengths = data_of()
    found = rationale_summary(model_of(), guide_of(), y, x, lengths, full=Classifier(V, C, E, H))
    tokens = [[f"w{n}{i}" for i in range(L)] for n, L in enumerate(lengths)]
    tokens[0][:3] = ['<script>alert("&")</script>', "</span>", "&amp;"]
    names = ["<b>bad</b>", "fair", "good"]
    telling = torch.zeros(N, T, dtype=torch.bool)
    telling[2, 1] = True
    page = rationales_html(found, tokens, classes=names, telling=telling, title="<i>&</i>")
    shown = Words(page)
    assert shown.words == [word for sentence in tokens for word in sentence]
    assert not {"script", "b", "i", "img", "link"} & set(shown.tags)
    assert "http" not in page
    assert page.count('class="telling"') == 1
    assert page.count("<article>") == N
    assert f"{found.accuracy:.3f}" in page
    assert f"{found.full:.3f}" in page
    assert f"rgba(240,140,0,{0.85 * float(found.selected[1, 0]):.3f})" in page
    q = float(found.selected[1, 0])
    ground = f"rgba(240,140,0,{0.85 * (q - 0.1 * q) / (1 - 0.1 * q):.3f})"
    assert ground in rationales_html(found, tokens, scale=(0.1 * q, 1.0))
    assert rationales_html(found, tokens, num_data=2).count("<article>") == 2


def test_a_page_of_other_words_is_refused():
    y, x, lengths = data_of()
    found = rationale_summary(model_of(), guide_of(), y, x, lengths)
    tokens = [["w"] * L for L in lengths]
    for arguments, options, message in [
        (tokens[:2], {}, "'tokens' has 2 sentences, but the rationales are of 4"),
        ([["w"] * T] * N, {}, "'tokens' has 5 words in row 1, but 'lengths' says 1"),
        (tokens, {"classes": ["bad", "good"]}, "'classes' has 2 names, but there are 3"),
        (tokens, {"scale": (0.5, 0.5)}, r"'scale' should be two rising numbers from 0 to 1"),
        (tokens, {"telling": torch.ones(N, 2)}, r"'telling' has shape \(4, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message) as info:
            rationales_html(found, arguments, **options)
        one_sentence(info)
