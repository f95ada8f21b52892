"""Files written whole or not at all, and common questions about them."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gmem_jax.files import disk


def new_path(
  text: str | os.PathLike, *, directory: bool = False
) -> pathlib.Path:
  """Checks, before the work, that its result can be written to a path.

  Missing folders above it are made by what writes there.

  Args:
    text: The path.
    directory: A directory is to be written, which may replace an empty one.

  Returns:
    The path, absolute.

  Raises:
    FileExistsError: If something is there.
    OSError: If it cannot be made there.
  """
  path = pathlib.Path(text).absolute()
  empty = directory and path.is_dir() and not any(path.iterdir())
  if path.exists() and not empty:
    raise FileExistsError(f"{text} already exists; it is left as it is")
  above = next(folder for folder in path.parents if folder.exists())
  if not above.is_dir():
    raise NotADirectoryError(f"{text}: {above} is a file, not a directory")
  if not os.access(above, os.W_OK | os.X_OK):
    raise PermissionError(f"{text}: there is no right to write to {above}")
  return path


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which takes the file's place in the end.

  A reader sees the old file or the whole new one, also if several write at
  once. After an error, or a kill, the old one stays; a kill leaves what was
  written so far as a hidden file, see `leftovers`. Missing folders above it are
  made.
  """
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
    temporary.unlink(missing_ok=True)


def leftovers(directory: pathlib.Path) -> list[pathlib.Path]:
  """Temporary files of `replacing`; those of killed processes stay."""
  return sorted(directory.glob(".*.tmp-*"))


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a small file whole or not at all."""
  with replacing(path) as temporary, temporary.open("w") as file:
    file.write(text)
    # On the disk before the name, or a power cut could leave an empty file.
    file.flush()
    os.fsync(file.fileno())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `write_json` wrote, an object; the only reader of JSON files.

  Raises:
    ValueError: Naming the file, if it is missing or damaged.
  """
  try:
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
      raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  # Nesting a thousand deep is damage too.
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None


def differences(
  stored: Mapping[str, Any],
  given: Mapping[str, Any],
  *,
  prefix: str = "",
  ignored: Sequence[str] = (),
) -> list[str]:
  """Lists the keys in which stored settings differ from those given now.

  Keys that begin with one of `ignored` may differ. Each difference is a line,
  sorted by key and indented by two blanks, with `prefix` before the key.
  """
  # As the stored ones went: JSON makes lists of tuples.
  given = json.loads(json.dumps(given))
  return [
    f"  {prefix}{key}: {stored.get(key)!r} there, {given.get(key)!r} now"
    for key in sorted(stored.keys() | given.keys())
    if stored.get(key) != given.get(key) and not key.startswith(tuple(ignored))
  ]
