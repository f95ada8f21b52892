"""Reads safetensors files by memory map.

The library gives numpy copies, whose shapes cannot be seen without reading
them, and knows no 8-bit floats. It does check the header and every offset in
it; that done, the tensors are at these offsets.
"""

import json
import mmap
import os
import struct

import ml_dtypes
import numpy as np
import safetensors

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
_MAX_HEADER = 100_000_000  # The library's limit.


class SafetensorsFile:
  """An open safetensors file.

  Attributes:
    tensors: Read-only numpy views of the file, by name.
    metadata: Strings by key, as the writer left them.
    map: The mapped file.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens a file: reads its header, no tensor.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: Naming the file and what is wrong with it.
    """
    try:
      with safetensors.safe_open(path, "numpy"):
        pass
    except safetensors.SafetensorError as e:
      found, expected = os.stat(path).st_size, _expected_size(path)
      why = f"a damaged safetensors file: {e}"
      if found < expected:
        why = f"cut off: {found:,} bytes of at least {expected:,}"
      raise ValueError(f"{os.fspath(path)} is {why}") from e
    with open(path, "rb") as file:
      (size,) = _SIZE.unpack(file.read(_SIZE.size))
      header = json.loads(file.read(size))
      self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    self.tensors: dict[str, np.ndarray] = {}
    for name, entry in header.items():
      dtype = DTYPES.get(entry["dtype"])
      if dtype is None:
        raise ValueError(
          f"{os.fspath(path)}: {name} is of type {entry['dtype']}, of which"
          f" there are no arrays here; save it as one of {', '.join(DTYPES)}"
        )
      start = _SIZE.size + size + entry["data_offsets"][0]
      self.tensors[name] = np.ndarray(entry["shape"], dtype, self.map, start)


def _expected_size(path: str | os.PathLike) -> int:
  """The least bytes that a file must have; 0 if its header does not tell."""
  with open(path, "rb") as file:
    try:
      (size,) = _SIZE.unpack(file.read(_SIZE.size))
      if size > _MAX_HEADER:
        return 0
      text = file.read(size)
      if len(text) < size:
        return _SIZE.size + size
      header = json.loads(text)
      header.pop("__metadata__", None)
      ends = max(int(entry["data_offsets"][1]) for entry in header.values())
    # The library has refused the file already: anything may be in its header.
    except (
      struct.error, ValueError, LookupError, TypeError, AttributeError,
      RecursionError,
    ):  # fmt: skip
      return 0
  return _SIZE.size + size + ends if ends < 2**62 else 0
