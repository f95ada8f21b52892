"""Any image data set of TFDS as a source; TensorFlow is not needed."""

import copy
import io
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gmem_jax.data import sources


class TfdsImages:
  """A prepared TFDS data set, in the order of its records."""

  channels = 3
  ignored: Mapping[str, int] = types.MappingProxyType({})
  files = None

  def __init__(
    self, name: str, split: str, data_dir: str, size: int, *, fill: bool = False
  ):
    """Opens the data set.

    Args:
      name: e.g. "imagenet2012", "my_images:1.0.0".
      split: e.g. "train", "train[:1000]".
      data_dir: Where TFDS keeps its data; "" for its default.
      size: Side of the squares that will be cropped from the images.
      fill: See `decode_image.read`.

    Raises:
      ValueError: If it is not there, or has not exactly one image a record.
    """
    where = f"config.data.tfds={name!r}"
    try:
      # Without the cloud: a data set is never downloaded in the midst of a run.
      builder: Any = tfds.builder(
        name, data_dir=data_dir or None, try_gcs=False
      )
      features = dict(builder.info.features or {})
    # TFDS raises many types where something is missing, with pages of text.
    except Exception as error:
      raise ValueError(f"{where}: {_first_line(error)}") from None
    kinds = tfds.features.Image, tfds.features.ClassLabel
    images, labels = (
      [key for key, feature in features.items() if isinstance(feature, kind)]
      for kind in kinds
    )
    if len(images) != 1:
      raise ValueError(
        f"{where}: one image a record is needed, it has {len(images)}"
        f" {images or ''}"
      )
    try:
      # Undecoded: TFDS decodes images by TensorFlow, and stops at damaged ones.
      decoders = {images[0]: tfds.decode.SkipDecoding()}  # type: ignore
      self._data = builder.as_data_source(split, decoders=decoders)
    except Exception as error:
      raise ValueError(
        f"{where}, config.data.split={split!r}: cannot be read from"
        f" {builder.data_dir}: {_first_line(error)} It must have been prepared"
        " there with file_format='array_record'."
      ) from None
    self._image, self._size, self._fill = images[0], size, fill
    self._label = labels[0] if len(labels) == 1 else None
    self.name, self._split = builder.info.full_name, split
    self._index: np.ndarray | None = None  # All records.
    self._has_names = "file_name" in features

  def __len__(self) -> int:
    return len(self._data) if self._index is None else len(self._index)

  def read(self, index: int) -> sources.Picture:
    """Reads an image.

    Raises:
      ValueError: If its record cannot be read.
    """
    index = index if self._index is None else int(self._index[index])
    name = f"{self._split}/{index}"
    try:
      record = self._data[index]
    # A damaged file, unlike a damaged image, may hide any number of images.
    except Exception as error:
      raise ValueError(
        f"record {name} of {self.name} cannot be read: {_first_line(error)}"
      ) from None
    if self._has_names:
      text = record["file_name"]
      name += f" {text.decode() if isinstance(text, bytes) else text}"
    label = -1 if self._label is None else int(record[self._label])
    contents = io.BytesIO(record[self._image])
    return sources.decode(name, label, contents, self._size, fill=self._fill)

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order."""
    return {
      "name": self.name,
      "split": self._split,
      "records": len(self),
      **sources.reading(fill=self._fill),
    }

  def fingerprint(self, images: Sequence[int]) -> str:
    """Nothing: a data set's name has its version."""
    return ""

  def classes_of_images(self) -> None:
    """None: a label is in its record, beside the image."""

  def take(self, index: np.ndarray, name: str) -> "TfdsImages":
    """The images at some positions, under another name."""
    part = copy.copy(self)
    part.name, part._index = name, index
    return part


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
