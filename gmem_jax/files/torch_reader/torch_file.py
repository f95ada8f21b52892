"""Reads the files that torch.save writes, without torch.

Since PyTorch 1.6 they are zip files; `torch_legacy` reads older ones.

Opening a file reads the zip's index and the pickle that names the tensors. The
tensors are read-only views of a memory map: their bytes are read when used.
Nothing in the file is executed (see `inert_pickle`). Every tensor is checked to
be inside its storage, and every storage inside the file.
"""

import dataclasses
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from gmem_jax.files import shown
from gmem_jax.files.torch_reader import inert_pickle, torch_legacy, torch_types

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_FIELDS = (0, 2, 3, 9, 10)  # magic, flags, method, sizes of name and extra
_CHUNK = 1 << 20
# What zipfile, struct and the pickle reader raise on files made to break them.
_DAMAGE = (
  zipfile.BadZipFile, struct.error, ValueError, LookupError, TypeError,
  ArithmeticError, RuntimeError, MemoryError, OSError,
)  # fmt: skip


class TorchFileError(ValueError):
  """The file is damaged, of another format, or has what is not accepted."""


@dataclasses.dataclass(frozen=True)
class _Member:
  """An uncompressed file inside the zip: bytes [start, start + size)."""

  name: str
  start: int
  size: int
  crc: int


def _members(archive: zipfile.ZipFile, file: BinaryIO) -> dict[str, _Member]:
  """Finds the bytes of every member; checks both of the zip's indices."""
  # The central index does not tell where the bytes start, so the local headers
  # are read too. Where they disagree, two programs could see two files.
  members: dict[str, _Member] = {}
  length = os.fstat(file.fileno()).st_size
  for info in archive.infolist():
    name = info.filename
    # A map would fetch the neighbours of these few bytes from the disk too.
    header = os.pread(file.fileno(), _LOCAL_HEADER.size, info.header_offset)
    fields = _LOCAL_HEADER.unpack(header)
    magic, flags, method, name_size, extra_size = (fields[k] for k in _FIELDS)
    begin = info.header_offset + _LOCAL_HEADER.size
    local_name = os.pread(file.fileno(), name_size, begin)
    start = begin + name_size + extra_size
    if magic != _ZIP_MAGIC or local_name != name.encode():
      raise TorchFileError(
        f"the zip's entry for {shown.value(name)} is damaged"
      )
    if method or info.compress_type or (flags | info.flag_bits) & 1:
      raise TorchFileError(
        f"{shown.value(name)} is compressed or encrypted; PyTorch stores plain"
        " bytes"
      )
    if name in members:
      raise TorchFileError(f"{shown.value(name)} is in the zip twice")
    if start + max(info.file_size, info.compress_size) > length:
      raise TorchFileError(f"{shown.value(name)} is not inside the file")
    members[name] = _Member(name, start, info.file_size, info.CRC)
  return members


class TorchFile:
  """An open PyTorch file.

  Attributes:
    value: What was saved; tensors are read-only numpy views of the file.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens a file: reads its index, no tensor.

    Raises:
      FileNotFoundError: If there is none.
      TorchFileError: Naming the file and what is wrong with it.
    """
    self.path = os.fspath(path)
    try:
      with open(path, "rb") as file:
        self._map, legacy = _map(file)
        if legacy:
          self._members, self._has_checksums = {}, False
          self.value = torch_legacy.load(self._map)
          return
        # The index of a zip is its end.
        if not zipfile.is_zipfile(file):
          raise TorchFileError(
            f"cut off: {len(self._map):,} bytes of a zip file, without its end"
          )
        with zipfile.ZipFile(file) as archive:
          self._members = _members(archive, file)
      # torch.serialization.set_crc32_options(False) writes zeros.
      self._has_checksums = any(m.crc for m in self._members.values())
      self.value = self._load()
    except FileNotFoundError:
      raise
    except _DAMAGE as e:
      raise TorchFileError(f"{self.path}: {e}") from e

  def _load(self) -> Any:
    pickles = [n for n in self._members if n.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise TorchFileError(
        "a zip, but not one that torch.save wrote: it has"
        f" {len(pickles)} members named data.pkl"
      )
    root = pickles[0].removesuffix("data.pkl")
    order = self._members.get(f"{root}byteorder")
    if order and self._bytes(order) != b"little":
      raise TorchFileError("written on a big-endian machine")
    if f"{root}constants.pkl" in self._members:
      raise TorchFileError("a TorchScript program, not a file of weights")

    def persistent(pid: Any) -> torch_types.Storage:
      kind, key, _, numel = torch_types.storage(pid)
      member = self._members.get(f"{root}data/{key}")
      if member is None:
        raise TorchFileError(f"storage {shown.value(key)} is missing")
      storage = torch_types.Storage(kind.dtype, numel, member.start)
      storage.check(member.size, key)
      return storage

    return inert_pickle.load(
      self._bytes(self._members[pickles[0]]),
      known=torch_types.known(self._map),
      persistent=persistent,
    )

  def _bytes(self, member: _Member) -> bytes:
    data = self._map[member.start : member.start + member.size]
    if self._has_checksums and zlib.crc32(data) != member.crc:
      raise TorchFileError(
        f"checksum of {shown.value(member.name)} differs: damaged file"
      )
    return data

  def verify(self, progress: Callable[[int], Any] = lambda _: None) -> None:
    """Reads the whole file and compares the checksum of every member.

    Progress is called with the number of bytes read since the last call.

    Raises:
      TorchFileError: Naming the members that differ.
    """
    # Through the file, not the map: a fault of the disk is then an OSError
    # with a message, and no SIGBUS.
    bad = []
    with open(self.path, "rb") as file:
      for member in self._members.values():
        file.seek(member.start)
        crc, left = 0, member.size
        while left:
          chunk = file.read(min(left, _CHUNK))
          if not chunk:
            break
          crc, left = zlib.crc32(chunk, crc), left - len(chunk)
          progress(len(chunk))
        if left or (self._has_checksums and crc != member.crc):
          bad.append(member.name)
    if bad:
      raise TorchFileError(f"damaged, checksums differ of {shown.some(bad)}")

  def release(self) -> None:
    """Lets the system drop the pages of the file that were read so far."""
    drop_pages(self._map)


def drop_pages(data: mmap.mmap) -> None:
  """Lets the system drop the pages of a mapped file that were read so far."""
  # Else the resident memory of a conversion grows to twice the weights.
  if hasattr(mmap, "MADV_DONTNEED"):
    data.madvise(mmap.MADV_DONTNEED)


def _map(file: BinaryIO) -> tuple[mmap.mmap, bool]:
  """(the mapped file, whether PyTorch before 1.6 wrote it)."""
  head = file.read(512)
  if not head:
    raise TorchFileError("the file is empty")
  legacy = torch_legacy.MAGIC in head[:64]
  if head[257:262] == b"ustar":
    raise TorchFileError(
      "in PyTorch's format of before version 0.1.10. Re-save it with PyTorch:"
      " torch.save(torch.load(path, weights_only=True), new_path)"
    )
  if head[:4] != _ZIP_MAGIC and not legacy:
    raise TorchFileError(f"not a PyTorch file, it begins with {head[:12]!r}")
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), legacy


def load(path: str | os.PathLike) -> Any:
  """What torch.save saved, with tensors as read-only numpy views of the file.

  Raises:
    FileNotFoundError: If there is none.
    TorchFileError: Naming the file and what is wrong with it.
  """
  return TorchFile(path).value
