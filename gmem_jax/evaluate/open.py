"""Opens images by path: a folder, an .npz, or prepared data.

Shapes: n images, H W ch pixels, h w c latent.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from gmem_jax.data import load_encoders, schema as schema_lib, store
from gmem_jax.evaluate import sources
from gmem_jax.files import weights
from gmem_jax.models.encoders import protocols

_BATCH = 16  # Latents decoded at a time: bounds the decoder's activations.
# Prepared images as they are, not mirrored.
_AS_STORED = schema_lib.Flips(latent=False, tokens=False, feature=False)


def open_images(
  path: pathlib.Path,
  *,
  channels: int = 3,
  crop: int | None = None,
  decode: str | None = None,
) -> sources.ImageSource:
  """Opens images.

  `channels` and `crop` are of `sources.ImageFolder`, `decode` of
  `PreparedImages`.

  Raises:
    ValueError: If there are no images, or an option does not fit.
  """
  if not path.exists():
    raise ValueError(f"{path} does not exist")
  is_prepared = (path / schema_lib.FILE).exists()
  if decode is not None and not is_prepared:
    raise ValueError(f"{path}: only prepared data can be decoded")
  if path.is_dir() and not is_prepared:
    return sources.ImageFolder(path, channels=channels, crop=crop)
  if crop:
    raise ValueError(f"{path}: only the images of a folder can be cropped")
  if is_prepared:
    return PreparedImages(path, decode)
  if path.suffix != ".npz":
    raise ValueError(f"{path} is neither a folder of images nor an .npz file")
  return sources.Npz(path)


class PreparedImages:
  """Prepared data as images: those it has, or those its latents decode to.

  See `sources.ImageSource`; image i is row i of the bank.
  """

  def __init__(self, path: pathlib.Path, decode: str | None = None):
    """Opens the data.

    `decode` names converted weights of the tokenizer that made its latents, to
    decode them. Without, only data with `config.data.tokens="pixels"` or of the
    identity tokenizer has images.

    Raises:
      ValueError: If it is incomplete, has no images and is not to be decoded,
        or is of another tokenizer.
    """
    opened = store.open_store(path)
    schema = opened.schema
    self._records = store.PreparedRecords(opened)
    self._field = "mean" if schema.latents == "posterior" else "latent"
    tokenizer = None
    if decode is not None:
      tokenizer = _tokenizer(schema, decode)
    elif schema.tokens == "pixels":
      self._field = "pixels"
    elif schema.tokenizer["name"] == "identity":
      tokenizer = protocols.IdentityTokenizer()
    else:
      raise ValueError(
        f"{path} holds latents, no images. Name the images that it was"
        f" prepared from ({schema.source['name']}): python -m gmem_jax.evaluate"
        f" stats IMAGES OUT.npz --crop={schema.image_shape[0]}. Or compare with"
        " what the latents decode to, which hides the tokenizer's own loss:"
        f" python -m gmem_jax.evaluate stats {path} OUT.npz --decode=TOKENIZER"
      )
    self._decode = None
    if tokenizer:
      decoder = tokenizer.decode
      self._decode = jax.jit(lambda x: protocols.to_uint8(decoder(x)))
    self.count, self.shape = len(self._records), schema.image_shape
    # Decoding computes, which hosts of a mesh do together.
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
    """Reads or decodes images.

    Raises:
      ValueError: Naming a damaged file.
    """
    stored = np.stack(sources.read_all(self._read_one, numbers))
    if self._decode is None:
      return stored
    decode = self._decode
    (pixels,) = sources.in_batches(
      lambda part: [decode(part)], stored.astype(np.float32), _BATCH
    )
    return pixels

  def _read_one(self, number: int) -> np.ndarray:
    return self._records.read(number, _AS_STORED)[self._field]


def _tokenizer(schema: schema_lib.Schema, path: str) -> protocols.Tokenizer:
  """The tokenizer that made a schema's latents, of converted weights."""
  stored = dict(schema.tokenizer)
  name = stored.pop("name")
  kind = load_encoders.tokenizer_kind(name)
  try:
    params, metadata = weights.load_kind(path, (kind,))
    given = weights.origin(metadata)
    # Another autoencoder may decode them, too, to images that are slightly
    # wrong: nobody would notice that in a reference.
    if given != stored:
      raise ValueError(f"it is {given}, the latents are of {stored}")
  except (ValueError, OSError) as error:
    raise ValueError(f"--decode={path!r}: {error}") from None
  return load_encoders.make_tokenizer(name, params, metadata)
