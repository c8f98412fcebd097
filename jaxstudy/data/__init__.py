"""Data sets: sources, fetching, TFDS builders."""
