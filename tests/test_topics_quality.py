"""Perplexity equals a hand computation, coherence gensim's and brute force."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gensim.corpora import Dictionary
from gensim.models import CoherenceModel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from zoo_topics import corpus

import pplvm
from pplvm.guides.lda import LDAGuide
from pplvm.guides.neural_lda import NeuralLDAGuide
from pplvm.models.lda import LDA
from pplvm.models.neural_lda import NeuralLDA
from pplvm.text import document_halves
from pplvm.topics.coherence import c_v, diversity, npmi, top_words
from pplvm.topics.perplexity import bound_perplexity, completion_perplexity
from pplvm.topics.variational_em import variational_em


@dataclass(frozen=True)
class Known:
    """Proportions that do not look: the first topic for documents with its word, else both."""

    topics: torch.Tensor

    def proportions(self, counts):
        seen = torch.tensor(counts.toarray(), dtype=torch.float64)[:, :1] > 0
        return torch.where(seen, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])).double()

    def word_probs(self, theta):
        return theta @ self.topics


TOPICS = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], dtype=torch.float64)


def test_completion_is_what_a_hand_computes():
    observed = csr_array([[1, 0, 0], [0, 2, 0], [0, 0, 0], [1, 1, 1]])
    held_out = csr_array([[0, 2, 0], [1, 0, 1], [0, 0, 3], [0, 0, 0]])
    log_p = 2 * math.log(0.25) + math.log(0.3125) + math.log(0.5) + 3 * math.log(0.5)
    found = completion_perplexity(Known(TOPICS), observed, held_out)
    assert found == pytest.approx(math.exp(-log_p / 7), rel=1e-12)


def test_order_of_documents_and_words_that_never_come_change_nothing():
    counts = csr_array(corpus(60)[0].numpy())
    observed, held_out = document_halves(counts, seed=1)
    found = variational_em(counts, 4)
    expected = completion_perplexity(found, observed, held_out)
    order = np.random.default_rng(0).permutation(60)
    again = completion_perplexity(found, observed[order], held_out[order])
    assert again == pytest.approx(expected, rel=1e-3)  # documents end together, by the block


def test_perplexity_is_between_that_of_the_truth_and_that_of_one_topic():
    counts = csr_array(corpus(400)[0].numpy())
    observed, held_out = document_halves(counts, seed=1)

    def perplexity(num_topics):
        found = variational_em(counts, num_topics, batch_size=None, num_epochs=60)
        return completion_perplexity(found, observed, held_out)

    one, right = perplexity(1), perplexity(5)
    share = np.asarray(counts.sum(0)) + 0.1
    p = share / share.sum()
    log_p = (np.asarray(held_out.sum(0)) * np.log(p)).sum() / held_out.sum()
    assert one == pytest.approx(math.exp(-log_p), rel=1e-4)  # that of a unigram, smoothed by eta
    assert right < 0.8 * one


def test_the_bound_is_tight_where_proportions_hardly_matter():
    """Topics that are all the same: log p(x) is that of one multinomial, whatever theta is."""
    model, guide = NeuralLDA(6, 2), NeuralLDAGuide(6, 2, (4,))
    with torch.no_grad():
        model.W[:] = torch.arange(6.0) / 10  # of which the weights are ten times as much
    x = csr_array(np.random.default_rng(0).integers(0, 4, (20, 6)))
    fit = pplvm.fit(model, guide, x, num_steps=1, lr=1e-12, compile="off")
    p = torch.arange(6.0).softmax(0).numpy()
    log_p = (x.toarray() * np.log(p)).sum() / x.sum()
    found = bound_perplexity(fit, x, num_particles=4000, batch_size=7)
    # The weights have the divergence of the guide from the prior alone: 4000 of them, 2 %.
    assert found == pytest.approx(math.exp(-log_p), rel=0.02)


def test_what_cannot_be_asked_is_refused():
    counts = csr_array(corpus(30)[0].numpy())
    found = variational_em(counts, 2)
    empty = csr_array(counts.shape)
    with pytest.raises(ValueError, match="'held_out' has no tokens"):
        completion_perplexity(found, counts, empty)
    with pytest.raises(ValueError, match="30 documents, 'held_out' 29"):
        completion_perplexity(found, counts, counts[1:])
    with pytest.raises(ValueError, match="but the topics have"):
        completion_perplexity(found, counts[:, 1:], counts[:, 1:])
    V = counts.shape[1]
    fit = pplvm.fit(LDA(V, 2), LDAGuide(V, 2, (8,)), counts, num_steps=1, compile="off")
    with pytest.raises(ValueError, match="use completion_perplexity"):
        bound_perplexity(fit, counts)


# ---- coherence ----


def _brute_force(topics, x, num_words):
    found = []
    for row in topics:
        words = row.argsort(descending=True)[:num_words].tolist()
        each = []
        for v, w in itertools.combinations(words, 2):
            both = np.mean((x[:, v] > 0) & (x[:, w] > 0))
            p, q = np.mean(x[:, v] > 0), np.mean(x[:, w] > 0)
            if both == 0:
                each.append(-1.0)
            else:
                each.append(0.0 if both == 1 else np.log(both / p / q) / -np.log(both))
        found.append(np.mean(each))
    return np.array(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_npmi_is_what_pairs_one_by_one_give(seed, num_words):
    random = np.random.default_rng(seed)
    x = random.integers(0, 2, (12, 7)) * random.integers(0, 3, (12, 7))
    topics = torch.tensor(random.dirichlet(np.ones(7), 3))
    found = npmi(topics, csr_array(x), num_words)
    np.testing.assert_allclose(found, _brute_force(topics, x, num_words), atol=1e-12)


def _gensims(topics, x, measure):
    names = [[str(w) for w in row.argsort(descending=True)[:10].tolist()] for row in topics]
    texts = [[str(w) for w in np.flatnonzero(row)] + ["rest"] for row in x]
    model = CoherenceModel(
        topics=names, texts=texts, dictionary=Dictionary(texts), coherence=measure,
        window_size=1000, topn=10, processes=1,
    )  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.array(model.get_coherence_per_topic())


def test_npmi_is_gensims_of_whole_documents():
    x, topics, _ = corpus(200)
    x = x.numpy()
    found = npmi(topics, csr_array(x))
    met = found > -0.2  # where no pair never meets: gensim adds 1e-12 to probabilities of 0
    assert met.any()
    expected = _gensims(topics, x, "c_npmi")
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_c_v_is_gensims_of_whole_documents():
    x, topics, _ = corpus(200, eta=1.0)  # every word is somewhere
    x = x.numpy()
    x[3] = 0  # an empty document is one in which no words meet
    found = c_v(topics, csr_array(x))
    np.testing.assert_allclose(found, _gensims(topics, x, "c_v"), rtol=1e-9)
    shuffled = topics[:, torch.randperm(topics.shape[1])]
    assert c_v(shuffled, csr_array(x)).mean() < found.mean()


def test_diversity_counts_different_words():
    topics = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.5, 0.1, 0.0, 0.4]])
    assert diversity(topics, 2) == 3 / 4
    assert diversity(topics, 1) == 1 / 2
    assert diversity(topics) == 1 / 2  # all words: no more than there are


def test_top_words_have_their_probabilities():
    found = top_words(TOPICS, ("a", "b", "c"), 2)
    assert found[1][0] == ("c", 0.75)
    assert found[0][0][0] == "a"
