"""Documents that are made up: what they say they are, the same at each call."""

import numpy as np
import torch
from scipy.stats import chisquare

import pplvm
from pplvm.catalog import STORIES
from pplvm.datasets import named, small_corpus, small_topics
from pplvm.datasets_documents import ALPHA, SUBJECTS, WORDS_EACH


def test_small_corpus():
    corpus = small_corpus()
    assert corpus.counts.shape == (200, 80)
    total = corpus.counts.sum(1)
    assert total.min() >= 20
    assert total.max() <= 60
    assert len(set(corpus.vocabulary)) == 80
    assert len(corpus.titles) == 200
    assert 0.3 < np.mean([str(0) in title for title in corpus.titles]) < 0.5


def test_subjects_of_the_small_corpus_are_in_its_documents():
    """Each subject's words are much more frequent where it is present."""
    corpus = small_corpus()
    counts = corpus.counts.toarray()
    share = counts / counts.sum(1, keepdims=True)
    for subject in range(SUBJECTS):
        present = np.array([str(subject) in title for title in corpus.titles])
        own = share[:, subject * WORDS_EACH : (subject + 1) * WORDS_EACH].sum(1)
        assert own[present].mean() > 3 * own[~present].mean()


def test_small_corpus_never_changes():
    corpus = small_corpus()
    for x in (small_corpus().counts, named("small-corpus")[0]):
        assert (x != corpus.counts).nnz == 0
    assert corpus.vocabulary[:3] == ("ben", "ber", "bes")
    assert corpus.titles[:4] == ("1+2+3", "none", "1+3", "0+3")
    assert corpus.counts[[0]].indices[:4].tolist() == [0, 10, 12, 13]


def test_small_topics():
    corpus, topics, proportions = small_topics()
    assert corpus.counts.shape == (500, 100)
    assert (topics.shape, proportions.shape) == ((5, 100), (500, 5))
    assert topics.dtype == proportions.dtype == torch.float32
    for p in (topics, proportions):
        assert p.min() >= 0
        torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=p.dtype))
    total = corpus.counts.sum(1)
    assert (total.min(), total.max()) == (50, 100)
    assert corpus.groups["topic"].tolist() == proportions.argmax(1).tolist()
    assert corpus.titles[0] == f"mostly {corpus.groups['topic'][0]}"
    (x,) = named("small-topics")
    assert (x != corpus.counts).nnz == 0


def test_small_topics_are_a_sample_of_lda():
    """Words by a test of χ², proportions by their variance (5 standard errors: p < 1e-6)."""
    corpus, topics, proportions = small_topics()
    total = corpus.counts.sum(1)
    p = (proportions @ topics).double().numpy()
    expected = (total[:, None] * p).sum(0)
    often = expected > 5
    found = corpus.counts.sum(0)
    pairs = [np.append(x[often], x[~often].sum()) for x in (found, expected)]
    assert chisquare(pairs[0], pairs[1] * pairs[0].sum() / pairs[1].sum()).pvalue > 1e-4
    mean = 1 / 5
    variance = mean * (1 - mean) / (5 * ALPHA + 1)  # of a coordinate of the Dirichlet
    squares = (proportions.double() - mean) ** 2
    error = squares.std() / squares.numel() ** 0.5
    assert abs(squares.mean() - variance) < 5 * error
    assert abs(proportions.double().mean(0) - mean).max() < 5 * (variance / 500) ** 0.5


def test_stories_of_documents_take_sparse_rows():
    story = STORIES["document-model"]
    data = story.takes(named("small-corpus"))
    assert data[0].format == "csr"
    torch.manual_seed(0)
    model = story.model(data, 3)
    guide = story.guides["mean-embedding"](data, 3, model)
    objective = pplvm.objectives.reweighted_wake_sleep
    options = {"objective": objective, "num_steps": 3, "compile": "off", "progress": False}
    sparse = pplvm.fit(model, guide, *data, **options)
    dense = pplvm.fit(model, guide, torch.as_tensor(data[0].toarray()).double(), **options)
    assert sparse.history.bound == dense.history.bound
