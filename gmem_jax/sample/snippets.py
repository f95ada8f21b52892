"""Snippets from outside of the bank, and between two snippets."""

import dataclasses
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
from gmem_jax.data import decode_image, load_encoders
from gmem_jax.models.encoders import protocols


@dataclasses.dataclass(frozen=True)
class Snippet:
  """One memory snippet: its name for people, feature [d], and origin (JSON)."""

  label: str
  feature: np.ndarray
  info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Snippets:
  """Snippets to sample from.

  Attributes:
    name: Names the images' directory.
    features: [k, d].
    labels: k names for people.
    info: All that the features depend on; JSON.
  """

  name: str
  features: np.ndarray
  labels: tuple[str, ...]
  info: dict[str, Any]


class Reader:
  """Reads snippets that the user names."""

  def __init__(
    self,
    config: sections.Config,
    *,
    channels: int,
    width: int,
    bank_rows: Callable[[], np.ndarray],
  ):
    """Keeps the parts; the feature encoder is loaded at its first use.

    Args:
      config: Its encoder must be the one that made the bank.
      channels: Channels of the images.
      width: Width of the features that the network takes.
      bank_rows: Called if a row is named, as there may be no bank.
    """
    self._config, self._channels, self._width = config, channels, width
    self._bank_rows, self._encoder = bank_rows, None

  def snippet(self, text: str, key: str) -> Snippet:
    """A bank row if `text` is a number, else the feature of an image file."""
    if not text.isdecimal():
      return self.image(text, key)
    row, rows = int(text), self._bank_rows()
    bank_lib.check_rows(np.array([row]), len(rows), key)
    return Snippet(f"row {row}", rows[row], {"row": row})

  def image(self, file: str, key: str) -> Snippet:
    """The feature of an image file.

    Raises:
      ValueError: If it cannot be read, or its feature does not fit.
    """
    path, reading = pathlib.Path(file), self._config.sample.reading
    size = self._config.encoder.image_size
    published = reading == "published"
    crop = decode_image.bilinear_crop if published else decode_image.center_crop
    try:
      pixels = decode_image.load(
        path, self._channels, size, crop, upright=not published
      )
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
    return Snippet(path.name, feature, info)

  def _features(self) -> protocols.FeatureEncoder:
    """The feature encoder: hundreds of megabytes, so only if it is needed."""
    if self._encoder is None:
      self._encoder = load_encoders.load_features(self._config, self._channels)
    return self._encoder


def alone(snippets: Sequence[Snippet]) -> Snippets:
  """Each of one or more snippets by itself."""
  name = "image_" + pathlib.Path(snippets[0].label).stem
  if len(snippets) > 1:
    name += f"_and_{len(snippets) - 1}_more"
  return Snippets(
    name,
    np.stack([snippet.feature for snippet in snippets]),
    tuple(snippet.label for snippet in snippets),
    {"memories": [snippet.info for snippet in snippets]},
  )


def between(config: sections.SampleConfig, ends: Sequence[Snippet]) -> Snippets:
  """`sample.points` snippets between two, by `sample.interpolation`."""
  # Between unit vectors, or the longer end would dominate the middle.
  a, b = (bank_lib.normalise(jnp.asarray(end.feature)) for end in ends)
  method = config.interpolation
  # Only "mask" draws: which elements come from which end.
  key = rngs.key(config.seed, "sample/mask")
  features = np.asarray(
    jax.jit(interpolate.between, static_argnums=(0, 3))(
      method, a, b, config.points, key
    )
  )
  names = [end.label for end in ends]
  # The others have no position on the way, so their points are numbered.
  if method in ("linear", "spherical"):
    labels = [f"{alpha:.2f}" for alpha in np.linspace(0, 1, len(features))]
    labels[0] += f" {names[0]}"
    labels[-1] += f" {names[1]}"
  else:
    labels = [f"{method} {i}" for i in range(len(features))]
  stems = [pathlib.Path(name).stem.replace(" ", "_") for name in names]
  return Snippets(
    f"{method}_{stems[0]}_to_{stems[1]}",
    features,
    tuple(labels),
    {
      "memories": [end.info for end in ends],
      "interpolation": method,
      "points": len(features),
    },
  )
