"""Texts as counts of words, in memory or on the disk."""

from pplvm.text.corpus import Corpus

__all__ = ["Corpus"]
