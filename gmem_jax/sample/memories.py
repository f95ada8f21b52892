"""Memories from outside of the bank, and between two memories."""

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
from gmem_jax.data import image_files, load_encoders
from gmem_jax.models.encoders import protocols


@dataclasses.dataclass(frozen=True)
class Memory:
  """One memory.

  Attributes:
    label: Its name for people.
    feature: [d].
    info: Where it comes from; JSON.
  """

  label: str
  feature: np.ndarray
  info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Found:
  """Features to sample from.

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
  """Reads memories that the user names."""

  def __init__(
    self,
    config: sections.Config,
    *,
    channels: int,
    width: int,
    bank_rows: Callable[[], np.ndarray],
  ):
    """Keeps the parts; the feature encoder is loaded when it is needed.

    Args:
      config: The run.
      channels: Channels of the images.
      width: Of the features that the network takes.
      bank_rows: () -> the rows of the bank.
    """
    self._config, self._channels, self._width = config, channels, width
    self._bank_rows, self._encoder = bank_rows, None

  def memory(self, text: str, key: str) -> Memory:
    """A bank row, if `text` is a number, else an image file.

    Args:
      text: What the user gave.
      key: The flag that gave it.
    """
    if not text.isdecimal():
      return self.image(text, key)
    row, rows = int(text), self._bank_rows()
    bank_lib.check_rows(np.array([row]), len(rows), key)
    return Memory(f"row {row}", rows[row], {"row": row})

  def image(self, file: str, key: str) -> Memory:
    """The feature of an image file.

    Args:
      file: Its path.
      key: The flag that gave it.

    Raises:
      ValueError: If it cannot be read, or its feature does not fit.
    """
    path = pathlib.Path(file)
    published = self._config.sample.reading == "published"
    size = self._config.encoder.image_size
    crop = image_files.bilinear_crop if published else image_files.center_crop
    try:
      pixels = image_files.load(path, self._channels, size, crop)
    except image_files.BadImageError as error:
      raise ValueError(
        f"{key}: cannot read {path} as an image: {error}"
      ) from None
    floats = protocols.to_float(jnp.asarray(pixels)[None])
    if published:
      floats = (floats + 1) / 2
    feature = np.asarray(self._features()(floats)[0])[0]
    if feature.size != self._width:
      raise ValueError(
        f"config.encoder.features={self._config.encoder.features!r} makes"
        f" features {feature.size} wide, the network takes {self._width}"
      )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    info = {
      "image": path.name,
      "sha256": digest,
      "encoder": self._features().name,
      "reading": self._config.sample.reading,
    }
    return Memory(path.name, feature, info)

  def _features(self) -> protocols.FeatureEncoder:
    if self._encoder is None:
      self._encoder = load_encoders.load_features(self._config, self._channels)
    return self._encoder


def alone(memories: Sequence[Memory]) -> Found:
  """Each memory for itself.

  Args:
    memories: At least one.
  """
  name = "image_" + pathlib.Path(memories[0].label).stem
  if len(memories) > 1:
    name += f"_and_{len(memories) - 1}_more"
  return Found(
    name,
    np.stack([memory.feature for memory in memories]),
    tuple(memory.label for memory in memories),
    {"memories": [memory.info for memory in memories]},
  )


def between(config: sections.SampleConfig, ends: Sequence[Memory]) -> Found:
  """The memories between two, by `sample.interpolation`.

  Args:
    config: Method, number of points, and the seed of masks.
    ends: The two.
  """
  a, b = (bank_lib.normalise(jnp.asarray(end.feature)) for end in ends)
  method = config.interpolation
  key = rngs.key(config.seed, "sample/mask")
  features = np.asarray(
    jax.jit(interpolate.between, static_argnums=(0, 3))(
      method, a, b, config.points, key
    )
  )
  names = [end.label for end in ends]
  alphas = np.linspace(0, 1, len(features))
  if method in ("linear", "spherical"):
    labels = [f"{alpha:.2f}" for alpha in alphas]
    labels[0] += f" {names[0]}"
    labels[-1] += f" {names[1]}"
  else:
    labels = [f"{method} {i}" for i in range(len(features))]
  stems = [pathlib.Path(name).stem.replace(" ", "_") for name in names]
  return Found(
    f"{method}_{stems[0]}_to_{stems[1]}",
    features,
    tuple(labels),
    {
      "memories": [end.info for end in ends],
      "interpolation": method,
      "points": len(features),
    },
  )
