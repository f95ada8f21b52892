"""Snippets from outside of the bank, and between two snippets."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib, interpolate
from gmem_jax.config import sections
from gmem_jax.data import decode_image, encode_files, load_encoders
from gmem_jax.models.encoders import protocols
from gmem_jax.sample import sheet, source as source_lib


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


class Reader:
  """Reads snippets that the user names."""

  def __init__(
    self,
    config: sections.Config,
    *,
    channels: int,
    width: int,
    bank: Callable[[], source_lib.HostBank],
  ):
    """Keeps the parts; the feature encoder is loaded at its first use.

    Args:
      config: Its encoder must be the one that made the bank.
      channels: 1 for a network of grey images, else 3.
      width: Width of the features that the network takes.
      bank: Called if a row is named, as there may be no bank.
    """
    self._config, self._channels, self._width = config, channels, width
    self._bank, self._encoder = bank, None

  def snippet(self, text: str, key: str) -> Snippet:
    """A bank row if `text` is a number, else the feature of an image file."""
    if not text.isdecimal():
      return self.image(text, key)
    row, bank = int(text), self._bank()
    bank_lib.check_rows(np.array([row]), len(bank.rows), key)
    return Snippet(
      f"row {row}", bank.rows[row], {"row": row}, bank.picture(row)
    )

  def images(self, paths: Sequence[str], key: str) -> list[Snippet]:
    """The features of image files, and of all image files of folders.

    Raises:
      ValueError: If one is not there, cannot be read, or does not fit.
    """
    try:
      _, files = encode_files.list_images(paths)
    except ValueError as error:
      raise ValueError(f"{key}={error}") from None
    return [self.image(str(file), key) for file in files]

  def image(self, file: str, key: str) -> Snippet:
    """The feature of an image file.

    Raises:
      ValueError: If it cannot be read, or its feature does not fit.
    """
    path, reading = pathlib.Path(file), self._config.sample.reading
    published = reading == "published"
    crop = decode_image.bilinear_crop if published else decode_image.center_crop
    load = functools.partial(
      decode_image.load, path, crop=crop, upright=not published
    )
    try:
      pixels = load(self._channels, self._config.encoder.image_size)
    except decode_image.BadImageError as error:
      raise ValueError(
        f"{key}: cannot read {path} as an image: {error}"
      ) from None
    floats = protocols.to_float(jnp.asarray(pixels)[None])
    if published:
      # The published manipulation scales twice, and so shows the encoder a
      # washed-out image.
      floats = (floats + 1) / 2
    encoder = self._features()
    feature = np.asarray(encoder(floats)[0])[0]
    if feature.size != self._width:
      raise ValueError(
        f"config.encoder.features={self._config.encoder.features!r} makes"
        f" features {feature.size} wide, the network takes {self._width}"
      )
    info = {
      "image": path.name,
      # Another file of the same name makes other images.
      "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
      "encoder": encoder.name,
      "reading": reading,
    }
    return Snippet(path.name, feature, info, functools.partial(load, 3))

  def _features(self) -> protocols.FeatureEncoder:
    """The feature encoder: hundreds of megabytes, so only if it is needed."""
    if self._encoder is None:
      self._encoder = load_encoders.load_features(self._config, self._channels)
    return self._encoder


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


def some(names: Sequence[Any], count: int = 3) -> str:
  """The first of some names, and how many more there are, in a file's name."""
  text = "_".join(str(name) for name in names[:count])
  more = len(names) - count
  return f"{text}_and_{more}_more" if more > 0 else text


def _stem(snippet: Snippet) -> str:
  """A snippet in a file's name, which may have 255 bytes."""
  return pathlib.Path(snippet.label).stem.replace(" ", "_")[:32]
