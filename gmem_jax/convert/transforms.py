"""How PyTorch lays weights out, and how we do: invertible transforms.

Letters: O, I output and input features, H W a kernel's side, C channels, P Q a
patch's sides.
"""

from typing import Any

import numpy as np


def _conv_linear_inverse(x: np.ndarray, shape: Any) -> np.ndarray:
  # [P*Q*C, O] tells only the product of the three.
  if shape is None:
    raise ValueError("its PyTorch shape must be given in `shapes`")
  o, c, p, q = shape
  return x.reshape(p, q, c, o).transpose(3, 2, 0, 1)


def _conv_linear(x: np.ndarray) -> np.ndarray:
  o, c, p, q = x.shape
  return x.transpose(2, 3, 1, 0).reshape(p * q * c, o)


# name: (number of axes in PyTorch or None, forward, inverse). The inverse also
# gets the PyTorch shape, or None where the caller does not know it.
TRANSFORMS: dict[str, tuple[int | None, Any, Any]] = {
  "keep": (None, lambda x: x, lambda x, _: x),
  # [out, in] -> [in, out]
  "linear": (2, lambda x: x.T, lambda x, _: x.T),
  # OIHW -> HWIO
  "conv": (
    4,
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x, _: x.transpose(3, 2, 0, 1),
  ),
  # A convolution of stride = kernel size as a Dense layer on patches:
  # [O, C, P, Q] -> [P*Q*C, O], channel fastest.
  "conv_linear": (4, _conv_linear, _conv_linear_inverse),
  # A 1x1 convolution as a Dense layer: [O, I, 1, 1] -> [I, O].
  "conv_1x1": (
    4,
    lambda x: x.reshape(x.shape[:2]).T,
    lambda x, _: x.T[:, :, None, None],
  ),
  # Statistics of each channel: [1, C, 1, 1] -> [C].
  "per_channel": (
    4,
    lambda x: x.reshape(x.shape[1]),
    lambda x, _: x[None, :, None, None],
  ),
}
