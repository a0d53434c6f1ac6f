"""Topics for others to show: pyLDAvis.

References:
    | LDAvis: A Method for Visualizing and Interpreting Topics (Sievert & Shirley, 2014)
    | https://pyldavis.readthedocs.io
"""

__all__ = ["to_pyldavis"]

from typing import Any

from pplvm.text.corpus import Corpus
from pplvm.topics.documents import lengths, word_totals
from pplvm.topics.overview import check_words
from pplvm.topics.types import TopicModel


def to_pyldavis(model: TopicModel, corpus: Corpus) -> Any:
    """Returns topics as pyLDAvis has them prepared, for ``pyLDAvis.display`` or ``save_html``.

    The topics keep their order but are numbered from 1 there; documents without words, and words
    that never occur, are left out, since pyLDAvis divides by their numbers.

    Raises:
        ValueError: if pyLDAvis is not installed, or model and corpus have different words.
    """
    check_words(model, corpus)
    try:
        import pyLDAvis
    except ImportError as error:
        raise ValueError(
            "'to_pyldavis' needs the package pyLDAvis, which is not installed: install it with "
            "`pip install pyLDAvis`."
        ) from error
    theta = model.proportions(corpus.counts).detach().cpu().double().numpy()
    topics = model.topics.detach().cpu().double().numpy()
    n, frequency = lengths(corpus.counts).numpy(), word_totals(corpus.counts).numpy()
    told, used = n > 0, frequency > 0
    topics = topics[:, used]
    return pyLDAvis.prepare(
        topics / topics.sum(axis=1, keepdims=True),
        theta[told] / theta[told].sum(axis=1, keepdims=True),
        n[told],
        [word for word, kept in zip(corpus.vocabulary, used, strict=True) if kept],
        frequency[used],
        sort_topics=False,
        n_jobs=1,
    )
