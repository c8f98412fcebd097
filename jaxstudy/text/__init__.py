"""Texts: vocabularies, corpora, n-grams and decoding."""
