"""Texts as counts of words, in memory or on the disk."""

from pplvm.text.corpus import Corpus, read_corpus
from pplvm.text.writer import CorpusWriter

__all__ = ["Corpus", "CorpusWriter", "read_corpus"]
