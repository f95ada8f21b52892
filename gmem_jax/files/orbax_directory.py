"""Directories that orbax wrote, read without trust.

Orbax parses JSON of any size, makes arrays as large as is declared there, and
raises of damage whatever its libraries raise, on a screen full of text.
"""

import contextlib
import logging
import math
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gmem_jax.files import paths, shown

# Bytes of a file that is no array data; those of the largest networks have less
# than one megabyte.
_LARGEST = 8 << 20
# Folders with the data of arrays.
_DATA = ("d", "ocdbt.process_")
# What arrays may unpack to besides twice the size of the directory.
UNPACKED = 1 << 29


# Of the arrays that orbax opens at once, the first that fails is raised, and
# orbax closes its loop without ending what reads the others. Whenever those are
# collected they find nobody to tell, and would fill the screen with that: those
# of Python's tasks, the coroutines, and those of tensorstore's threads.
_ABANDONED = ("was never retrieved", "Task was destroyed but it is pending")
logging.getLogger("asyncio").addFilter(
  lambda record: not any(text in record.getMessage() for text in _ABANDONED)
)
warnings.filterwarnings(
  "ignore", "coroutine '.*' was never awaited", RuntimeWarning
)
# Of shardings that are damaged, orbax tells the root logger and warns, too.
_ORBAX = str(pathlib.Path(ocp.__path__[0]).parents[1])
logging.getLogger().addFilter(
  lambda record: not record.pathname.startswith(_ORBAX)
)
warnings.filterwarnings("ignore", "Sharding info not provided", UserWarning)
_shown_before = sys.unraisablehook


def _show(unraisable: Any) -> None:
  """Python's own, for all but what reading leaves behind."""
  code = getattr(unraisable.object, "cr_code", None)
  is_orbax = code is not None and code.co_filename.startswith(_ORBAX)
  if not is_orbax and str(unraisable.exc_value) != "Event loop is closed":
    _shown_before(unraisable)


sys.unraisablehook = _show


@contextlib.contextmanager
def reading(path: paths.Path) -> Iterator[None]:
  """Turns what orbax raises of a damaged directory into one line.

  Raises:
    ValueError: Naming the directory, if it is damaged or none of orbax's.
  """
  _check_files(path)
  try:
    yield
  # Damage surfaces as anything from a missing file to a JSON error.
  except Exception as error:
    raise ValueError(
      f"{path} is damaged, or no checkpoint: {shown.cause(error)}"
    ) from error


def load(path: paths.Path, name: str) -> Any:
  """Reads one of the trees that orbax wrote to a directory by name.

  Raises:
    ValueError: Naming the directory, if it is damaged or has no such tree.
  """
  with reading(path):
    known = ocp.checkpointables_metadata(str(path)).metadata
    check_size(path, known[name])
    return ocp.load_checkpointables(str(path), {name: None})[name]


def check_size(path: paths.Path, arrays: Any) -> None:
  """Checks what arrays would take, before they are read.

  Args:
    path: The directory that has them.
    arrays: A tree of what orbax knows of them.

  Raises:
    ValueError: If that is many times what the directory has.
  """
  size = sum(
    math.prod(x.shape) * x.dtype.itemsize
    for x in jax.tree.leaves(arrays)
    if hasattr(x, "shape")
  )
  there = sum(size for _, size in paths.files(path))
  if size > 2 * there + UNPACKED:
    raise ValueError(
      f"its arrays have {size:,} bytes, many times its own {there:,}"
    )


def _check_files(path: paths.Path) -> None:
  """Refuses files that orbax would read for ever, or into all memory."""
  for file, size in paths.files(path):
    folders = file.parts[:-1]
    is_data = any(folder.startswith(_DATA) for folder in folders)
    # What others put beside is theirs.
    is_orbax = folders or file.name.startswith("_")
    if is_orbax and not is_data and size > _LARGEST:
      raise ValueError(
        f"{path / file} has {size:,} bytes, more than any of its kind"
      )
