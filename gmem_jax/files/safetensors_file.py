"""Reads safetensors files by memory map.

The library gives numpy copies, whose shapes cannot be seen without reading
them, and knows no 8-bit floats. It does check the header and every offset in
it; that done, the tensors are at these offsets.
"""

import mmap
import os
import struct
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from gmem_jax.files import atomic, shown

DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BOOL": np.bool_,
  "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
  "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
  "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "C64": np.complex64,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
  "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip
_SIZE = struct.Struct("<Q")
# Bytes of a header; that of the largest networks has less than one megabyte.
_LARGEST = 8 << 20


class SafetensorsFile:
  """An open safetensors file.

  Attributes:
    tensors: Read-only numpy views of the file, by name.
    metadata: Strings by key, as the writer left them.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens a file: reads its header, no tensor.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: Naming the file and what is wrong with it.
    """
    header_size = _header_size(path)
    try:
      with safetensors.safe_open(path, "numpy"):
        pass
    except safetensors.SafetensorError as e:
      found, expected = os.stat(path).st_size, _expected_size(path)
      why = f"a damaged safetensors file: {shown.cut(str(e))}"
      if found < expected:
        why = f"cut off: {found:,} bytes of at least {expected:,}"
      raise ValueError(f"{os.fspath(path)} is {why}") from e
    with open(path, "rb") as file:
      file.seek(_SIZE.size)
      header = atomic.parse_json(file.read(header_size), os.fspath(path))
      self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    begin = _SIZE.size + header_size
    try:
      self.tensors = {
        name: _view(name, entry, self.map, begin)
        for name, entry in header.items()
      }
    except ValueError as error:
      raise ValueError(f"{os.fspath(path)}: {error}") from None


def _view(
  name: str, entry: dict[str, Any], data: mmap.mmap, begin: int
) -> np.ndarray:
  """A tensor as its entry in the header describes it."""
  dtype, shape = DTYPES.get(entry["dtype"]), entry["shape"]
  if dtype is None:
    raise ValueError(
      f"{shown.value(name)} is of type {entry['dtype']}, of which there are no"
      f" arrays here; save it as one of {', '.join(DTYPES)}"
    )
  try:
    return np.ndarray(shape, dtype, data, begin + entry["data_offsets"][0])
  # Of more axes than numpy's, or of impossible ones beside an empty one.
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{shown.value(name)} has the shape {shown.value(shape)}: {error}"
    ) from None


def _header_size(path: str | os.PathLike) -> int:
  """Bytes of the header, as the file begins; 0 if it ends before."""
  with open(path, "rb") as file:
    head = file.read(_SIZE.size)
  (size,) = _SIZE.unpack(head) if len(head) == _SIZE.size else (0,)
  if _LARGEST < size < os.stat(path).st_size:
    raise ValueError(
      f"{os.fspath(path)} is a damaged safetensors file: a header of {size:,}"
      " bytes"
    )
  return size


def _expected_size(path: str | os.PathLike) -> int:
  """The least bytes that a file must have; 0 if its header does not tell."""
  with open(path, "rb") as file:
    try:
      (size,) = _SIZE.unpack(file.read(_SIZE.size))
      if size > _LARGEST:
        return 0
      text = file.read(size)
      if len(text) < size:
        return _SIZE.size + size
      header = atomic.parse_json(text, "it")
      header.pop("__metadata__", None)
      ends = max(int(entry["data_offsets"][1]) for entry in header.values())
    # The library has refused the file already: anything may be in its header.
    except (struct.error, ValueError, LookupError, TypeError, AttributeError):
      return 0
  return _SIZE.size + size + ends if ends < 2**62 else 0
