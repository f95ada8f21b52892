"""Tables of published parameter names, one module per family of networks."""
