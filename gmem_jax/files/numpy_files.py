"""Reads numpy's files, .npy and .npz, and trusts nothing in them.

numpy.load allocates what a header declares before it looks for the bytes,
unpacks a member of any size, and raises what its parsers raise. Here a header
must fit the bytes that follow it, and what a file unpacks to is bounded by its
size. Arrays of objects are refused: they are pickles. So are those of bfloat16
and 8-bit floats, of which the format loses the type.
"""

import contextlib
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from gmem_jax.files import shown

# What the members of an .npz may unpack to besides twice the file's size: more
# than any file of statistics, and natural images hardly compress.
UNPACKED = 1 << 29
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_CHUNK = 1 << 20
# Readers of headers by version. A third has names of fields in UTF-8, of which
# there are none here.
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class _Header(NamedTuple):
  """What an array's header declares, and the bytes of the header itself."""

  shape: tuple[int, ...]
  is_fortran: bool
  dtype: np.dtype
  size: int

  @property
  def order(self) -> Literal["C", "F"]:
    return "F" if self.is_fortran else "C"


class NpzFile:
  """An open .npz; see `opened`.

  Attributes:
    names: Names of its arrays, in their order.
  """

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    """Reads the index of an open zip, and no array."""
    self._path, self._archive = path, archive
    self._members = {
      info.filename.removesuffix(".npy"): info for info in archive.infolist()
    }
    self.names = list(self._members)
    if len(self.names) < len(archive.infolist()):
      raise ValueError("a name is in it twice")
    size = sum(info.file_size for info in self._members.values())
    if size > 2 * path.stat().st_size + UNPACKED:
      raise ValueError(
        f"its arrays unpack to {size:,} bytes, many times its own"
        f" {path.stat().st_size:,}; if that is right, store them uncompressed"
      )

  def nbytes(self, name: str) -> int:
    """Bytes of an array, with its header."""
    return self._members[name].file_size

  def read(self, name: str) -> np.ndarray:
    """Reads an array.

    Raises:
      ValueError: Naming the file, if the array is damaged or of objects.
    """
    info = self._members[name]
    with _named(self._path), self._open(info) as member:
      header = _read_header(shown.value(name), member, info.file_size)
      return _fill(header, member)

  def mapped(self, name: str) -> np.ndarray:
    """A read-only memory map of an array; a compressed one is read instead."""
    info = self._members[name]
    if info.compress_type != zipfile.ZIP_STORED:
      return self.read(name)
    with _named(self._path), self._open(info) as member:
      header = _read_header(shown.value(name), member, info.file_size)
    # A stored member lies in the file as it is: after a header of 30 bytes,
    # whose last four are the lengths of the name and extra fields.
    with self._path.open("rb") as file:
      file.seek(info.header_offset + 26)
      lengths = np.frombuffer(file.read(4), "<u2")
    start = info.header_offset + 30 + int(lengths.sum()) + header.size
    return _map(self._path, header, start)

  def _open(self, info: zipfile.ZipInfo) -> io.BufferedIOBase:
    if info.compress_type not in _METHODS or info.flag_bits & _ENCRYPTED:
      raise ValueError(
        f"{shown.value(info.filename)} is compressed otherwise than numpy does,"
        " or encrypted"
      )
    return self._archive.open(info)  # pyright: ignore


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[NpzFile]:
  """Opens an .npz.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: Naming the file, if it is no .npz, or a damaged one.
  """
  path = pathlib.Path(path)
  with contextlib.ExitStack() as stack:
    with _named(path):
      archive = stack.enter_context(zipfile.ZipFile(path))
      npz = NpzFile(path, archive)
    yield npz


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz; raises as `opened` does."""
  with opened(path) as npz:
    return {name: npz.read(name) for name in npz.names}


def read_npy(path: str | os.PathLike, *, mapped: bool = False) -> np.ndarray:
  """Reads the array of an .npy, or maps it into memory, read-only.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: Naming the file, if it is damaged or of objects.
  """
  path = pathlib.Path(path)
  with path.open("rb") as file, _named(path):
    header = _read_header("it", file, path.stat().st_size)
    return _map(path, header, header.size) if mapped else _fill(header, file)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
  """Turns the errors of a damaged file into one that names it."""
  try:
    yield
  except FileNotFoundError:
    raise
  # Damage to a zip raises all kinds of errors, from EOFError to zlib's.
  except Exception as error:
    why = str(error)
    if not isinstance(error, (ValueError, zipfile.BadZipFile)):
      why = shown.cause(error)
    raise ValueError(
      f"{path} is no plain numpy file, or damaged: {why}"
    ) from error


def _read_header(name: str, file: io.BufferedIOBase, available: int) -> _Header:
  """Reads a header that is followed by just the bytes of its array."""
  try:
    version = np.lib.format.read_magic(file)
  except ValueError:
    raise ValueError(f"{name} is no array") from None
  if version not in _HEADERS:
    raise ValueError(f"{name} is an array of format version {version}")
  # Numpy reads it by means of Python's own parsers.
  try:
    shape, is_fortran, dtype = _HEADERS[version](file)
  except Exception as error:
    raise ValueError(
      f"the header of {name} is damaged, or of another kind than numpy's own,"
      " such as that of 8-bit floats: save those as float32"
    ) from error
  if dtype.hasobject or dtype.fields or not dtype.itemsize:
    raise ValueError(f"{name} holds {shown.value(dtype)}, not plain values")
  if dtype.kind == "V":
    raise ValueError(
      f"{name} is of a type that numpy files lose, such as bfloat16: save it as"
      " float32"
    )
  if any(n < 0 for n in shape):
    raise ValueError(f"{name} has the shape {shown.value(shape)}")
  size = file.tell()
  if math.prod(shape) * dtype.itemsize != available - size:
    raise ValueError(
      f"{name} is declared as {dtype} of shape {shown.value(shape)}, but"
      f" {available - size:,} bytes follow"
    )
  return _Header(shape, is_fortran, dtype, size)


def _fill(header: _Header, file: io.BufferedIOBase) -> np.ndarray:
  """Reads the bytes of an array, in pieces: they may be unpacked on the way."""
  array = np.empty(header.shape, header.dtype, header.order)
  # All of its bytes, in the order of memory.
  left = array.reshape(-1, order="A").view(np.uint8).data
  while len(left):
    count = file.readinto(left[:_CHUNK])  # pyright: ignore
    if not count:
      raise ValueError(f"it ends {len(left):,} bytes too soon")
    left = left[count:]
  return array


def _map(path: pathlib.Path, header: _Header, start: int) -> np.ndarray:
  if 0 in header.shape:
    return np.empty(header.shape, header.dtype)  # Nothing can be mapped.
  return np.memmap(path, header.dtype, "r", start, header.shape, header.order)
