"""A feature encoder that needs no training: random convolutions.

Three fixed convolutions turn a small image into one unit vector, as wide as
DINOv2's feature, that keeps near images near. It stands in for DINOv2 where no
published weights are at hand.
"""

import functools
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Float, Key

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib

# Output channels and stride of each layer.
LAYERS = ((64, 1), (128, 2), (192, 2))
# Of the feature: the last layer's channels, pooled to 2 x 2.
WIDTH = 4 * LAYERS[-1][0]


def name(seed: int) -> str:
  """The name of the encoder that a seed draws."""
  return f"random_conv(seed={seed})"


@flax.struct.dataclass
class RandomConvEncoder:
  """Fixed random convolutions, as one function of images; see `make`.

  Attributes:
    name: Identifies the weights, so that a bank records which encoder made it.
    kernels: One for each of `LAYERS`.
    centre: Mean feature of noise.
  """

  name: str = flax.struct.field(pytree_node=False)
  kernels: Any
  centre: Any
  width = WIDTH

  def __call__(
    self, images: Float[Array, "b H W ch"]
  ) -> tuple[Float[Array, "b d"], Float[Array, "b n z"]]:
    """Encodes images in [-1, 1] whose sides are multiples of 8.

    Returns:
      Unit features [b, 768], and the last layer's [b, H/4 * W/4, 192].

    Raises:
      ValueError: If a side is not a multiple of 8.
    """
    b, height, width, _ = images.shape
    if height % 8 or width % 8:
      raise ValueError(
        "config.encoder.features='random_conv': image sides must be multiples"
        f" of 8, not {height} x {width}"
      )
    x = _convolve(self.kernels, images)
    # Rectified features share a large common part; without it the unit vectors
    # of different images would nearly coincide.
    feature = bank_lib.normalise(_pool(x) - self.centre[None])
    return feature, x.reshape(b, -1, x.shape[-1])


def make(seed: int, channels: int) -> RandomConvEncoder:
  """Draws the weights of an encoder of images with so many channels."""
  kernels, centre = _draw(rngs.key(seed, "encoder"), channels)
  return RandomConvEncoder(name(seed), kernels, centre)


# Jitted, as starting then compiles one program, not one per operation.
@functools.partial(jax.jit, static_argnames="channels")
def _draw(
  key: Key[Array, ""], channels: int
) -> tuple[list[jax.Array], Float[Array, " d"]]:
  """Draws the kernels, and measures their mean feature of noise."""
  *keys, noise = jax.random.split(key, len(LAYERS) + 1)
  widths = [channels, *(width for width, _ in LAYERS)]
  kernels = [
    # He's spread, for rectifiers: activations keep their size.
    jax.random.normal(k, (3, 3, i, o)) * np.sqrt(2 / (9 * i))
    for k, i, o in zip(keys, widths[:-1], widths[1:], strict=True)
  ]
  # Of noise rather than the data: the encoder's name has its seed alone.
  shape = (256, 8, 8, channels)
  noise_images = jax.random.uniform(noise, shape, minval=-1, maxval=1)
  return kernels, _pool(_convolve(kernels, noise_images)).mean(axis=0)


def _convolve(
  kernels: list[jax.Array], images: Float[Array, "b H W ch"]
) -> Float[Array, "b h w z"]:
  """Convolution and rectification, layer by layer."""
  x = images
  for kernel, (_, stride) in zip(kernels, LAYERS, strict=True):
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(stride, stride),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      # A snippet is the same on every device.
      precision=jax.lax.Precision.HIGHEST,
    )
    x = jax.nn.relu(x)
  return x


def _pool(x: Float[Array, "b h w z"]) -> Float[Array, "b d"]:
  """Means over a 2 x 2 grid, side by side."""
  b, h, w, z = x.shape
  grid = x.reshape(b, 2, h // 2, 2, w // 2, z).mean(axis=(2, 4))
  return grid.reshape(b, 4 * z)
