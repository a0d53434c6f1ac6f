"""The page on topics is whole and self-contained, and says what is known of them."""

import base64
import io
import re
from html import escape, unescape

import numpy as np
import pytest
import torch
from gensim.corpora import Dictionary
from gensim.models.coherencemodel import CoherenceModel
from PIL import Image
from scipy.sparse import csr_array
from topic_fakes import WORDS, Known, corpus, known

from pplvm.text.corpus import Corpus
from pplvm.topics import report
from pplvm.topics.coherence import diversity, npmi
from pplvm.topics.overview import overview


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "topics.html"
    model, documents = Known(known().topics[[0, 1, 2, 1]]), corpus()
    report.write(
        model,
        documents,
        path,
        settings={"method": "by hand", "num_topics": 4},
        notes=["3 tokens were left out."],
        title="Topics of <speeches>",
    )
    assert not list(path.parent.glob("*.part"))
    return path.read_text(encoding="utf-8")


def test_the_page_is_self_contained_and_escaped(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page)
    assert "<script" not in page
    assert "Topics of &lt;speeches&gt;" in page
    assert escape("<of the sea & the law>") in page
    assert "<of the sea" not in page


def test_the_page_says_what_is_known(page):
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1])))
    for said in ("Topics 1 and 3 (0.00) are nearly the same", "3 tokens were left out.", "by hand",
                 "By year", "By party", "40 documents", "12 words", "topic diversity"):  # fmt: skip
        assert said in text, said
    assert text.index("nearly the same") < text.index("most probable words")
    assert "sea, ship, sail, port" in text
    assert "This figure failed" not in text


def test_the_pictures_are_not_blank(page):
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 6  # words, map, prevalence, two groups, documents
    for picture in pictures:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert (image < 200).mean() > 0.003


def test_another_vocabulary_is_an_error_and_leaves_no_file(tmp_path):
    few = Corpus(csr_array(np.ones((2, 3), int)), ("a", "b", "c"), ("x", "y"))
    with pytest.raises(ValueError, match="'corpus' has 3 words, but the topics have 12"):
        report.write(known(), few, tmp_path / "topics.html")
    assert list(tmp_path.iterdir()) == []


# ---- numbers ----


def test_coherence_is_that_of_gensim():
    # Documents as windows of gensim's: longer than any document. It smooths by 1e-12.
    topics, counts = known().topics, corpus().counts
    texts = [np.repeat(WORDS, row).tolist() for row in counts.toarray()]
    words = [[WORDS[w] for w in row] for row in topics.topk(4).indices.tolist()]
    dictionary = Dictionary([WORDS])
    peer = CoherenceModel(
        topics=words, texts=texts, dictionary=dictionary, coherence="c_npmi", window_size=1000,
        topn=4, processes=1,
    ).get_coherence_per_topic()  # fmt: skip
    ours = npmi(topics, counts, 4)
    assert len(set(ours.tolist())) == 3
    np.testing.assert_allclose(ours, peer, atol=1e-6)


def test_coherence_of_words_that_always_or_never_meet():
    counts = csr_array([[1, 2, 0, 1], [0, 0, 3, 1], [1, 1, 0, 1], [0, 0, 1, 1]])
    topics = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0, 0, 0.5]])
    assert npmi(topics, counts, 2).tolist() == [1.0, -1.0, 0.0]
    assert npmi(topics[:, :1], counts[:, :1], 1).isnan().all()


def test_diversity_counts_different_words():
    topics = known().topics
    assert diversity(topics, 4) == 1.0
    assert diversity(topics[[0, 1, 1]], 4) == pytest.approx(2 / 3)


def test_an_overview_counts():
    found = overview(known(), corpus())
    assert found.num_documents == 40
    assert found.num_tokens == corpus().counts.sum()
    assert float(found.prevalence.sum()) == pytest.approx(1)
    assert float(found.shares.sum()) == pytest.approx(1)
