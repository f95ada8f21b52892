"""Where images come from: a folder, an .npz, arrays.

Shapes: n images, H W ch pixels.
"""

import concurrent.futures
import hashlib
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gmem_jax.data import (
  image_files,
  schema as schema_lib,
  sources as data_sources,
)
from gmem_jax.evaluate import prepared
from gmem_jax.files import atomic

_READERS = 8


@runtime_checkable
class Source(Protocol):
  """Images by number.

  Attributes:
    info: What identifies them; JSON.
    count: How many there are.
    shape: H, W, ch of each.
    collective: Whether all hosts must read together, in the same order, and
      get all of what they ask for: sampling. Else each reads for itself.
  """

  info: dict[str, Any]
  count: int
  shape: tuple[int, int, int]
  collective: bool

  def read(self, numbers: np.ndarray, /) -> np.ndarray:
    """The images of some numbers, uint8 [n H W ch]."""
    ...


class Arrays:
  """Images in memory, or made by a function."""

  def __init__(
    self,
    info: dict[str, Any],
    count: int,
    shape: tuple[int, int, int],
    read: Callable[[np.ndarray], np.ndarray],
    *,
    collective: bool = False,
  ):
    """Keeps the parts.

    Args:
      info: What identifies the images.
      count: How many.
      shape: H, W, ch.
      read: Image numbers [n] -> uint8 [n H W ch].
      collective: See `Source`.
    """
    self.info, self.count, self.shape = info, count, shape
    self.read, self.collective = read, collective


class Folder:
  """The images of a folder, in the order of their names."""

  collective = False

  def __init__(
    self, path: pathlib.Path, *, channels: int = 3, crop: int | None = None
  ):
    """Lists the files; subfolders too, as of classes.

    A folder that `--mode=sample` wrote counts its numbered files alone.

    Args:
      path: The folder.
      channels: 3 for RGB, 1 for grey.
      crop: Scale and crop the images to squares of so many pixels, as training
        data; None to take them as they are.

    Raises:
      ValueError: If there is no image.
    """
    self._channels, self._crop, self._root = channels, crop, path
    try:
      files, _ = data_sources.list_images(path)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    if (path / "sample.json").exists():
      files = [f for f in files if re.fullmatch(r"\d{6,}\.png", f)]
      if not files:
        raise ValueError(f"{path}: none of its samples is there")
    self._files = files
    self.count = len(files)
    self.shape = self._read_one(0).shape
    digest = hashlib.sha256()
    for file in files:
      stat = (path / file).stat()
      digest.update(f"{file}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    self.info = {
      "folder": str(path),
      "images": self.count,
      "crop": crop,
      "digest": digest.hexdigest(),
    }

  def read(self, numbers: np.ndarray) -> np.ndarray:
    """Reads images, several at a time.

    Args:
      numbers: Positions in the order of names.

    Raises:
      ValueError: Naming a file that cannot be read, or is of another size.
    """
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
      pixels = list(pool.map(self._read_one, numbers.tolist()))
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
    path = self._root / self._files[number]
    try:
      return image_files.load(path, self._channels, self._crop)
    except image_files.BadImageError as error:
      raise ValueError(f"cannot read {path} as an image: {error}") from None


class Npz:
  """The images of an .npz in the layout of the ADM suite: arr_0."""

  collective = False

  def __init__(self, path: pathlib.Path):
    """Opens the file; images are read when they are asked for.

    Args:
      path: The file.

    Raises:
      ValueError: If it holds no images.
    """
    self._pixels = _open_array(path, "arr_0.npy")
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
    """Reads images.

    Args:
      numbers: Positions in the file.
    """
    return np.asarray(self._pixels[numbers])


def _open_array(path: pathlib.Path, name: str) -> np.ndarray:
  """An array of an .npz, by memory map where it is not compressed."""
  if name.removesuffix(".npy") not in atomic.array_names(path):
    raise ValueError(f"{path} holds no {name.removesuffix('.npy')}")
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo(name)
    with archive.open(info) as member:
      try:
        version = np.lib.format.read_magic(member)
        read_header = (
          np.lib.format.read_array_header_1_0
          if version == (1, 0)
          else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(member)
        if dtype.hasobject:
          raise ValueError("it holds Python objects")
      except ValueError as error:
        raise ValueError(f"{path}: {name} is damaged: {error}") from None
      header = member.tell()
  if info.compress_type != zipfile.ZIP_STORED:
    with np.load(path, allow_pickle=False) as arrays:
      return arrays[name.removesuffix(".npy")]
  with path.open("rb") as file:
    file.seek(info.header_offset + 26)
    lengths = np.frombuffer(file.read(4), "<u2")
  start = info.header_offset + 30 + int(lengths.sum()) + header
  order = "F" if fortran else "C"
  return np.memmap(path, dtype, "r", start, shape, order)


def open_images(
  path: pathlib.Path,
  *,
  channels: int = 3,
  crop: int | None = None,
  decode: str | None = None,
) -> Source:
  """Opens a folder of images, an .npz, or prepared data.

  Args:
    path: The folder or file.
    channels: Of a folder's images.
    crop: See `Folder`.
    decode: See `prepared.Prepared`.

  Raises:
    ValueError: If there is no image there, or an option does not fit.
  """
  if not path.exists():
    raise ValueError(f"{path} does not exist")
  is_prepared = (path / schema_lib.FILE).exists()
  if decode is not None and not is_prepared:
    raise ValueError(f"{path}: only prepared data can be decoded")
  if path.is_dir() and not is_prepared:
    return Folder(path, channels=channels, crop=crop)
  if crop:
    raise ValueError(f"{path}: only the images of a folder can be cropped")
  if is_prepared:
    return prepared.Prepared(path, decode)
  if path.suffix != ".npz":
    raise ValueError(f"{path} is neither a folder of images nor an .npz file")
  return Npz(path)
