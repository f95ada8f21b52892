"""Exact top-k inner-product kernels and their specification."""
