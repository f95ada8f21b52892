"""Files written whole or not at all, and common questions about them.

In a bucket each file is written so by itself; see `bucket` for directories.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gmem_jax.files import bucket, disk, paths, shown

# Bytes of JSON that are read where no more are expected: the worst of it takes
# 34 times as much memory as values.
LARGEST = 24 << 20
# Key of an object -> type of its value.
Keys = Mapping[str, Any]


def new_path(text: str | os.PathLike, *, directory: bool = False) -> paths.Path:
  """Checks, before the work, that its result can be written to a path.

  Missing folders above it are made by what writes there.

  Args:
    text: As the user gave it; errors repeat it.
    directory: A directory is to be written, which may replace an empty one.

  Returns:
    The path, absolute.

  Raises:
    FileExistsError: If something is there.
    OSError: If it cannot be made there.
  """
  path = paths.of(text)
  empty = directory and path.is_dir() and not any(path.iterdir())
  if path.exists() and not empty:
    raise FileExistsError(f"{text} already exists; it is left as it is")
  above = existing_folder(path.parent, os.fspath(text))
  if above is None:
    return path
  if not os.access(above, os.W_OK | os.X_OK):
    raise PermissionError(f"{text}: there is no right to write to {above}")
  return path


def existing_folder(path: paths.Path, name: str) -> pathlib.Path | None:
  """The nearest folder that exists, at a path or above it.

  None in a bucket: it has no folders, and says who may write on writing.

  Raises:
    NotADirectoryError: If a file is in the way; `name` begins the message.
  """
  if not isinstance(path, pathlib.Path):
    return None
  found = next(each for each in (path, *path.parents) if each.exists())
  if not found.is_dir():
    raise NotADirectoryError(f"{name}: {found} is a file, not a directory")
  return found


@contextlib.contextmanager
def replacing(path: paths.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write a file or a new directory to; renames it in the end.

  The path given is of this machine; of a bucket, what is there is then copied.

  A reader sees the old file or the whole new one, also if several write at
  once. After an error, or a kill, the old one stays; a kill leaves what was
  written so far as a hidden file, see `leftovers`. Missing folders above it are
  made.
  """
  if not isinstance(path, pathlib.Path):
    with bucket.uploading(path) as temporary:
      yield temporary
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # Beside the file, since only within a file system a rename is atomic. Random,
  # as process numbers repeat on the hosts that share a disk. Some libraries
  # choose the format by the suffix, so it stays.
  name = f".{path.stem}.tmp-{uuid.uuid4().hex[:8]}{path.suffix}"
  temporary = path.with_name(name)
  try:
    with disk.named(path):
      yield temporary
      temporary.replace(path)
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    temporary.unlink(missing_ok=True)


def partial(path: paths.Path) -> pathlib.Path:
  """Where long work on a path keeps what it has done, to go on after a kill."""
  if isinstance(path, pathlib.Path):
    return path.with_name(f".{path.name}.partial")
  digest = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
  return bucket.user_cache() / "partial" / digest


def leftovers(directory: paths.Path) -> list[pathlib.Path]:
  """Temporary files of `replacing`; those of killed processes stay."""
  if not isinstance(directory, pathlib.Path):
    return []
  return sorted(directory.glob(".*.tmp-*"))


def write_text(path: paths.Path, text: str) -> None:
  """Writes a small file whole or not at all."""
  with replacing(path) as temporary, temporary.open("w") as file:
    file.write(text)
    # On the disk before the name, or a power cut could leave an empty file.
    file.flush()
    os.fsync(file.fileno())


def write_json(path: paths.Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(
  path: paths.Path, keys: Keys | None = None, *, largest: int = LARGEST
) -> dict[str, Any]:
  """Reads what `write_json` wrote, an object; the only reader of JSON files.

  Args:
    path: Read up to `largest` bytes and one more.
    keys: What it must hold; see `check_keys`.
    largest: Bytes that it may have.

  Raises:
    ValueError: Naming the file, if it is missing or damaged.
  """
  try:
    with path.open("rb") as file:
      text = file.read(largest + 1)
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  return check_keys(parse_json(text, str(path), largest), keys or {}, str(path))


def parse_json(text: str | bytes, where: str, largest: int = LARGEST) -> Any:
  """Reads JSON out of a file that may have been made to harm.

  NaN and infinity are refused, which JSON does not know, and so are integers of
  more than 64 bits.

  Args:
    text: From any source; bytes are UTF-8, -16 or -32.
    where: Names it in errors.
    largest: Characters that it may have.

  Raises:
    ValueError: Naming it, if it is damaged.
  """
  try:
    if len(text) > largest:
      raise ValueError(f"it has more than {largest:,} bytes")
    return json.loads(
      text, parse_constant=_float, parse_float=_float, parse_int=_int
    )
  # Nesting a thousand deep is damage too.
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where} is damaged: {error}") from None


def _float(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise ValueError(f"it holds the number {text[:20]}")
  return number


def _int(text: str) -> int:
  if len(text) > 20:  # Of 64 bits, with a sign.
    raise ValueError(f"it holds an integer of {len(text):,} digits")
  return int(text)


def check_keys(value: Any, keys: Keys, where: str) -> dict[str, Any]:
  """Checks that a value out of JSON is an object that has certain keys.

  Args:
    value: Parsed JSON; anything but an object is refused.
    keys: Key -> type of its value; a bool is no int here.
    where: Names it in errors.

  Returns:
    The value.

  Raises:
    ValueError: Naming it, and the key that is missing or of another type.
  """
  if not isinstance(value, dict):
    found = type(value).__name__
    raise ValueError(f"{where} is damaged: it holds a {found}, not an object")
  for key, kind in keys.items():
    if key not in value:
      raise ValueError(f"{where} is damaged: it has no {key!r}")
    found = value[key]
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
      raise ValueError(
        f"{where} is damaged: its {key!r} is {shown.value(found)}"
      )
  return value


def differences(
  stored: Mapping[str, Any],
  given: Mapping[str, Any],
  *,
  prefix: str = "",
  ignored: Sequence[str] = (),
) -> list[str]:
  """Lists the keys in which stored settings differ from those given now.

  Keys that begin with one of `ignored` may differ. Each difference is a line,
  sorted by key and indented by two blanks, with `prefix` before the key; those
  inside of settings that both have are listed by dotted keys.
  """
  # As the stored ones went: JSON makes lists of tuples.
  given = json.loads(json.dumps(given))
  lines: list[str] = []
  for key in sorted(stored.keys() | given.keys()):
    there, now = stored.get(key), given.get(key)
    if there == now or key.startswith(tuple(ignored)):
      continue
    if isinstance(there, dict) and isinstance(now, dict):
      lines += differences(there, now, prefix=f"{prefix}{key}.")
      continue
    lines.append(
      f"  {prefix}{shown.cut(key)}: {shown.value(there)} there,"
      f" {shown.value(now)} now"
    )
  return lines
