"""Paths: of this machine, of buckets (gs://), and of the Hub (hf://).

`of` gives a `Path`: the standard library's, or for a bucket `etils.epath`'s,
which has the same methods. What a run writes goes where its path says, see
`atomic`. What a library wants as a file of this machine, to map it or to read
it at random, `local` fetches once.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from etils import epath

from gmem_jax.files import bucket, hub

Path = pathlib.Path | epath.Path


def of(text: str | os.PathLike) -> Path:
  """The path that a text names, absolute; ~ is not expanded.

  Raises:
    ModuleNotFoundError: If the extra `gcs` is needed, and not installed.
    ValueError: If the text is an address that names no place to write to.
  """
  given = os.fspath(text)
  if bucket.is_remote(given):
    bucket.require(given)
    return epath.Path(given)
  if isinstance(text, pathlib.Path):
    return text.absolute()
  if "://" in given:
    raise ValueError(
      f"{given}: a directory is needed, of this machine or of a bucket"
      f" ({bucket.SCHEME}BUCKET/PATH)"
    )
  return pathlib.Path(given).absolute()


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is of a bucket, or of the hub."""
  return bucket.is_remote(path) or hub.is_remote(path)


def exists(path: str | os.PathLike) -> bool:
  """Whether a path is there; an address of the hub is taken to be.

  What is missing elsewhere may be made, and nothing on the hub.
  """
  if not path or hub.is_remote(path):
    return bool(path)
  return of(path).exists()


def resolve(path: str | os.PathLike) -> Path:
  """The path, absolute; of what is on the hub, that of its copy here.

  Raises:
    ModuleNotFoundError: If an extra is needed, and not installed.
    ValueError: If it is on the hub and cannot be had.
  """
  return hub.local(path) if hub.is_remote(path) else of(path)


def local(path: str | os.PathLike, skip: Sequence[str] = ()) -> pathlib.Path:
  """The path on this machine, absolute; fetches what is elsewhere.

  Args:
    path: Of a file or a directory.
    skip: Patterns of names in a bucket's directory that are not needed.

  Raises:
    ModuleNotFoundError: If an extra is needed, and not installed.
    ValueError: If it is elsewhere and cannot be had; see `hub` and `bucket`.
  """
  if hub.is_remote(path):
    return hub.local(path)
  if bucket.is_remote(path):
    return bucket.local(os.fspath(path), skip)
  return pathlib.Path(path).absolute()


def size(path: Path) -> int:
  """Bytes of a file."""
  if isinstance(path, pathlib.Path):
    return path.stat().st_size
  return path.stat().length


def files(directory: Path) -> Iterator[tuple[pathlib.PurePath, int]]:
  """All files below a directory: (path below it, bytes).

  Raises:
    ValueError: Naming it, if one is no file, or a link that leads nowhere.
  """
  if isinstance(directory, epath.Path):
    yield from bucket.files(os.fspath(directory))
    return
  for file in directory.rglob("*"):
    if file.is_dir():
      continue
    if not file.is_file():
      raise ValueError(f"{file} is no file, or its link leads nowhere")
    yield file.relative_to(directory), file.stat().st_size


def remove(directory: Path) -> None:
  """Removes a directory with all that is in it."""
  if isinstance(directory, pathlib.Path):
    shutil.rmtree(directory)
  else:
    directory.rmtree()
