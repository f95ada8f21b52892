"""Reads PyTorch's files without PyTorch, and runs no code of theirs."""
