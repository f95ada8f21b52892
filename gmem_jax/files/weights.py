"""Trees of arrays with JSON beside them, on disk.

Converted weights: what `python -m gmem_jax.convert` writes, for training,
sampling and evaluation to read. A file or directory has named trees ("params",
"bank", "stats", "buffers") and metadata, whose key "kind" says what they are.
`load_converted` gives numpy arrays.

A run's tree: one pytree of a running program (its bank, say) with metadata.
Every process writes and reads its shards of it, see `save_tree`.

Digests of such trees tell whether what was read is what was written.
"""

import copy
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from gmem_jax.files import (
  atomic,
  disk,
  orbax_directory,
  paths,
  safetensors_file,
  shown,
)

FORMAT_VERSION = 1
FORMATS = ("orbax", "safetensors")
# Where a safetensors file keeps the metadata.
_HEADER_KEY = "gmem_jax"
# What the metadata of converted weights must have.
_KEYS: atomic.Keys = {
  "format_version": int, "kind": str, "title": str, "trees": list,
  "source": dict, "weights": (str, NoneType), "step": (int, NoneType),
}  # fmt: skip
_SOURCE: atomic.Keys = {"file": str, "sha256": str}
Tree = Mapping[str, Any]


def _uncompressed() -> ocp.Context:
  """Orbax's context for arrays without compression.

  Several times faster to write and read, for a few percent of size.
  """
  context = ocp.Context()
  context.array.saving.use_compression = False
  return context


def save_converted(
  path: str | os.PathLike,
  trees: Mapping[str, Tree],
  metadata: Tree,
  file_format: str = "orbax",
) -> None:
  """Writes trees of numpy arrays and their metadata, all or nothing.

  Args:
    path: A new or empty directory (orbax), or a new file (safetensors).
    trees: Name of the tree -> nested dicts of arrays. They must not change
      while this runs: no copy is made.
    metadata: JSON; "format_version" and "trees" are added.
    file_format: One of `FORMATS`.

  Raises:
    OSError: If the path is taken, or cannot be made.
    ValueError: For another format.
  """
  if file_format not in FORMATS:
    raise ValueError(f"format {file_format!r} is not one of {FORMATS}")
  path = atomic.new_path(path, directory=file_format == "orbax")
  if path.is_dir():
    path.rmdir()
  added = {"format_version": FORMAT_VERSION, "trees": list(trees)}
  metadata = {**added, **metadata}
  if file_format == "safetensors":
    flat: Any = flax.traverse_util.flatten_dict(dict(trees), sep="/")
    header = {_HEADER_KEY: json.dumps(metadata)}
    with atomic.replacing(path) as temporary:
      safetensors.numpy.save_file(flat, temporary, header)
    return
  context = _uncompressed()
  # The copy guards against changes during an asynchronous save. This one
  # blocks, and a second network in memory is what the converter cannot afford.
  context.memory.deepcopy_host_arrays = False
  # Orbax, too, writes beside the path and renames in the end; but two processes
  # would write to one place.
  with atomic.replacing(path) as temporary:
    try:
      with context, disk.named(path):
        ocp.save_checkpointables(
          str(temporary), {**trees, "metadata": metadata}
        )
    except BaseException:
      # Where a disk is full, what cannot be used must not take the room.
      shutil.rmtree(f"{temporary}.orbax-checkpoint-tmp", ignore_errors=True)
      raise
    # Orbax notes where it wrote, which is of this machine alone.
    if (marker := temporary / "commit_success.txt").exists():
      marker.write_text(f"Checkpoint commit was successful to {path.name}")


def is_converted(path: str | os.PathLike) -> bool:
  """Whether a path looks like converted weights: by its parts or metadata."""
  path = paths.resolve(path)  # What fails here says nothing about the weights.
  if path.is_dir():
    return (path / "metadata").is_dir()
  try:
    _metadata(paths.local(path))
  except (ValueError, OSError):
    return False
  return True


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the metadata of converted weights, and no array.

  Raises:
    FileNotFoundError: If the path does not exist.
    ValueError: If it is anything else.
  """
  path = paths.local(path)
  metadata = _metadata(path)
  if metadata["format_version"] != FORMAT_VERSION:
    raise ValueError(
      f"{path} is of format {shown.value(metadata['format_version'])}, this"
      f" version of gmem_jax reads {FORMAT_VERSION}: convert the weights again"
    )
  where = f"metadata of {path}"
  atomic.check_keys(metadata, _KEYS, where)
  if not all(isinstance(tree, str) for tree in metadata["trees"]):
    raise ValueError(f"{where} is damaged: not all of its trees have names")
  atomic.check_keys(metadata["source"], _SOURCE, where)
  tensors = metadata.get("tensors", [])
  if not isinstance(tensors, list | tuple) or not all(map(_is_named, tensors)):
    raise ValueError(f"{where} is damaged: not all of its tensors have shapes")
  return metadata


def _is_named(tensor: Any) -> bool:
  """Whether it is the name and the shape of a tensor."""
  match tensor:
    case [str(), [*sizes]]:
      return all(isinstance(size, int | np.integer) for size in sizes)
  return False


def _metadata(path: pathlib.Path) -> dict[str, Any]:
  """The metadata of converted weights, of any version."""
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist")
  if path.is_file():
    metadata = _safetensors_metadata(path)
  # Asked for first: orbax's own error fills a screen.
  elif (path / "metadata").is_dir():
    files = (file for file in path.rglob("*") if file.is_file())
    stats = ((str(file), file.stat()) for file in sorted(files))
    state = tuple((name, s.st_mtime_ns, s.st_size) for name, s in stats)
    metadata = copy.deepcopy(_orbax_metadata(path, state))
  else:
    metadata = None
  if not isinstance(metadata, dict) or "format_version" not in metadata:
    raise ValueError(f"{path} holds no converted weights")
  return metadata


# A start asks several times, and orbax takes half a second for the strings.
@functools.lru_cache(maxsize=16)
def _orbax_metadata(path: pathlib.Path, state: tuple[Any, ...]) -> Any:
  """The metadata in a directory; `state` changes with its files."""
  del state
  return orbax_directory.load(path, "metadata")


def _safetensors_metadata(path: pathlib.Path) -> Any:
  try:
    header = safetensors_file.SafetensorsFile(path).metadata
  except ValueError as e:
    raise ValueError(f"{path} holds no converted weights ({e})") from None
  text = header.get(_HEADER_KEY, "null")
  return atomic.parse_json(text, f"metadata of {path}")


def load_converted(
  path: str | os.PathLike, tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads one tree of converted weights: (nested dicts of arrays, metadata).

  Raises:
    FileNotFoundError: If the path does not exist.
    ValueError: If it has no such tree, or is anything else.
  """
  path = paths.local(path)
  metadata = read_metadata(path)
  if tree not in metadata["trees"]:
    raise ValueError(
      f"{path} holds no {tree!r} but {shown.some(metadata['trees'])}: it is a"
      f" converted {shown.cut(metadata['kind'])}"
    )
  if path.is_file():
    tensors = safetensors_file.SafetensorsFile(path).tensors.items()
    # Copies: the file may be replaced while they are in use.
    flat = {n: np.array(a) for n, a in tensors if n.startswith(f"{tree}/")}
    # A hostile file's names may be of an array and of a part of it.
    try:
      return flax.traverse_util.unflatten_dict(flat, sep="/")[tree], metadata
    except (LookupError, TypeError, ValueError):
      raise ValueError(
        f"{path} is damaged: its arrays make no {shown.value(tree)}"
      ) from None
  return orbax_directory.load(path, tree), metadata


