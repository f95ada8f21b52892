r"""Image resampling that agrees with PyTorch's, and with TensorFlow 1's.

Every resampling here is linear and separable: `out = R_h @ image @ R_w^T`, with
one small matrix per axis that depends on the two lengths alone. The matrices
are built in float64 on the host while tracing; the device does two products.

Two kinds of matrix exist. *Interpolation* reads the taps around a position and
repeats the edge pixel outside the image; it aliases when it shrinks, and the
published encoders were trained and evaluated with it. *Filtering* stretches
the kernel by the shrinking factor, drops what lies outside and normalises.
`jax.image.resize` offers only the second, hence this module.

Letters: `b` batch, `h w` height and width, `c` channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Callable[[np.ndarray], np.ndarray]


def bicubic(
  images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
  """Cubic convolution (a = -0.75) without antialiasing; may overshoot.

  Args:
    images: any range.
    size: output height and width in pixels.

  Returns:
    Images of that size, float32, not clamped.

  Raises:
    ValueError: an output side is not positive.

  Source: PyTorch's `interpolate(mode="bicubic", align_corners=False)`; Keys,
  "Cubic convolution interpolation for digital image processing", 1981.
  """
  return _resample(
    images,
    size,
    lambda n, m: _interpolation(n, m, lambda u: _cubic(u, -0.75), reach=2),
  )


def bicubic_antialias(
  images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
  """Cubic filtering (a = -0.5): the kernel widens when the image shrinks.

  Args:
    images: any range.
    size: output height and width in pixels.

  Returns:
    Images of that size, float32, not clamped.

  Raises:
    ValueError: an output side is not positive.

  Source: PyTorch's `interpolate(mode="bicubic", antialias=True)`.
  """
  return _resample(
    images, size, lambda n, m: _filter(n, m, lambda u: _cubic(u, -0.5))
  )


def bilinear(
  images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
  """Linear interpolation between pixel centres, without antialiasing.

  Args:
    images: any range.
    size: output height and width in pixels.

  Returns:
    Images of that size, float32.

  Raises:
    ValueError: an output side is not positive.

  Source: PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
  """
  return _resample(
    images, size, lambda n, m: _interpolation(n, m, _triangle, reach=1)
  )


def bilinear_corner(
  images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
  """Linear interpolation that puts pixel i of the output at i * h / h2.

  The image moves by up to half a pixel against `bilinear`. This is what the
  TensorFlow graph behind the published ImageNet statistics does.

  Args:
    images: any range.
    size: output height and width in pixels.

  Returns:
    Images of that size, float32.

  Raises:
    ValueError: an output side is not positive.

  Source: TensorFlow 1's `ResizeBilinear(half_pixel_centers=False)`.
  """
  return _resample(
    images,
    size,
    lambda n, m: _interpolation(n, m, _triangle, reach=1, centre=0.0),
  )


def _cubic(u: np.ndarray, a: float) -> np.ndarray:
  """Keys' kernel of slope `a` at distance u; zero from distance 2 on."""
  u = np.abs(u)
  near = ((a + 2) * u - (a + 3)) * u * u + 1
  far = a * (((u - 5) * u + 8) * u - 4)
  return np.where(u <= 1, near, np.where(u < 2, far, 0.0))


def _triangle(u: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(u), 0.0)


def _interpolation(
  n: int, m: int, kernel: Kernel, reach: int, centre: float = 0.5
) -> np.ndarray:
  """Matrix [m, n]: row i weighs the 2 * reach taps around position i."""
  position = (np.arange(m) + centre) * (n / m) - centre
  first = np.floor(position).astype(int) - reach + 1
  taps = first[:, None] + np.arange(2 * reach)
  matrix = np.zeros((m, n))
  rows = np.arange(m)[:, None]
  # Taps outside the image read the edge pixel: their weights add up there.
  np.add.at(
    matrix,
    (rows, np.clip(taps, 0, n - 1)),
    kernel(position[:, None] - taps),
  )
  return matrix


def _filter(n: int, m: int, kernel: Kernel) -> np.ndarray:
  """Matrix [m, n]: row i is the stretched kernel, cut at the image border."""
  stretch = max(n / m, 1.0)
  position = (np.arange(m) + 0.5) * (n / m) - 0.5
  matrix = kernel((position[:, None] - np.arange(n)) / stretch)
  return matrix / matrix.sum(axis=1, keepdims=True)


def _resample(
  images: Float[Array, "b h w c"],
  size: tuple[int, int],
  matrix: Callable[[int, int], np.ndarray],
) -> Float[Array, "b h2 w2 c"]:
  """Applies `matrix(length, new length)` to both axes, in full float32."""
  if min(size) < 1:
    raise ValueError(f"size is {size}; both sides must be positive.")
  rows = jnp.asarray(matrix(images.shape[1], size[0]), jnp.float32)
  columns = jnp.asarray(matrix(images.shape[2], size[1]), jnp.float32)
  # Pixels need more than the bfloat16 or TF32 that products default to.
  highest = jax.lax.Precision.HIGHEST
  images = jnp.einsum(
    "ij,bjwc->biwc", rows, images.astype(jnp.float32), precision=highest
  )
  return jnp.einsum("ij,bhjc->bhic", columns, images, precision=highest)
