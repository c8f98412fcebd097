"""A deep-learning course as executable JAX research code."""
