"""Reads the files of PyTorch before version 1.6, without torch.

FID's published Inception weights are such a file. It is five pickles in a row:
a number that marks the format, its version, the sizes of the machine's
integers, the value, and the names of the storages. Then the storages in that
order, each as its number of elements and their bytes. There are no checksums.
"""

import mmap
import pickletools
import struct
from collections.abc import Callable
from typing import Any, cast, IO

from gmem_jax.files import shown
from gmem_jax.files.torch_reader import inert_pickle, torch_types

# The number's pickle, and the number.
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NUMBER, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_COUNT = struct.Struct("<q")
# Only the value's pickle can be large.
_SMALL = 1 << 26


def load(buffer: mmap.mmap) -> Any:
  """What torch.save saved, with tensors as views of the mapped file.

  Raises:
    ValueError: If the file is damaged or has what is not accepted.
  """
  number, place = _plain(buffer, 0)
  version, place = _plain(buffer, place)
  machine, place = _plain(buffer, place)
  if (number, version) != (_NUMBER, _VERSION):
    raise inert_pickle.PickleError(
      f"an old PyTorch file of version {shown.value(version)}; {_VERSION} is"
      " read"
    )
  if not isinstance(machine, dict) or machine.get("little_endian") is not True:
    raise inert_pickle.PickleError("written on a big-endian machine")
  end = _end(buffer, place)
  program = buffer[place:end]

  def read(storage: Callable[[Any, torch_types.StorageType, int], Any]) -> Any:
    def persistent(pid: Any) -> Any:
      kind, key, _, numel, *view = torch_types.storage(pid)
      if any(part is not None for part in view):
        raise inert_pickle.PickleError(
          "storages that share memory, as PyTorch before 0.4 wrote them"
        )
      return storage(key, kind, numel)

    return inert_pickle.load(
      program, known=torch_types.known(buffer), persistent=persistent
    )

  storages: dict[Any, torch_types.Storage] = {}

  def note(key, kind, numel):
    # At the file's beginning: only the sizes matter in this pass.
    storage = torch_types.Storage(kind.dtype, numel, 0)
    storage.check(len(buffer), key)
    if storages.setdefault(key, storage) != storage:
      raise inert_pickle.PickleError(
        f"storage {shown.value(key)} has two sizes"
      )
    return storage

  # Twice: the places of the storages follow from their sizes and order, which
  # stand in the value and behind it.
  read(note)
  names, place = _plain(buffer, end)
  placed = _place(buffer, storages, names, place)
  return read(lambda key, kind, numel: placed[key])


def _place(
  buffer: mmap.mmap,
  storages: dict[Any, torch_types.Storage],
  names: Any,
  place: int,
) -> dict[Any, torch_types.Storage]:
  """The storages with their places, checked to fill the rest of the file."""
  if not isinstance(names, list) or sorted(names) != sorted(storages):
    raise inert_pickle.PickleError("the list of storages is damaged")
  # Each has its number of elements before its bytes.
  sizes = (s.numel * s.dtype.itemsize for s in storages.values())
  expected = place + _COUNT.size * len(storages) + sum(sizes)
  if len(buffer) < expected:
    raise inert_pickle.PickleError(
      f"cut off: {len(buffer):,} bytes of {expected:,}"
    )
  placed = {}
  for name in names:
    (count,) = _COUNT.unpack(buffer[place : place + _COUNT.size])
    dtype, numel = storages[name].dtype, storages[name].numel
    if count != numel:
      raise inert_pickle.PickleError(
        f"storage {shown.value(name)} has {count} elements, {numel} are"
        " expected"
      )
    place += _COUNT.size
    placed[name] = torch_types.Storage(dtype, numel, place)
    place += numel * dtype.itemsize
  if place != len(buffer):
    raise inert_pickle.PickleError(
      f"{len(buffer) - place} bytes follow the last storage"
    )
  return placed


def _end(buffer: mmap.mmap, place: int) -> int:
  """Where the pickle that begins somewhere ends."""
  buffer.seek(place)
  try:
    # A map reads like a file, though its type does not say so.
    for _ in pickletools.genops(cast(IO[bytes], buffer)):
      pass
  except ValueError as e:
    raise inert_pickle.PickleError(
      f"cut off or damaged: {len(buffer):,} bytes, and the pickle at byte"
      f" {place:,} does not end ({e})"
    ) from e
  return buffer.tell()


def _plain(buffer: mmap.mmap, place: int) -> tuple[Any, int]:
  """(the value of a pickle without tensors, where it ends)."""
  end = _end(buffer, place)
  if end - place > _SMALL:
    raise inert_pickle.PickleError(f"a header of {end - place} bytes")

  def persistent(pid: Any) -> Any:
    raise inert_pickle.PickleError(f"a header that names {shown.value(pid)}")

  value = inert_pickle.load(buffer[place:end], known={}, persistent=persistent)
  return value, end
