"""Texts as counts of words, in memory or on the disk."""

from pplvm.text.bag_of_words import bag_of_words
from pplvm.text.corpus import Corpus, read_corpus
from pplvm.text.halves import document_halves
from pplvm.text.writer import CorpusWriter

__all__ = ["Corpus", "CorpusWriter", "bag_of_words", "document_halves", "read_corpus"]
