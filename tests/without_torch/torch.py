"""Stands before PyTorch in the processes that tests start; see conftest.py."""

raise ImportError("gmem_jax does without PyTorch")
