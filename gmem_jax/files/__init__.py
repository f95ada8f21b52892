"""Files of weights: atomic writes, trees on disk, PyTorch's formats."""
