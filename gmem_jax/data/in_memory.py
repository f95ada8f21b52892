"""What training needs of a set of images; and small sets, encoded in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from gmem_jax.bank import bank as bank_lib
from gmem_jax.data import batching, pipeline, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes

# Images that the encoders see at a time.
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What training needs of a set of images.

  Attributes:
    records: The examples; image i's memory is row i of the bank.
    bank: The features of the images, one a row.
    info: Where the bank comes from.
    stats: Statistics that normalise the latents.
    latent_shape: h, w, c.
    token_shape: n, d of the projection's targets, or None without them.
  """

  records: pipeline.Records
  bank: bank_lib.MemoryBank
  info: bank_lib.BankInfo
  stats: protocols.LatentStats
  latent_shape: tuple[int, int, int]
  token_shape: tuple[int, int] | None


def prepare(
  images: sources.Images,
  tokenizer: protocols.Tokenizer,
  encoder: protocols.FeatureEncoder,
) -> Prepared:
  """Encodes images; all of them, so that records and bank rows stay aligned."""
  parts = batching.in_batches(
    lambda pixels: _encode(tokenizer, encoder, pixels), images.pixels, BATCH
  )
  latents, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
  bank = bank_lib.MemoryBank(rows=jnp.asarray(rows))
  return Prepared(
    records=pipeline.InMemoryRecords(
      {
        "latent": latents,
        "row": np.arange(len(images), dtype=np.int32),
        "label": images.labels,
      }
    ),
    bank=bank,
    info=bank_lib.make_info(
      bank,
      encoder=encoder.name,
      source=images.name,
      made_on=processes.hardware_line(),
    ),
    stats=protocols.latent_stats(jnp.asarray(latents)),
    latent_shape=latents.shape[1:],
    # Digits are trained without a projection loss, so tokens are not kept.
    token_shape=None,
  )


@jax.jit
def _encode(
  tokenizer: protocols.Tokenizer,
  encoder: protocols.FeatureEncoder,
  pixels: UInt8[Array, "b H W ch"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b d"]]:
  """The latents and features of images."""
  floats = protocols.to_float(pixels)
  return tokenizer.encode(floats), encoder(floats)[0]
