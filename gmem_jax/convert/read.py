"""Opens files of weights: PyTorch's, safetensors, and numpy's npz.

What a file is, is decided by its first bytes, never by its name. Whatever the
format, opening reads the index, and tensors are views of a memory map.
"""

import dataclasses
import json
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from gmem_jax.files.torch_reader import torch_file

# How files begin that users have under the names of weights.
_OTHERS = (
  (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull` for it"),
  (b"<", "a web page or XML, such as the error page of a failed download"),
  (b"{", "JSON"),
  (b"\x93NUMPY", "a single numpy array (.npy)"),
  (b"\x89PNG", "a PNG image"),
  (b"\xff\xd8\xff", "a JPEG image"),
  (b"\x1f\x8b", "gzip-compressed: unpack it first"),
  (b"\x89HDF", "an HDF5 file"),
  (b"GGUF", "a GGUF file"),
)
_SAFETENSORS_DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BOOL": np.bool_,
  "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
  "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip
# An npz with a larger array is no file of statistics; the ADM suite's images
# (arr_0) are left in the file.
_NPZ_LIMIT = 1 << 30


class WrongFile(ValueError):
  """The file is not what the converter takes; the message says what it is."""


@dataclasses.dataclass(frozen=True)
class OpenFile:
  """An open file of weights.

  Attributes:
    path: The file.
    format: "PyTorch", "safetensors" or "npz".
    value: What it contains, with tensors as read-only numpy views.
    verify: Reads all of it and raises on a wrong checksum; calls its argument
      with the number of bytes read since the last call.
    release: Lets the system drop the pages read so far.
  """

  path: pathlib.Path
  format: str
  value: Any
  verify: Callable[[Callable[[int], Any]], None] = lambda progress: None
  release: Callable[[], None] = lambda: None


def open_source(path: str | os.PathLike) -> OpenFile:
  """Opens a file of weights.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: If it is damaged or of another format, which is named.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise WrongFile(
      f"{path} is a directory: give the file of weights in it, such as"
      " diffusion_pytorch_model.safetensors"
    )
  with open(path, "rb") as file:
    head = file.read(64)
  if head[:4] == b"PK\x03\x04" and _is_npz(path):
    return OpenFile(path, "npz", _read_npz(path))
  # The format has no magic: eight bytes of a length, then JSON.
  if len(head) > 8 and head[8:9] == b"{" and head[7] == 0:
    return _open_safetensors(path)
  for magic, what in _OTHERS:
    if head.startswith(magic):
      raise WrongFile(f"{path} is {what}, not a file of weights")
  opened = torch_file.TorchFile(path)
  return OpenFile(path, "PyTorch", opened.value, opened.verify, opened.release)


def _is_npz(path: pathlib.Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return all(n.endswith(".npy") for n in archive.namelist())
  except (zipfile.BadZipFile, ValueError, NotImplementedError):
    return False  # The reader of PyTorch files says what is wrong with it.


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray | None]:
  """The arrays of an npz; None for arrays of more than _NPZ_LIMIT bytes."""
  arrays: dict[str, np.ndarray | None] = {}
  try:
    # An array of objects is a pickle, which numpy would run.
    with np.load(path, allow_pickle=False) as archive:
      for name, info in zip(archive.files, archive.zip.infolist(), strict=True):
        small = name != "arr_0" and info.file_size <= _NPZ_LIMIT
        arrays[name] = archive[name] if small else None
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as e:
    raise WrongFile(f"{path} is a damaged npz: {e}") from e
  return arrays


def _open_safetensors(path: pathlib.Path) -> OpenFile:
  # The library gives numpy copies, whose shapes cannot be seen without reading
  # them, and no float8 at all. It does check the header and every offset in it;
  # that done, the tensors are at these offsets.
  try:
    with safetensors.safe_open(path, "numpy"):
      pass
  except safetensors.SafetensorError as e:
    raise WrongFile(f"{path} is a damaged safetensors file: {e}") from e
  with open(path, "rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  header.pop("__metadata__", None)
  tensors = {}
  for name, entry in header.items():
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
      raise WrongFile(f"{path}: {name} is of dtype {entry['dtype']}")
    start = 8 + size + entry["data_offsets"][0]
    tensors[name] = np.ndarray(entry["shape"], dtype, data, start)
  return OpenFile(
    path, "safetensors", tensors, release=lambda: torch_file.drop_pages(data)
  )
