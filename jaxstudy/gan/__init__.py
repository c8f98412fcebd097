"""Generative adversarial networks: the alternating step, and evaluation."""
