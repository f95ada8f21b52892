"""A batch, as it comes from storage, to what the training step computes on.

Storage holds bytes as small as they may be; here, on the device and inside the
compiled step, they become float32: latents drawn from their posterior, tokens
multiplied by their scales or computed from pixels.

Shapes: b batch, h w c latent, n tokens of width d, H W ch image.
"""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.models.encoders import protocols

Batch = Mapping[str, Array]


def fields(
  available: Collection[str], *, conditioned: bool, project: bool
) -> tuple[str, ...]:
  """The fields of records that the training step reads.

  Args:
    available: The fields that the records have.
    conditioned: Whether the network takes a snippet.
    project: Whether the loss has a projection.

  Returns:
    Their names; the others stay on the host.
  """
  wanted = ["latent", "mean", "logvar", "row"]
  if conditioned:
    wanted += ["feature"]
  if project:
    wanted += ["tokens", "token_scales", "pixels", "mirrored"]
  return tuple(name for name in wanted if name in available)


def latents(batch: Batch, *, seed: int, step: Array) -> Float[Array, "b h w c"]:
  """Latents, not normalised.

  Args:
    batch: Holds `latent`, or `mean` and `logvar` of the tokenizer's posterior,
      each [b h w c].
    seed: Seed of the streams.
    step: The training step; with the seed it addresses the draw.

  Returns:
    float32. A posterior is drawn from anew at every step.
  """
  if "latent" in batch:
    return batch["latent"].astype(jnp.float32)
  mean, logvar = (batch[n].astype(jnp.float32) for n in ("mean", "logvar"))
  noise = jax.random.normal(rngs.key(seed, "train/posterior", step), mean.shape)
  return mean + jnp.exp(logvar / 2) * noise


def snippets(batch: Batch, bank: bank_lib.MemoryBank) -> Float[Array, "b d"]:
  """Memory snippets of the examples.

  Args:
    batch: Holds `feature` [b d], the raw feature of the very view of the image
      (mirrored or not); or only `row` [b], the image's row of the bank.
    bank: The bank.

  Returns:
    Unit vectors, float32.

  Source: the published data set, whose mirrored examples have features of
  their own; the bank holds those of the images as they are.
  """
  if "feature" in batch:
    return bank_lib.normalise(batch["feature"])
  return jnp.asarray(bank_lib.snippets(bank, batch["row"]))


def tokens(
  batch: Batch, encoder: protocols.FeatureEncoder | None
) -> Float[Array, "b n d"] | None:
  """Targets of the projection loss.

  Args:
    batch: Holds `tokens` [b n d], of int8 with `token_scales` [b n]; or
      `pixels` [b H W ch] and `mirrored` [b]; or neither.
    encoder: The frozen network that makes tokens of pixels.

  Returns:
    float32, or None where the batch has no targets.

  Raises:
    ValueError: If the batch has pixels and there is no encoder.
  """
  if "tokens" in batch:
    found = batch["tokens"].astype(jnp.float32)
    if "token_scales" in batch:
      found = found * batch["token_scales"][..., None]
    return found
  if "pixels" not in batch:
    return None
  if encoder is None:
    raise ValueError("the batch holds pixels: the step needs the encoder")
  images = mirror(batch["pixels"], batch["mirrored"])
  return jax.lax.stop_gradient(encoder(protocols.to_float(images))[1])


def mirror(
  images: UInt8[Array, "b H W ch"], mirrored: Bool[Array, " b"]
) -> UInt8[Array, "b H W ch"]:
  """Mirrors some of the images, left to right.

  Args:
    images: Pixels.
    mirrored: Which.
  """
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
