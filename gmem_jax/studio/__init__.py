"""A page to browse memories, sample from them, and compare: see `__main__`."""
