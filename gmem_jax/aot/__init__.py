"""Compiling for machines that are not here, and reading what came out."""
