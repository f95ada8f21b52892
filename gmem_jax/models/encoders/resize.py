"""Image resampling that agrees with PyTorch's, and with TensorFlow 1's.

Every resampling here is linear and separable: `out = R_h @ image @ R_w^T`, with
one small matrix per axis that depends on the two lengths alone.

All functions take images of any range and a size (height, width) in pixels, and
return float32, not clamped. They raise ValueError if a side is not positive.

Letters: `b` batch, `h w` height and width, `c` channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Why not jax.image.resize: it has neither the cubic kernel with a = -0.75 nor
# TensorFlow 1's corners. It could serve `bilinear` (with antialias=False) and
# `bicubic_antialias`, but computes its weights in float32, which moves unit
# noise by up to 2e-5. Here they are float64, built on the host while tracing.
Images = Float[Array, "b h w c"]
Resized = Float[Array, "b h2 w2 c"]
Size = tuple[int, int]
Kernel = Callable[[np.ndarray], np.ndarray]


def bicubic(images: Images, size: Size) -> Resized:
  """Cubic convolution (a = -0.75) without antialiasing; may overshoot.

  Source: PyTorch's `interpolate(mode="bicubic", align_corners=False)`; Keys,
  "Cubic convolution interpolation for digital image processing", 1981.
  """
  kernel = functools.partial(_cubic, a=-0.75)
  return _resample(images, size, _interpolation, kernel=kernel, reach=2)


def bicubic_offset(images: Images, size: Size, offset: float) -> Resized:
  """As `bicubic`, with the pixel distances of a target larger by `offset`.

  Source: PyTorch's `interpolate(mode="bicubic", scale_factor=…)` for a factor
  of (size + offset) / source, with which DINOv2 resamples its positions.
  """
  kernel = functools.partial(_cubic, a=-0.75)
  return _resample(
    images, size, _interpolation, kernel=kernel, reach=2, offset=offset
  )


def bicubic_antialias(images: Images, size: Size) -> Resized:
  """Cubic filtering (a = -0.5): the kernel widens when the image shrinks.

  Source: PyTorch's `interpolate(mode="bicubic", antialias=True)`.
  """
  kernel = functools.partial(_cubic, a=-0.5)
  return _resample(images, size, _filter, kernel=kernel)


def bilinear(images: Images, size: Size) -> Resized:
  """Linear interpolation between pixel centres, without antialiasing.

  Source: PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
  """
  return _resample(images, size, _interpolation, kernel=_triangle, reach=1)


def bilinear_corner(images: Images, size: Size) -> Resized:
  """Linear interpolation that puts pixel i of the output at i * h / h2.

  Source: TensorFlow 1's `ResizeBilinear(half_pixel_centers=False)`.
  """
  # Moves the image by up to half a pixel against `bilinear`; the TensorFlow
  # graph behind the published ImageNet statistics does so.
  return _resample(
    images, size, _interpolation, kernel=_triangle, reach=1, centre=0.0
  )


def pool_grid(images: Images, side: int) -> Float[Array, "b g g c"]:
  """Means over the cells of a grid of so many rows and columns.

  A cell takes every pixel that it touches, so that neighbouring cells share
  pixels where the grid does not divide the image, which may also be smaller
  than the grid.

  Source: PyTorch's `adaptive_avg_pool2d`.
  """
  return _resample(images, (side, side), _cells)


def _cubic(u: np.ndarray, a: float) -> np.ndarray:
  """Keys' kernel of slope `a` at distance u; zero from distance 2 on."""
  u = np.abs(u)
  near = ((a + 2) * u - (a + 3)) * u * u + 1
  far = a * (((u - 5) * u + 8) * u - 4)
  return np.where(u <= 1, near, np.where(u < 2, far, 0.0))


def _triangle(u: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(u), 0.0)


def _interpolation(
  n: int,
  m: int,
  kernel: Kernel,
  reach: int,
  centre: float = 0.5,
  offset: float = 0.0,
) -> np.ndarray:
  """Matrix [m, n]: row i weighs the 2 * reach pixels around position i."""
  # Reads as many pixels when it shrinks, so it aliases: the published encoders
  # were trained and evaluated with that.
  position = (np.arange(m) + centre) * (n / (m + offset)) - centre
  first = np.floor(position).astype(int) - reach + 1
  pixels = first[:, None] + np.arange(2 * reach)
  matrix = np.zeros((m, n))
  rows = np.arange(m)[:, None]
  # Pixels outside the image are the edge pixel's: their weights add up there.
  np.add.at(
    matrix,
    (rows, np.clip(pixels, 0, n - 1)),
    kernel(position[:, None] - pixels),
  )
  return matrix


def _filter(n: int, m: int, kernel: Kernel) -> np.ndarray:
  """Matrix [m, n]: row i is the stretched kernel, cut at the image border."""
  stretch = max(n / m, 1.0)
  position = (np.arange(m) + 0.5) * (n / m) - 0.5
  matrix = kernel((position[:, None] - np.arange(n)) / stretch)
  # What is cut off is lost, not added to the edge: so the rest is normalised.
  return matrix / matrix.sum(axis=1, keepdims=True)


def _cells(n: int, m: int) -> np.ndarray:
  """Matrix [m, n]: row i is the mean over the pixels that cell i touches."""
  cell, pixel = np.arange(m)[:, None], np.arange(n)
  inside = (pixel < -(-(cell + 1) * n // m)) & (pixel >= cell * n // m)
  return inside / inside.sum(axis=1, keepdims=True)


def _resample(
  images: Images, size: Size, make: Callable[..., np.ndarray], **settings: Any
) -> Resized:
  """Applies the matrices to both axes, in full float32."""
  if min(size) < 1:
    raise ValueError(f"size={size}: both sides must be positive")
  rows, columns = (
    jnp.asarray(make(n, m, **settings), jnp.float32)
    for n, m in zip(images.shape[1:3], size, strict=True)
  )
  # Pixels need more than the bfloat16 or TF32 that matmuls default to.
  highest = jax.lax.Precision.HIGHEST
  images = jnp.einsum(
    "ij,bjwc->biwc", rows, images.astype(jnp.float32), precision=highest
  )
  return jnp.einsum("ij,bhjc->bhic", columns, images, precision=highest)
