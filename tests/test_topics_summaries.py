"""What topics found is said right: in numbers, in warnings, and in figures."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.spatial.distance import jensenshannon
from topic_fakes import WORDS, Known, corpus, known

from pplvm.topics import plots, summaries

# ---- numbers ----


def test_prevalence_is_the_share_of_tokens():
    theta, n = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([30.0, 10.0])
    assert torch.equal(summaries.prevalence(theta, n), torch.tensor([25 / 40, 15 / 40]))


def test_prevalence_by_group_weighs_by_tokens_and_names_come_in_their_order():
    random = np.random.default_rng(1)
    theta = torch.from_numpy(random.dirichlet(np.ones(3), 20))
    n = torch.from_numpy(random.integers(1, 50, 20).astype(float))
    n[4] = 0.0  # says nothing, and is not to be counted
    group = np.array(["tory", "whig", "tory", "free", "lone"] * 4)
    group[group == "lone"] = ["lone", "whig", "free", "tory"]  # the first has no tokens
    found = summaries.prevalence_by(theta, n, group)
    assert list(found.values) == ["tory", "whig", "free"]
    for g, name in enumerate(found.values):
        rows = (group == name) & (n.numpy() > 0)
        w, t = n.numpy()[rows], theta.numpy()[rows]
        mean = np.average(t, axis=0, weights=w)
        error = (
            np.sqrt(len(w) / (len(w) - 1) * (w[:, None] ** 2 * (t - mean) ** 2).sum(0)) / w.sum()
        )
        np.testing.assert_allclose(found.mean[g], mean)
        np.testing.assert_allclose(found.error[g], error)


def test_standard_errors_of_documents_of_one_length_are_the_textbook_ones():
    theta = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 9))
    found = summaries.prevalence_by(theta, torch.full((9,), 7.0), np.r_[np.zeros(8), 1.0])
    torch.testing.assert_close(found.error[0], theta[:8].std(0) / 8**0.5)
    assert found.error[1].isnan().all()  # of a single document
    torch.testing.assert_close(found.mean[1], theta[8])


def test_standard_errors_are_those_of_samples():
    # 2,000 samples of 200 documents: their standard deviation has a relative error of 1.6 %, and the
    # linearisation one of the order 1/200; 8 % is more than four of these (false alarms < 1e-4).
    random = np.random.default_rng(0)
    theta = torch.from_numpy(random.dirichlet(np.ones(2), 400_000))
    n = torch.from_numpy(random.poisson(20, 400_000) + 1.0)
    found = summaries.prevalence_by(theta, n, np.repeat(np.arange(2000), 200))
    spread = found.mean[:, 0].std()
    assert found.error[:, 0].mean() == pytest.approx(float(spread), rel=0.08)


def test_periods_are_round():
    years = np.arange(1790, 2021)
    starts, length = summaries.periods(years)
    assert length == 5
    assert set(starts) == set(range(1790, 2021, 5))
    assert summaries.periods(years[:50])[1] == 0.0


def test_nearest_documents_are_so_by_hellinger():
    theta = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(4), 30))
    rows, distances = summaries.nearest_documents(theta, theta[7], 5)
    brute = (theta.sqrt() - theta[7].sqrt()).pow(2).sum(1).div(2).sqrt()
    assert rows[0] == 7
    assert distances[0] < 1e-7
    torch.testing.assert_close(distances, brute.sort().values[:5], atol=1e-7, rtol=0)
    many, _ = summaries.nearest_documents(theta, theta[[7, 3]], 5)
    assert many.shape == (2, 5)
    assert torch.equal(many[0], rows)
    apart = summaries.nearest_documents(torch.eye(2), torch.tensor([0.0, 1.0]), 2)[1]
    assert apart.tolist() == [0.0, 1.0]


def test_relevance_is_that_of_sievert_and_shirley():
    topics, shares = known().topics, summaries.word_shares(corpus().counts)
    for weight in (0.0, 0.3, 1.0):
        expected = weight * topics.log() + (1 - weight) * (topics / shares).log()
        torch.testing.assert_close(summaries.relevance(topics, shares, weight), expected)
    shares[3] = 0.0
    assert (summaries.relevance(topics, shares)[:, 3] == -torch.inf).all()
    with pytest.raises(ValueError, match="'weight' should be from 0 to 1, got 2"):
        summaries.relevance(topics, shares, 2)


def test_typical_documents_have_words():
    theta, n = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), torch.tensor([0.0, 5.0, 5.0])
    assert summaries.typical_documents(theta, n, 2).tolist() == [[1, 2], [2, 1]]
    with pytest.raises(ValueError, match="'theta' has shape"):
        summaries.typical_documents(theta, n[:2])


# ---- warnings ----


def warned(topics: torch.Tensor, theta: torch.Tensor | None = None) -> list[str]:
    counts = corpus().counts
    theta = Known(topics).proportions(counts) if theta is None else theta
    return summaries.warnings(topics, theta, counts)


def test_good_topics_are_no_worry():
    assert warned(known().topics) == []


def test_what_looks_wrong_is_said():
    topics, counts = known().topics, corpus().counts
    twice = warned(topics[[0, 1, 2, 1]])
    assert len(twice) == 1
    assert "Topics 1 and 3 (0.00) are nearly the same" in twice[0]
    theta = Known(topics).proportions(counts)
    theta = torch.cat([theta[:, :2], 0.999 * theta[:, 2:], 0.001 * theta[:, 2:]], 1)
    fourth = torch.cat([topics, topics.roll(2, 1)[:1]])
    assert warned(fourth, theta) == [
        "Topic 3 is hardly used: less than 2.5 % of the tokens each, a tenth of an equal share."
    ]
    unigram = torch.stack([topics[0], summaries.word_shares(counts), torch.full((12,), 1 / 12)])
    said = " ".join(warned(unigram))
    assert "Topic 1 is nearly the words of the whole corpus" in said
    assert "Topic 2 is nearly uniform" in said or "Topics 1, 2 are nearly" in said
    (collapse,) = warned(topics, torch.full((40, 3), 1 / 3))
    assert "the topics collapsed" in collapse
    empty = csr_array(np.vstack([counts.toarray(), np.zeros((2, 12), int)]))
    (said,) = summaries.warnings(topics, Known(topics).proportions(empty), empty)
    assert said.startswith("2 documents have no word of the vocabulary")


def test_one_topic_is_no_worry():
    shares = summaries.word_shares(corpus().counts)
    assert warned(shares[None], torch.ones(40, 1)) == []


# ---- figures ----


def test_the_map_keeps_distances_where_it_can():
    topics = known().topics  # three points lie in a plane
    places = plots.positions(topics)
    for i in range(3):
        for j in range(3):
            apart = jensenshannon(topics[i].numpy(), topics[j].numpy())
            assert np.linalg.norm(places[i] - places[j]) == pytest.approx(apart, abs=1e-9)


def test_the_map_of_the_same_topics_is_a_point():
    assert np.abs(plots.positions(known().topics[[0, 0, 0]])).max() < 1e-6


@pytest.mark.parametrize("K", [1, 2, 20, pytest.param(50, marks=pytest.mark.slow)])
def test_figures_are_of_all_topics(K):
    topics = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(12, 0.3), K))
    shares = torch.full((12,), 1 / 12)
    figure = plots.topic_bars(topics, shares, WORDS, range(K))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:K] == [f"topic {k}" for k in range(K)]
    assert not any(titles[K:])
    figure = plots.topic_map(topics, torch.full((K,), 1 / K), ["sea"] * K)
    assert {str(k) for k in range(K)} <= {text.get_text() for text in figure.axes[0].texts}


def test_texts_of_the_map_do_not_cover_each_other():
    topics = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(12, 5.0), 50))
    figure = plots.topic_map(topics, torch.full((50,), 1 / 50), ["some long words"] * 50)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts[50:]]
    assert boxes
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_many_groups_by_name_are_cut_and_numbers_are_a_line():
    theta = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 60))
    n, names = torch.full((60,), 5.0), np.array([f"speaker {i:02d}" for i in range(60)])
    named = summaries.prevalence_by(theta, n, names)
    figure = plots.group_prevalence(named, ["sea"] * 3, range(3), "speaker")
    assert len(figure.axes[0].get_yticks()) == plots.MOST_GROUPS
    timely = summaries.prevalence_by(theta, n, np.arange(60))
    figure = plots.group_prevalence(timely, ["sea"] * 3, range(3), "year")
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), 100 * theta[:, 1])


@pytest.mark.parametrize("group", [np.arange(60) % 9, np.array(["left", "right"] * 30)])
def test_panels_of_groups_do_not_cover_each_other(group):
    theta = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(12), 60))
    found = summaries.prevalence_by(theta, torch.full((60,), 5.0), group)
    figure = plots.group_prevalence(found, ["some long words"] * 12, range(12), "side")
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.axison]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
