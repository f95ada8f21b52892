"""Images to the numbers that papers report."""
