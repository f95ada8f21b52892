"""Prepared data as images: those that it holds, or what its latents decode to.

Shapes: n images, H W ch pixels, h w c latent.
"""

import concurrent.futures
import pathlib
from typing import Any

import jax
import numpy as np

from gmem_jax.data import load_encoders, schema as schema_lib, store
from gmem_jax.files import weights
from gmem_jax.models.encoders import protocols, vae

_READERS = 8
_BATCH = 16  # Latents that are decoded at a time.


class Prepared:
  """The images of prepared data, as they are, not mirrored.

  Attributes:
    info: What identifies them; says whether they are decoded, and by what.
    count: How many.
    shape: H, W, ch.
    collective: Whether reading computes: see `sources.Source`.
  """

  def __init__(self, path: pathlib.Path, decode: str | None = None):
    """Opens the data.

    Args:
      path: Its directory.
      decode: Converted weights of the tokenizer that made its latents, to take
        their decodings for the images; None to take the images, which data of
        `config.data.tokens="pixels"` or of the identity tokenizer hold.

    Raises:
      ValueError: If it is not whole, holds no images and is not to be decoded,
        or is of another tokenizer.
    """
    opened = store.open_store(path)
    schema = opened.schema
    self._records = store.PreparedRecords(opened)
    self._field = "mean" if schema.latents == "posterior" else "latent"
    self._decode = None
    if decode is not None:
      self._decode = _decoder(_tokenizer(schema, decode))
    elif schema.tokens == "pixels":
      self._field = "pixels"
    elif schema.tokenizer["name"] == "identity":
      self._decode = _decoder(protocols.IdentityTokenizer())
    else:
      raise ValueError(
        f"{path} holds latents, no images. Name the images that it was"
        f" prepared from ({schema.source['name']}): python -m gmem_jax.evaluate"
        f" stats IMAGES OUT.npz --crop={schema.image_shape[0]}. Or compare with"
        " what the latents decode to, which hides the tokenizer's own loss:"
        f" python -m gmem_jax.evaluate stats {path} OUT.npz --decode=TOKENIZER"
      )
    self.count, self.shape = len(self._records), schema.image_shape
    self.collective = self._decode is not None
    self.info: dict[str, Any] = {
      "prepared": str(path),
      "source": dict(schema.source),
      "images": self.count,
      "schema": schema_lib.digest(schema),
      "bank": opened.info.digest,
      "decoded_by": dict(schema.tokenizer) if self._decode else None,
    }

  def read(self, numbers: np.ndarray) -> np.ndarray:
    """Reads images.

    Args:
      numbers: Their rows of the bank.

    Raises:
      ValueError: Naming a damaged file.
    """
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
      found = np.stack(list(pool.map(self._read_one, numbers.tolist())))
    if self._decode is None:
      return found
    parts = []
    for start in range(0, len(found), _BATCH):
      part = found[start : start + _BATCH].astype(np.float32)
      filled = np.resize(part, (_BATCH, *part.shape[1:]))
      parts.append(np.asarray(self._decode(filled))[: len(part)])
    return np.concatenate(parts)

  def _read_one(self, number: int) -> np.ndarray:
    flips = schema_lib.Flips(latent=False, tokens=False, feature=False)
    return self._records.read(number, flips)[self._field]


def _tokenizer(schema: schema_lib.Schema, path: str) -> protocols.Tokenizer:
  """The tokenizer that made the latents of a schema."""
  try:
    metadata = weights.read_metadata(path)
    if metadata["kind"] != "vae":
      raise ValueError(f"it is a {metadata['kind']}, not a vae")
    theirs, made = weights.origin(metadata), dict(schema.tokenizer)
    name = made.pop("name")
    if theirs != made:
      raise ValueError(f"it is {theirs}, the latents are of {made}")
    params, _ = weights.load_converted(path)
  except (ValueError, OSError) as error:
    raise ValueError(f"--decode={path!r}: {error}") from None
  network = vae.AutoencoderKL(**load_encoders.hashable(metadata["model"]))
  return vae.VAETokenizer(name=name, network=network, params=params)


def _decoder(tokenizer: protocols.Tokenizer):
  return jax.jit(lambda found: protocols.to_uint8(tokenizer.decode(found)))
