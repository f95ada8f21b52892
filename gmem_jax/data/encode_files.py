"""Features for banks: image files through the encoder.

Shapes: n images, d feature width.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import progress as progress_lib
from gmem_jax.config import recipe, resolve, sections
from gmem_jax.data import batching, decode_image, load_encoders, sources
from gmem_jax.files import atomic, numpy_files
from gmem_jax.models.encoders import protocols

# Images that the encoder sees at a time.
BATCH = 32
# Images whose features are kept together: what a killed build repeats.
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Features of images.

  Attributes:
    features: float32 [n, d], as the encoder gives them.
    kept: [n] positions of the images among the files.
    skipped: (file, reason) of those that could not be read.
  """

  features: np.ndarray
  kept: np.ndarray
  skipped: tuple[tuple[str, str], ...]


class FileEncoder:
  """A config's feature encoder, reading images as banks are made."""

  def __init__(self, config: sections.Config, *, upright: bool = False):
    """Loads the weights that the config's section `encoder` names.

    Args:
      config: Of the bank.
      upright: Turn images as their EXIF orientation says: for photographs that
        are given one by one. Whole data sets are read without, as published.
    """
    self.size = config.encoder.image_size
    # The only data that is not in colour.
    self._channels = 1 if config.data.source == "digits" else 3
    self._network = load_encoders.load_features(config, self._channels)
    self.name = self._network.name
    self.crop = f"center_crop({self.size})"
    self.fill, self.upright = config.data.truncated == "fill", upright
    self._encode = jax.jit(lambda x: self._network(protocols.to_float(x))[0])

  def __call__(
    self,
    files: Sequence[pathlib.Path],
    progress: Callable[[int], Any] = lambda n: None,
  ) -> Encoded:
    """Encodes those of the files that can be read.

    Args:
      files: Image files.
      progress: Called with the number of files read since the last call.
    """
    features, kept, skipped = [], [], []

    def readable(images: Iterator[Any]) -> Iterator[tuple[int, np.ndarray]]:
      for number, image in enumerate(images):
        if isinstance(image, decode_image.BadImageError):
          skipped.append((str(files[number]), str(image)))
        else:
          yield number, image
        progress(1)

    def started(
      images: Iterator[Any],
    ) -> Iterator[tuple[Sequence[int], jax.Array]]:
      for batch in batching.grouped(readable(images), BATCH):
        numbers, pixels = zip(*batch, strict=True)
        filled = batching.fill(np.stack(pixels), BATCH)
        yield numbers, self._encode(jnp.asarray(filled))

    with decode_image.threads() as pool:
      images = batching.read_ahead(pool, self._read, files, 2 * BATCH)
      for numbers, rows in batching.one_ahead(started(images)):
        features.append(np.asarray(rows, np.float32)[: len(numbers)])
        kept += numbers
    empty = np.zeros((0, self._network.width), np.float32)
    return Encoded(
      np.concatenate([empty, *features]),
      np.array(kept, np.int64),
      tuple(skipped),
    )

  def _read(
    self, path: pathlib.Path
  ) -> np.ndarray | decode_image.BadImageError:
    """The pixels that the encoder sees, or why there are none."""
    try:
      return decode_image.load(
        path,
        self._channels,
        self.size,
        fill=self.fill,
        upright=self.upright,
      )
    except decode_image.BadImageError as error:
      return error


def load_config(text: str, weights: str | None) -> sections.Config:
  """Reads a config file, with other weights of the encoder if they are given.

  Args:
    text: FILE.py, or FILE.py:OPTION.
    weights: Instead of its `encoder.features_weights`.

  Raises:
    ValueError: If there is no such file, or a value does not fit.
  """
  tree = recipe.load(text)
  if weights is not None:
    tree.update_from_flattened_dict({"encoder.features_weights": weights})
  return resolve.resolve(tree)


def list_images(paths: Sequence[str]) -> tuple[str, list[pathlib.Path]]:
  """Lists image files: those that are named, and all of named folders.

  Returns:
    (the folder that they have in common, files); a folder's are in the order of
    their paths.

  Raises:
    ValueError: If one does not exist, or a folder holds no image.
  """
  files = []
  for text in paths:
    path = pathlib.Path(text).absolute()
    if path.is_dir():
      try:
        names, _ = sources.list_images(path)
      except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
      files += [path / name for name in names]
    elif path.is_file():
      # Whatever its extension: the user named it.
      files.append(path)
    else:
      raise ValueError(f"{text}: there is no such image or folder")
  first = pathlib.Path(paths[0]).absolute()
  if len(paths) == 1:
    return str(first if first.is_dir() else first.parent), files
  return os.path.commonpath([file.parent for file in files]), files


def encode_all(
  encoder: FileEncoder, files: Sequence[pathlib.Path], partial: pathlib.Path
) -> Encoded:
  """Encodes many files; killed, it continues where it stopped.

  `partial` is a directory for what is done so far. The caller removes it once
  the result is safe.
  """
  paths = hashlib.sha256("\0".join(map(str, files)).encode()).hexdigest()
  settings = {
    "encoder": encoder.name,
    "crop": encoder.crop,
    "fill": encoder.fill,
    "files": paths,
  }
  note = partial / "settings.json"
  # What another encoder, or another folder, has left is worth nothing here.
  if partial.exists() and (
    not note.exists() or atomic.read_json(note) != settings
  ):
    shutil.rmtree(partial)
  partial.mkdir(parents=True, exist_ok=True)
  atomic.write_json(note, settings)
  line = progress_lib.Progress("encode", 0, len(files), unit="image")
  done, parts = 0, []

  def advance(n: int) -> None:
    nonlocal done
    done += n
    line.update(done)

  for start in range(0, len(files), BLOCK):
    block = files[start : start + BLOCK]
    path = partial / f"{start:010d}.npz"
    if path.exists():
      part = _load(path)
      advance(len(block))
    else:
      part = encoder(block, advance)
      _save(path, part)
    parts.append(dataclasses.replace(part, kept=part.kept + start))
  line.close()
  return Encoded(
    np.concatenate([part.features for part in parts]),
    np.concatenate([part.kept for part in parts]),
    tuple(pair for part in parts for pair in part.skipped),
  )


def _load(path: pathlib.Path) -> Encoded:
  stored = numpy_files.read_npz(path)
  skipped = tuple(map(tuple, stored["skipped"].tolist()))
  return Encoded(stored["features"], stored["kept"], skipped)


def _save(path: pathlib.Path, part: Encoded) -> None:
  # An array of strings, and of two columns also where it is empty.
  skipped = np.array(part.skipped, str).reshape(-1, 2)
  with atomic.replacing(path) as temporary:
    np.savez(temporary, features=part.features, kept=part.kept, skipped=skipped)
