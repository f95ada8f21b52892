"""Sampling: from weights, a bank and a seed to images."""
