"""The flow: paths, losses, guidance and samplers."""
