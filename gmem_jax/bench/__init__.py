"""Benchmarks: each prints a table with peer, ratio and limit."""
