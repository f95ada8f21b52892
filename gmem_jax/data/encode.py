"""Images through the run's encoders, on all devices of this process.

Shapes: b batch, v views (the image, and its mirror image), H W ch image, h w c
latent, n tokens of width d.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int8, Int32, UInt8

from gmem_jax import rngs
from gmem_jax.config import sections
from gmem_jax.data import batching
from gmem_jax.models.encoders import protocols, vae


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def encode(
  tokenizer: protocols.Tokenizer,
  encoder: protocols.FeatureEncoder,
  pixels: UInt8[Array, "b H W ch"],
  numbers: Int32[Array, " b"],
  latents: sections.Latents,
  tokens: sections.Tokens,
  mirrored: bool,
  seed: int,
) -> dict[str, Array]:
  """Computes what records keep of images.

  Args:
    tokenizer: Gives the latents; a pytree.
    encoder: Gives features and tokens; a pytree.
    pixels: As they are in the source: neither mirrored nor scaled yet.
    numbers: Their positions in the source, which address the draws.
    latents: As in `schema.Schema`, like the rest.
    tokens: As there.
    mirrored: Whether to encode the mirror images, too.
    seed: With the numbers, addresses the draws.

  Returns:
    The fields of a record except pixels and label, each [b v …]; and
    `row` [b d], float32, the features of the images as they are.
  """
  floats = protocols.to_float(pixels)
  if mirrored:
    floats = jnp.concatenate([floats, floats[:, :, ::-1]])
  views = len(floats) // len(pixels)
  features, patches = encoder(floats)
  fields: dict[str, Array] = {"feature": features.astype(jnp.bfloat16)}
  if tokens == "bf16":
    fields["tokens"] = patches.astype(jnp.bfloat16)
  elif tokens == "int8":
    fields["tokens"], fields["token_scales"] = quantise(patches)
  if isinstance(tokenizer, vae.VAETokenizer):
    posterior = tokenizer.posterior(floats)
    if latents == "posterior":
      fields["mean"] = posterior.mean.astype(jnp.bfloat16)
      fields["logvar"] = posterior.logvar.astype(jnp.bfloat16)
    else:
      # One key an image and view: no draw depends on the batch.
      ids = (2 * numbers[None] + jnp.arange(views)[:, None]).reshape(-1)
      keys = rngs.keys(seed, "prepare/posterior", ids)
      shape = posterior.mean.shape[1:]
      noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
      fields["latent"] = posterior.sample(noise=noise).astype(jnp.bfloat16)
  else:
    fields["latent"] = tokenizer.encode(floats).astype(jnp.bfloat16)
  by_image = {
    name: value.reshape(views, -1, *value.shape[1:]).swapaxes(0, 1)
    for name, value in fields.items()
  }
  # The bank is float32, as one that is built from image files.
  return by_image | {"row": features[: len(pixels)].astype(jnp.float32)}


def quantise(
  tokens: Float[Array, "b n d"],
) -> tuple[Int8[Array, "b n d"], Float[Array, "b n"]]:
  """Rounds tokens to 8 bits, with a scale for each.

  Returns:
    (rounded, scales): a token is about rounded * scale, to half a scale in
    every element.
  """
  tokens = tokens.astype(jnp.float32)
  scales = jnp.max(jnp.abs(tokens), axis=-1) / 127
  # A token of zeros has the scale 0; it stays zero instead of becoming NaN.
  rounded = jnp.round(tokens / jnp.maximum(scales, 1e-30)[..., None])
  return rounded.astype(jnp.int8), scales


class Encoders:
  """Tokenizer and feature encoder, on all devices of this process."""

  def __init__(
    self,
    tokenizer: protocols.Tokenizer,
    encoder: protocols.FeatureEncoder,
    *,
    latents: sections.Latents,
    tokens: sections.Tokens,
    mirrored: bool,
    seed: int,
    device_batch: int,
  ):
    """Puts the weights on the devices.

    The rest is as for `encode`; each device takes `device_batch` images.
    """
    # A mesh of this process alone: each prepares shards of its own, at its own
    # pace, and never waits for another.
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._split = NamedSharding(mesh, PartitionSpec("data"))
    self._networks: Any = jax.device_put((tokenizer, encoder), everywhere)
    self._settings = latents, tokens, mirrored, seed
    self.encoder_name = encoder.name
    self.batch_size = device_batch * len(devices)

  def shapes(self, image_shape: tuple[int, int, int]) -> Mapping[str, Any]:
    """Shapes and types of what an image [H W ch] becomes; computes nothing."""
    pixels = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    numbers = jax.ShapeDtypeStruct((1,), np.int32)
    fields = jax.eval_shape(
      lambda networks, *images: encode(*networks, *images, *self._settings),
      self._networks, pixels, numbers,
    )  # fmt: skip
    return {
      name: jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
      for name, value in fields.items()
    }

  def token_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """The n, d of the feature encoder's tokens for an image [H W ch]."""
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    _, tokens = jax.eval_shape(lambda e, x: e(x), self._networks[1], images)
    return tokens.shape[1:]

  def __call__(
    self, pixels: np.ndarray, numbers: np.ndarray
  ) -> Mapping[str, jax.Array]:
    """Starts to encode a batch; see `encode`.

    Args:
      pixels: uint8 [b H W ch], b at most `batch_size`.
      numbers: int32 [b].

    Returns:
      Arrays [batch_size …], of which the first b count.
    """
    inputs = [
      jax.device_put(batching.fill(array, self.batch_size), self._split)
      for array in (pixels, numbers)
    ]
    return encode(*self._networks, *inputs, *self._settings)
