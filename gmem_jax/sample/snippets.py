"""Snippets from outside of the bank, and between two snippets."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib, interpolate
from gmem_jax.config import sections
from gmem_jax.convert import packaged
from gmem_jax.data import decode_image, encode_files, load_encoders
from gmem_jax.files import shown
from gmem_jax.models.encoders import protocols
from gmem_jax.sample import host_bank, sheet

# A row of the bank, an image file, or an image: Pillow's, or uint8 [h w 3] or
# [h w 1].
Memory = int | np.integer | str | os.PathLike | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True)
class Snippet:
  """One memory snippet.

  Attributes:
    label: Its name for people.
    feature: [d].
    info: Its origin; JSON.
    picture: Its image.
  """

  label: str
  feature: np.ndarray
  info: dict[str, Any]
  picture: sheet.Picture


@dataclasses.dataclass(frozen=True)
class Snippets:
  """Snippets to sample from.

  Attributes:
    name: Names the images' directory.
    features: [k, d]; image i is made from number i // `per_row`.
    lines: Of the contact sheet.
    info: All that the features depend on; JSON.
  """

  name: str
  features: np.ndarray
  lines: Sequence[sheet.Line]
  info: dict[str, Any]


def load_encoder(
  config: sections.Config, channels: int
) -> protocols.FeatureEncoder:
  """What makes snippets of image files; its weights may come with a package.

  Raises:
    ValueError: See `load_encoders.load_features`.
    ModuleNotFoundError: If the package is not installed.
  """
  packaged.write_missing(config)
  return load_encoders.load_features(config, channels)


class Reader:
  """Reads snippets that the user names."""

  def __init__(
    self,
    config: sections.Config,
    *,
    channels: int,
    width: int,
    bank: Callable[[], host_bank.HostBank],
    encoder: Callable[[], protocols.FeatureEncoder] | None = None,
  ):
    """Keeps the parts; the feature encoder is loaded at its first use.

    Args:
      config: Its encoder must be the one that made the bank.
      channels: 1 for a network of grey images, else 3.
      width: Width of the features that the network takes.
      bank: Called if a row is named, as there may be no bank.
      encoder: Gives the feature encoder; None to load it here.
    """
    self._config, self._channels, self._width = config, channels, width
    self._bank = bank
    # Hundreds of megabytes, so only if it is needed.
    self._encoder = encoder or functools.cache(
      lambda: load_encoder(config, channels)
    )

  def memory(self, memory: object, key: str) -> Snippet:
    """Any memory; see `Memory`, `snippet` and `array`.

    Raises:
      ValueError: If it is none, or cannot be read.
    """
    if isinstance(memory, Image.Image):
      memory = np.asarray(memory.convert("RGB"))
    if isinstance(memory, np.ndarray):
      return self.array(memory, key)
    if isinstance(memory, str | os.PathLike):
      return self.snippet(os.fspath(memory), key)
    if isinstance(memory, int | np.integer):
      return self.snippet(str(memory), key)
    raise ValueError(
      f"{key}={shown.value(memory)}: a memory is a row (a whole number), an"
      " image file, or an image"
    )

  def snippet(self, text: str, key: str) -> Snippet:
    """A bank row if `text` is a number, else the feature of an image file."""
    if not text.isdecimal():
      return self.image(text, key)
    row, bank = int(text), self._bank()
    bank_lib.check_rows(np.array([row]), len(bank.rows), key)
    return Snippet(
      f"row {row}", bank.rows[row], {"row": row}, bank.picture(row)
    )

  def images(self, images: Sequence[Memory], key: str) -> list[Snippet]:
    """The features of images, of files, and of all image files of folders.

    Raises:
      ValueError: If one is not there, cannot be read, or does not fit.
    """
    paths = [each for each in images if isinstance(each, str | os.PathLike)]
    if len(paths) < len(images):
      return [self.memory(each, key) for each in images]
    try:
      _, files = encode_files.list_images([os.fspath(each) for each in paths])
    except ValueError as error:
      raise ValueError(f"{key}={error}") from None
    return [self.image(str(file), key) for file in files]

  def image(self, file: str, key: str) -> Snippet:
    """The feature of an image file.

    Raises:
      ValueError: If it cannot be read, or its feature does not fit.
    """
    path = pathlib.Path(file)
    return self._encoded(path, path.name, path.read_bytes, key)

  def array(self, pixels: np.ndarray, key: str) -> Snippet:
    """The feature of an image in memory, as of a file that holds it.

    Raises:
      ValueError: If it is no uint8 image [h w 3] or [h w 1], or see `image`.
    """
    shape = pixels.shape
    if len(shape) != 3 or shape[2] not in (1, 3) or pixels.dtype != np.uint8:
      raise ValueError(
        f"{key}: {pixels.dtype} of shape {shape} is no image: it must be uint8"
        " [h w 3], or [h w 1] for a grey one"
      )
    file = io.BytesIO()
    grey = shape[2] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG")
    return self._encoded(file, "image", pixels.tobytes, key)

  def _encoded(
    self,
    file: pathlib.Path | io.BytesIO,
    name: str,
    contents: Callable[[], bytes],
    key: str,
  ) -> Snippet:
    """The feature of an image; see `image`."""
    reading = self._config.sample.reading
    published = reading == "published"
    where = file if isinstance(file, pathlib.Path) else name
    crop = decode_image.bilinear_crop if published else decode_image.center_crop
    load = functools.partial(
      decode_image.load, file, crop=crop, upright=not published
    )
    try:
      pixels = load(self._channels, self._config.encoder.image_size)
    except decode_image.BadImageError as error:
      raise ValueError(
        f"{key}: cannot read {where} as an image: {error}"
      ) from None
    floats = protocols.to_float(jnp.asarray(pixels)[None])
    if published:
      # The published manipulation scales twice, and so shows the encoder a
      # washed-out image.
      floats = (floats + 1) / 2
    encoder = self._encoder()
    feature = np.asarray(encoder(floats)[0])[0]
    if feature.size != self._width:
      raise ValueError(
        f"config.encoder.features={self._config.encoder.features!r} makes"
        f" features {feature.size} wide, the network takes {self._width}"
      )
    info = {
      "image": name,
      # Another file of the same name makes other images.
      "sha256": hashlib.sha256(contents()).hexdigest(),
      "encoder": encoder.name,
      "reading": reading,
    }
    return Snippet(name, feature, info, functools.partial(load, 3))


def alone(snippets: Sequence[Snippet], per_row: int) -> Snippets:
  """Each of one or more snippets by itself, for `per_row` samples."""
  return Snippets(
    "image_" + some([_stem(snippet) for snippet in snippets], 1),
    np.stack([snippet.feature for snippet in snippets]),
    [
      sheet.Line(
        range(i * per_row, (i + 1) * per_row), snippet.label, snippet.picture
      )
      for i, snippet in enumerate(snippets)
    ],
    {"memories": [snippet.info for snippet in snippets]},
  )


def given(features: np.ndarray, per_row: int) -> Snippets:
  """Snippets that are arrays [k d], each by itself; see `alone`."""
  digest = hashlib.sha256(np.asarray(features, np.float32).tobytes())
  return Snippets(
    f"snippets_{len(features)}",
    features,
    [
      sheet.Line(range(i * per_row, (i + 1) * per_row), f"snippet {i}")
      for i in range(len(features))
    ],
    {"snippets": len(features), "sha256": digest.hexdigest()},
  )


def between(
  config: sections.SampleConfig, pairs: Sequence[Sequence[Snippet]]
) -> Snippets:
  """`sample.points` snippets between each two, by `sample.interpolation`."""
  method = config.interpolation
  # Only "mask" draws: which elements come from which end. The same for every
  # pair, which so does not depend on those before it.
  key = rngs.key(config.seed, "sample/mask")
  function = jax.jit(interpolate.between, static_argnums=(0, 3))
  features, lines = [], []
  for pair in pairs:
    # Between unit vectors, or the longer end would dominate the middle.
    a, b = (bank_lib.normalise(jnp.asarray(end.feature)) for end in pair)
    features.append(np.asarray(function(method, a, b, config.points, key)))
  points, per_row = len(features[0]), config.per_row
  for i, (a, b) in enumerate(pairs):
    # [per_row points]: from one memory to the other along a line of the sheet.
    numbers = np.arange(points * per_row).reshape(points, per_row).T
    for line in (numbers + i * numbers.size).tolist():
      label = f"{a.label}\nto {b.label}"
      lines.append(sheet.Line(line, label, a.picture, b.picture))
  names = [f"{_stem(a)}_to_{_stem(b)}" for a, b in pairs]
  return Snippets(
    f"{method}_{some(names, 1)}",
    np.concatenate(features),
    lines,
    {
      "memories": [end.info for pair in pairs for end in pair],
      "interpolation": method,
      "points": points,
    },
  )


def mixture(
  snippets: Sequence[Snippet], weights: Sequence[float | int], per_row: int
) -> Snippets:
  """One snippet between several: their weighted mean; see `alone`.

  Raises:
    ValueError: If the weights do not fit.
  """
  with np.errstate(over="ignore"):  # What is too large is refused below.
    shares = np.asarray(weights, np.float32)
  if shares.shape != (len(snippets),) or not len(snippets):
    raise ValueError(
      f"weights={list(weights)}: one for each of {len(snippets)} memories"
    )
  if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.any()):
    raise ValueError(
      f"weights={list(weights)}: must be finite, at least 0, and one of them"
      " more"
    )
  vectors = jnp.stack([jnp.asarray(each.feature) for each in snippets])
  feature = np.asarray(interpolate.mixture(vectors, jnp.asarray(shares)))
  shares = (shares / shares.sum()).tolist()
  label = "\n".join(
    f"{share:.0%} {each.label}"
    for share, each in zip(shares, snippets, strict=True)
  )
  heaviest = snippets[int(np.argmax(shares))]
  return Snippets(
    "mix_" + some([_stem(snippet) for snippet in snippets], 2),
    feature[None],
    [sheet.Line(range(per_row), label, heaviest.picture)],
    {"memories": [each.info for each in snippets], "weights": shares},
  )


def some(names: Sequence[Any], count: int = 3) -> str:
  """The first of some names, and how many more there are, in a file's name."""
  text = "_".join(str(name) for name in names[:count])
  more = len(names) - count
  return f"{text}_and_{more}_more" if more > 0 else text


def _stem(snippet: Snippet) -> str:
  """A snippet in a file's name, which may have 255 bytes."""
  return pathlib.Path(snippet.label).stem.replace(" ", "_")[:32]
