"""Opens files of weights: PyTorch's, safetensors, and numpy's npz.

What a file is, is decided by its first bytes, never by its name. Whatever the
format, opening reads the index, and tensors are views of a memory map. Weights
may be split over several files (shards), with an index in JSON beside them.
"""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gmem_jax.files import atomic, numpy_files, safetensors_file, shown
from gmem_jax.files.torch_reader import torch_file

# How files begin that users have under the names of weights.
_OTHERS = (
  (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull` for it"),
  (b"<", "a web page or XML, such as the error page of a failed download"),
  (b"{", "JSON, and no index of shards"),
  (b"\x93NUMPY", "a single numpy array (.npy)"),
  (b"\x89PNG", "a PNG image"),
  (b"\xff\xd8\xff", "a JPEG image"),
  (b"\x1f\x8b", "gzip-compressed: unpack it first"),
  (b"\x89HDF", "an HDF5 file"),
  (b"GGUF", "a GGUF file"),
)
_USUAL = "such as diffusion_pytorch_model.safetensors"
_NAME = 255  # Characters that a file's name may have.
# An npz with a larger array is no file of statistics; the ADM suite's images
# (arr_0) are left in the file.
_NPZ_LIMIT = 1 << 30


class WrongFile(ValueError):
  """The file is not what the converter takes; the message says what it is."""


@dataclasses.dataclass(frozen=True)
class OpenFile:
  """An open file of weights.

  Attributes:
    path: The file; of weights in shards, their index.
    format: "PyTorch", "safetensors" or "npz".
    value: What it contains, with tensors as read-only numpy views.
    verify: Reads all of it and raises on a wrong checksum; calls its argument
      with the number of bytes read since the last call.
    release: Lets the system drop the pages read so far.
    shards: The other files of weights in shards.
  """

  path: pathlib.Path
  format: str
  value: Any
  verify: Callable[[Callable[[int], Any]], None] = lambda progress: None
  release: Callable[[], None] = lambda: None
  shards: tuple[pathlib.Path, ...] = ()

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """All files that it is made of."""
    return (self.path, *self.shards)

  @property
  def nbytes(self) -> int:
    """Their size on disk."""
    return sum(path.stat().st_size for path in self.files)


def open_source(path: str | os.PathLike) -> OpenFile:
  """Opens a file of weights; an index, or a directory with one, opens shards.

  Raises:
    FileNotFoundError: If there is none.
    ValueError: If it is damaged or of another format, which is named.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = _index_of(path)
  with open(path, "rb") as file:
    is_json = file.read(1) == b"{"
  return _open_shards(path) if is_json else _open_file(path)


def _index_of(directory: pathlib.Path) -> pathlib.Path:
  """The index in a directory of shards."""
  found = sorted(directory.glob("*.index.json"))
  if len(found) == 1:
    return found[0]
  raise WrongFile(
    f"{directory} is a directory: give the file of weights in it, "
    + (f"one of {shown.some(p.name for p in found)}" if found else _USUAL)
  )


def _open_shards(path: pathlib.Path) -> OpenFile:
  """Opens all shards that an index names, and checks that they fit it."""
  index = atomic.read_json(path)
  places = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(places, dict) or not places:
    # As of any other file that is no weights.
    return _open_file(path)
  names: dict[str, set[str]] = {}
  for name, file in places.items():
    # Nothing outside the directory, whatever the index says.
    if (
      not isinstance(file, str)
      or pathlib.PurePath(file).name != file
      or len(file) > _NAME
    ):
      raise WrongFile(
        f"{path} names {shown.value(file)} for {shown.cut(name)}, no file"
        " beside it"
      )
    names.setdefault(file, set()).add(name)
  absent = [file for file in names if not (path.parent / file).is_file()]
  if absent:
    raise WrongFile(
      f"{path} names {len(names)} shards, of which {len(absent)} are not beside"
      f" it: {shown.some(sorted(absent))}"
    )
  shards = [_open_file(path.parent / file) for file in sorted(names)]
  tensors: dict[str, Any] = {}
  for shard in shards:
    held = shard.value if isinstance(shard.value, Mapping) else {}
    differing = names[shard.path.name] ^ held.keys()
    if differing:
      raise WrongFile(
        f"{shard.path} and its index {path.name} differ in {len(differing)}"
        f" names: {shown.some(differing)}"
      )
    tensors |= held

  def verify(progress: Callable[[int], Any]) -> None:
    for shard in shards:
      shard.verify(progress)

  def release() -> None:
    for shard in shards:
      shard.release()

  formats = " and ".join(sorted({shard.format for shard in shards}))
  files = tuple(shard.path for shard in shards)
  return OpenFile(path, formats, tensors, verify, release, files)


def _open_file(path: pathlib.Path) -> OpenFile:
  """Opens one file by its first bytes."""
  with open(path, "rb") as file:
    head = file.read(64)
  if head[:4] == b"PK\x03\x04" and _is_npz(path):
    return OpenFile(path, "npz", _read_npz(path))
  # The format has no magic: eight bytes of a length, then JSON.
  if len(head) > 8 and head[8:9] == b"{" and head[7] == 0:
    opened = safetensors_file.SafetensorsFile(path)
    return OpenFile(
      path,
      "safetensors",
      opened.tensors,
      release=lambda: torch_file.drop_pages(opened.map),
    )
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
  with numpy_files.opened(path) as npz:
    return {
      name: npz.read(name)
      if name != "arr_0" and npz.nbytes(name) <= _NPZ_LIMIT
      else None
      for name in npz.names
    }
