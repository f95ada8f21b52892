"""Files written whole or not at all, and common questions about them."""

import contextlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which takes the file's place in the end.

  A reader sees the old file or the whole new one. After an error, or a kill,
  the old one stays.
  """
  # Beside the file, since only within a file system a rename is atomic. Some
  # libraries choose the format by the suffix, so it stays.
  temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a small file whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: Naming the file, if it is missing or damaged.
  """
  try:
    return json.loads(path.read_text())
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


def array_names(path: str | os.PathLike) -> list[str]:
  """Names of the arrays in an .npz.

  Raises:
    ValueError: If it is not an .npz file.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except (zipfile.BadZipFile, OSError) as error:
    raise ValueError(f"{path} is no .npz file: {error}") from None
  return [name.removesuffix(".npy") for name in names]