def load_kind(
  path: str, kinds: Sequence[str], tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """As `load_converted`, to compute with; 8-bit floats become float32.

  Raises:
    ValueError: As there, and if the kind is none of `kinds`.
  """
  # Once: the hub may be changed between two answers.
  path = str(paths.local(path))
  check_kind(read_metadata(path)["kind"], kinds)
  arrays, metadata = load_converted(path, tree)
  return jax.tree.map(_widened, arrays), metadata


def check_kind(kind: str, kinds: Sequence[str]) -> None:
  """Refuses weights of another kind.

  Raises:
    ValueError: Saying what they are.
  """
  if kind not in kinds:
    raise ValueError(f"it is a {shown.cut(kind)}, not a {' or '.join(kinds)}")


def _widened(array: np.ndarray) -> np.ndarray:
  # JAX promotes 16-bit floats by itself, but not these.
  is_float8 = array.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.floating)
  return array.astype(np.float32) if is_float8 else array


def load_configured(
  key: str, path: str, kinds: Sequence[str], tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the converted weights, of certain kinds, that a config's key names.

  Raises:
    ValueError: Naming the key, if there is nothing or something else.
  """
  expected = " or ".join(kinds)
  if not path:
    raise ValueError(
      f"config.{key} is empty: it must name a {expected} that"
      " `python -m gmem_jax.convert` wrote"
    )
  try:
    return load_kind(path, kinds, tree)
  except (ValueError, OSError) as error:
    raise ValueError(f"config.{key}={path!r}: {error}") from None


def origin(metadata: dict[str, Any]) -> dict[str, Any]:
  """What identifies converted weights in a record of samples."""
  source = metadata["source"]
  return {
    "title": metadata["title"],
    "file": source["file"],
    "sha256": source["sha256"],
    "weights": metadata["weights"],
    "step": metadata["step"],
  }


def save_tree(path: paths.Path, tree: Any, metadata: dict[str, Any]) -> None:
  """Writes a run's tree, and JSON, atomically; all processes call it.

  The path is a directory, replaced if it exists; the arrays are on any mesh.
  """
  with _uncompressed(), disk.named(path):
    ocp.save(str(path), tree, overwrite=True, custom_metadata=metadata)


def holds_tree(path: paths.Path) -> bool:
  """Whether `save_tree` wrote a directory."""
  try:
    read_tree_metadata(path)
  except ValueError:
    return False
  return True


def load_tree(
  path: paths.Path,
  sharding: jax.sharding.Sharding | None,
  names: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
  """Reads what `save_tree` wrote: (nested dicts of arrays, metadata).

  Every array gets the sharding; None gives numpy arrays. Of the outermost dict
  `names` alone are read, if any.

  Raises:
    ValueError: If there is nothing of the kind.
  """

  def target_of(x: Any) -> Any:
    if sharding is None:
      return np.ndarray
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  if not path.is_dir():
    raise ValueError(f"{path}: no such checkpoint directory")
  with orbax_directory.reading(path), _uncompressed():
    stored = ocp.metadata(str(path))
    orbax_directory.check_size(path, stored.metadata)
    target = jax.tree.map(target_of, stored.metadata)
    left = {n: ocp.PLACEHOLDER for n in target if n not in (names or target)}
    tree = ocp.load(str(path), target | left)
    tree = {name: x for name, x in tree.items() if name not in left}
    return tree, _json_dict(stored.custom_metadata)


def read_tree_metadata(path: paths.Path) -> dict[str, Any]:
  """Reads the metadata that `save_tree` wrote, and no array."""
  with orbax_directory.reading(path):
    return _json_dict(ocp.metadata(str(path)).custom_metadata)


def _json_dict(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"its metadata is {shown.value(value)}, not a table")
  return value
