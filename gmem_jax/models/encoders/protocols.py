"""What a tokenizer and a feature encoder offer, and how pixels are counted.

Letters: `b` batch, `H W` image, `h w c` latent, `n` tokens, `d` feature width.
"""

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Images = Float[Array, "b H W ch"]
Latents = Float[Array, "b h w c"]


@runtime_checkable
class Tokenizer(Protocol):
  """Images to latents and back; holds its own weights."""

  name: str

  def encode(self, images: Images) -> Latents:
    """Images in [-1, 1] to latents."""
    ...

  def decode(self, latents: Latents) -> Images:
    """Latents to images, nominally in [-1, 1], not clipped."""
    ...


@flax.struct.dataclass
class IdentityTokenizer:
  """Latents are pixels, for images small enough to model directly."""

  name: str = flax.struct.field(pytree_node=False, default="identity")

  def encode(self, images: Images) -> Images:
    """Returns the images."""
    return images

  def decode(self, latents: Images) -> Images:
    """Returns the latents."""
    return latents


@runtime_checkable
class FeatureEncoder(Protocol):
  """Images to the memory snippet and the targets of the projection loss."""

  name: str

  @property
  def width(self) -> int:
    """Width of the feature."""
    ...

  def __call__(
    self, images: Images
  ) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
    """Images in [-1, 1] to (one feature, one feature per patch)."""
    ...


@flax.struct.dataclass
class LatentStats:
  """Per-channel statistics that normalise latents.

  Attributes:
    mean: float32 [c], mean of each latent channel over the training data.
    std: float32 [c], standard deviation of each.
  """

  # Any, not arrays: JAX also fills pytrees with shapes and shardings.
  mean: Any
  std: Any


def latent_stats(latents: Latents) -> LatentStats:
  """Measures mean and (n - 1) standard deviation per channel."""
  return LatentStats(
    mean=jnp.mean(latents, axis=(0, 1, 2)),
    std=jnp.std(latents, axis=(0, 1, 2), ddof=1),
  )


def normalise_latents(latents: Latents, stats: LatentStats) -> Latents:
  """Brings the tokenizer's latents to the scale that the flow works on."""
  return (latents - stats.mean[None, None, None]) / stats.std[None, None, None]


def denormalise_latents(latents: Latents, stats: LatentStats) -> Latents:
  """Undoes `normalise_latents`, before decoding."""
  return latents * stats.std[None, None, None] + stats.mean[None, None, None]


def to_float(images: UInt8[Array, "b H W ch"]) -> Images:
  """Bytes to [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Images, offset: float = 128.0) -> UInt8[Array, "b H W ch"]:
  """[-1, 1] to bytes: 127.5 x + offset, clipped and truncated.

  Args:
    images: Pixels; values outside [-1, 1] are clipped.
    offset: 128, with which truncation rounds to the nearest level; the first
      release took 127.5.

  Source: the published evaluations.
  """
  # With 127.5 truncation rounds down: images are half a level darker.
  return jnp.clip(127.5 * images + offset, 0.0, 255.0).astype(jnp.uint8)


def image_shape(
  tokenizer: Tokenizer, latent_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
  """H, W, ch of the images that a tokenizer decodes from latents h, w, c."""
  latents = jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32)
  return jax.eval_shape(tokenizer.decode, latents).shape[1:]
