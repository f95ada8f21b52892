"""The config: every section and key, and the checks between them."""
