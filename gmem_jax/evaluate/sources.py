"""Images to score: in memory, made on demand, in a folder, in an .npz.

`open.open_images` finds the right source for a path.

Shapes: n images, H W ch pixels.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import logging
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gmem_jax.data import decode_image, sources as data_sources
from gmem_jax.files import numpy_files
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

# Decoding releases the GIL; more threads than this wait for the disk alone.
_READERS = 8
# Formats that keep every pixel.
_LOSSLESS = ("PNG", "BMP")


@runtime_checkable
class ImageSource(Protocol):
  """Images by number.

  Attributes:
    info: What identifies them; JSON. A killed pass continues only if it is
      equal, so it must change with the images.
    count: Number of images.
    shape: H, W, ch of each.
    collective: Whether all hosts must read together, in the same order, and
      each gets all the images it names: sampling. Else each reads for itself.
  """

  info: dict[str, Any]
  count: int
  shape: tuple[int, int, int]
  collective: bool

  def read(self, numbers: np.ndarray, /) -> np.ndarray:
    """The images of these numbers, uint8 [n H W ch]."""
    ...


@dataclasses.dataclass
class Arrays:
  """Images from a function, such as a sampler; see `ImageSource`.

  Attributes:
    read: Image numbers [n] -> uint8 [n H W ch].
  """

  info: dict[str, Any]
  count: int
  shape: tuple[int, int, int]
  read: Callable[[np.ndarray], np.ndarray]
  collective: bool = False


def in_memory(pixels: np.ndarray, info: dict[str, Any]) -> Arrays:
  """Images uint8 [n H W ch] that are in memory."""
  h, w, channels = pixels.shape[1:]
  return Arrays(
    info, len(pixels), (h, w, channels), lambda numbers: pixels[numbers]
  )


def read_all(
  read_one: Callable[[int], np.ndarray], numbers: np.ndarray
) -> list[np.ndarray]:
  """Reads images one by one, several at a time."""
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    return list(pool.map(read_one, numbers.tolist()))


def in_batches(
  function: Callable[[np.ndarray], Sequence[Any]],
  items: np.ndarray,
  batch: int,
) -> list[np.ndarray]:
  """Applies a function to items, always as many at once.

  The last batch repeats items to be full: another shape would be compiled anew.

  The function turns items [batch …] into some arrays [batch …]; returns these
  arrays for all items.
  """
  parts = []
  for start in range(0, len(items), batch):
    part = items[start : start + batch]
    values = function(np.resize(part, (batch, *items.shape[1:])))
    parts.append([np.asarray(x)[: len(part)] for x in values])
  return [np.concatenate(p) for p in zip(*parts, strict=True)]


class ImageFolder:
  """The images of a folder and its subfolders, in the order of their names."""

  collective = False

  def __init__(
    self, path: pathlib.Path, *, channels: int = 3, crop: int | None = None
  ):
    """Lists the files, and reads the first.

    Images are read as RGB, or as grey with one channel, and cropped to squares
    of side `crop` as training data is; None leaves them as they are.

    Raises:
      ValueError: If there is no image, or a file is none.
    """
    self._channels, self._crop, self._root = channels, crop, path
    try:
      files, _ = data_sources.list_images(path)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    # `--mode=sample` writes a contact sheet beside its samples.
    if (path / "sample.json").exists():
      files = [f for f in files if re.fullmatch(r"\d{6,}\.png", f)]
      if not files:
        raise ValueError(f"{path}: none of its samples is there")
    self._files = files
    self.count = len(files)
    formats = self._formats()
    self.shape = self._read_one(0).shape
    # Of sizes and times: hashing the images would take as long as a pass.
    digest = hashlib.sha256()
    for file in files:
      stat = (path / file).stat()
      digest.update(f"{file}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    self.info = {
      "folder": str(path),
      "images": self.count,
      "formats": formats,
      "crop": crop,
      "digest": digest.hexdigest(),
    }

  def read(self, numbers: np.ndarray) -> np.ndarray:
    """Reads images by their positions in the order of names.

    Raises:
      ValueError: Naming a file that cannot be read, or has another size.
    """
    pixels = read_all(self._read_one, numbers)
    for number, image in zip(numbers, pixels, strict=True):
      if image.shape != self.shape:
        h, w, _ = self.shape
        raise ValueError(
          f"{self._root / self._files[number]} is {image.shape[0]} x"
          f" {image.shape[1]} pixels, {self._files[0]} is {h} x {w}: crop them"
          " to one size"
        )
    return np.stack(pixels)

  def _read_one(self, number: int) -> np.ndarray:
    return self._opened(
      number, lambda f: decode_image.load(f, self._channels, self._crop)
    )

  def _formats(self) -> dict[str, int]:
    """Format -> number of files; says so if lossy ones are mixed in."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
      names = pool.map(
        lambda i: self._opened(i, decode_image.format_of), range(self.count)
      )
      found = collections.Counter(names)
    formats = {
      name if name in _LOSSLESS else f"{name} (quality unknown)": number
      for name, number in sorted(found.items())
    }
    if len(found) > 1 and not set(found) <= set(_LOSSLESS):
      text = ", ".join(f"{n} {name}" for name, n in formats.items())
      if processes.is_main():
        _log.warning("%s: %s: lossy compression moves FID", self._root, text)
    return formats

  def _opened(
    self, number: int, function: Callable[[pathlib.Path], Any]
  ) -> Any:
    """A function of a file's path; names the file if it cannot be read."""
    path = self._root / self._files[number]
    try:
      return function(path)
    except decode_image.BadImageError as error:
      raise ValueError(f"cannot read {path} as an image: {error}") from None


class Npz:
  """The images of an .npz in the layout of the ADM suite: arr_0."""

  collective = False

  def __init__(self, path: pathlib.Path):
    """Opens the file; images are read on demand.

    Raises:
      ValueError: If it has no images.
    """
    with numpy_files.opened(path) as npz:
      if "arr_0" not in npz.names:
        raise ValueError(f"{path} holds no arr_0")
      # By memory map, where it is not compressed: 50,000 images of 256 pixels
      # have 10 GB.
      self._pixels = npz.mapped("arr_0")
    shape, dtype = self._pixels.shape, self._pixels.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
      raise ValueError(
        f"{path}: arr_0 is {dtype} {shape}; uint8 images [n, H, W, 3] are"
        " expected"
      )
    if not shape[0]:
      raise ValueError(f"{path}: arr_0 holds no image")
    self.count, self.shape = shape[0], (shape[1], shape[2], shape[3])
    stat = path.stat()
    self.info = {
      "file": str(path),
      "images": self.count,
      "bytes": stat.st_size,
      "modified": stat.st_mtime_ns,
    }

  def read(self, numbers: np.ndarray) -> np.ndarray:
    """Reads the images at these positions in the file."""
    return np.asarray(self._pixels[numbers])
