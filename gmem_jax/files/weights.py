"""Converted weights on disk: trees of arrays with metadata as JSON.

What the converter writes and what training, sampling and evaluation read. A
file or directory holds named trees ("params", "bank", "stats", "buffers") and
one JSON object; its key "kind" says what the trees are of.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

FORMAT_VERSION = 1
FORMATS = ("orbax", "safetensors")
# Where a safetensors file keeps the metadata.
_HEADER_KEY = "gmem_jax"

Tree = Mapping[str, Any]


def save_converted(
  path: str | os.PathLike,
  trees: Mapping[str, Tree],
  metadata: Tree,
  file_format: str = "orbax",
) -> None:
  """Writes trees of arrays and their metadata, all or nothing.

  The arrays must not change while this runs: they are written from where they
  lie, without a copy.

  Args:
    path: a new directory (orbax) or file (safetensors).
    trees: nested dicts of numpy arrays, by the name of the tree.
    metadata: JSON-serialisable; "format_version" and "trees" are added.
    file_format: "orbax" or "safetensors".

  Raises:
    FileExistsError: there is something at `path`; an empty directory is fine.
    ValueError: another format.
  """
  if file_format not in FORMATS:
    raise ValueError(f"format {file_format!r} is not one of {FORMATS}")
  path = pathlib.Path(path).absolute()
  if path.is_dir() and not any(path.iterdir()):
    path.rmdir()
  if path.exists():
    raise FileExistsError(f"{path} already exists; it is left as it is")
  metadata = {
    "format_version": FORMAT_VERSION,
    "trees": list(trees),
    **metadata,
  }
  if file_format == "safetensors":
    _save_safetensors(path, trees, metadata)
    return
  context = ocp.Context()
  context.array.saving.use_compression = False
  context.memory.deepcopy_host_arrays = False
  with context:
    ocp.save_checkpointables(str(path), {**trees, "metadata": metadata})


def _save_safetensors(
  path: pathlib.Path, trees: Mapping[str, Tree], metadata: Tree
) -> None:
  flat: Any = flax.traverse_util.flatten_dict(dict(trees), sep="/")
  header = {_HEADER_KEY: json.dumps(metadata)}
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    safetensors.numpy.save_file(flat, partial, header)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def is_converted(path: str | os.PathLike) -> bool:
  """Whether `load_converted` can read a path, by its first bytes or names."""
  try:
    read_metadata(path)
  except (ValueError, OSError):
    return False
  return True


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what converted weights are, without reading any array.

  Args:
    path: what `save_converted` wrote.

  Returns:
    The metadata; "kind" and "trees" say what there is.

  Raises:
    FileNotFoundError: there is nothing at `path`.
    ValueError: it is something else.
  """
  path = pathlib.Path(path).absolute()
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist")
  if path.is_dir():
    if not (path / "metadata").is_dir():
      raise ValueError(f"{path} holds no converted weights")
    metadata = ocp.load_checkpointables(str(path), {"metadata": None})[
      "metadata"
    ]
  else:
    metadata = _safetensors_metadata(path)
  if not isinstance(metadata, dict) or "format_version" not in metadata:
    raise ValueError(f"{path} holds no converted weights")
  if metadata["format_version"] != FORMAT_VERSION:
    raise ValueError(
      f"{path} is of format {metadata['format_version']}, this version of "
      f"gmem_jax reads {FORMAT_VERSION}: convert the weights again"
    )
  return metadata


def _safetensors_metadata(path: pathlib.Path) -> Any:
  try:
    with safetensors.safe_open(path, "numpy") as file:
      header = file.metadata() or {}
  except safetensors.SafetensorError as e:
    raise ValueError(f"{path} holds no converted weights ({e})") from None
  return json.loads(header.get(_HEADER_KEY, "null"))


def load_converted(
  path: str | os.PathLike, tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads one tree and the metadata of converted weights.

  Args:
    path: what `save_converted` wrote.
    tree: name of the tree.

  Returns:
    (nested dict of numpy arrays, metadata).

  Raises:
    FileNotFoundError: there is nothing at `path`.
    ValueError: it holds no such tree, or is something else.
  """
  path = pathlib.Path(path).absolute()
  metadata = read_metadata(path)
  if tree not in metadata["trees"]:
    raise ValueError(
      f"{path} holds no {tree!r} but {', '.join(metadata['trees'])}: it is a "
      f"converted {metadata['kind']}"
    )
  if path.is_file():
    with safetensors.safe_open(path, "numpy") as file:
      names = list(file.keys())
      names = [n for n in names if n.startswith(f"{tree}/")]
      flat = {n: file.get_tensor(n) for n in names}
    return flax.traverse_util.unflatten_dict(flat, sep="/")[tree], metadata
  return ocp.load_checkpointables(str(path), {tree: None})[tree], metadata


def uncompressed() -> ocp.Context:
  """Orbax's context for arrays without compression.

  Several times faster to write and read, for a few percent of size.
  """
  context = ocp.Context()
  context.array.saving.use_compression = False
  return context


def save_tree(path: pathlib.Path, tree: Any, metadata: dict[str, Any]) -> None:
  """Writes one pytree of arrays with JSON beside it, atomically.

  Args:
    path: Directory to write; replaced if it exists.
    tree: Arrays.
    metadata: JSON.
  """
  with uncompressed():
    ocp.save(str(path), tree, overwrite=True, custom_metadata=metadata)


def holds_tree(path: pathlib.Path) -> bool:
  """Whether `save_tree` wrote a directory.

  Args:
    path: The directory.
  """
  try:
    return isinstance(ocp.metadata(str(path)).custom_metadata, dict)
  # What is no checkpoint shows as anything.
  except Exception:
    return False


def load_tree(
  path: pathlib.Path, sharding: jax.sharding.Sharding | None
) -> tuple[Any, dict[str, Any]]:
  """Reads what `save_tree` wrote.

  Args:
    path: The directory.
    sharding: Where every array goes; None: to the host, as numpy arrays.

  Returns:
    (nested dicts of arrays, metadata).

  Raises:
    ValueError: If there is nothing of the kind.
  """

  def target_of(x: Any) -> Any:
    if sharding is None:
      return np.ndarray
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  if not path.is_dir():
    raise ValueError(f"{path}: no such checkpoint directory")
  with uncompressed():
    stored = ocp.metadata(str(path))
    target = jax.tree.map(target_of, stored.metadata)
    return ocp.load(str(path), target), _json_dict(stored.custom_metadata)


def read_tree_metadata(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON that `save_tree` wrote beside a tree.

  Args:
    path: The directory.
  """
  return _json_dict(ocp.metadata(str(path)).custom_metadata)


def _json_dict(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"checkpoint metadata is {value!r}, not a table")
  return value
