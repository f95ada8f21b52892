"""From a recognised PyTorch file to converted weights."""

import concurrent.futures
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gmem_jax.convert import rules
from gmem_jax.convert.detect import Found
from gmem_jax.convert.manifest import Identity
from gmem_jax.convert.read import Source, WrongFile

# What the trees of each kind are called; a network's are "params".
_TREES = {
  "bank": "bank",
  "low_rank_bank": "bank",
  "latent_stats": "stats",
  "fid_stats": "stats",
}
# A configuration with more entries, or deeper, is none.
_CONFIG_ENTRIES, _CONFIG_DEPTH = 10_000, 16


@dataclasses.dataclass(frozen=True)
class Converted:
  """Weights as `gmem_jax.files.weights` keeps them.

  Attributes:
    trees: nested dicts of arrays, by name.
    metadata: what they are and where they come from, JSON.
  """

  trees: Mapping[str, Mapping[str, Any]]
  metadata: Mapping[str, Any]


def convert(
  source: Source,
  found: Found,
  identity: Identity,
  on_tensor: Callable[[int], Any] = lambda nbytes: None,
) -> Converted:
  """Converts what was found and identified in an open file.

  The tensors are read one after the other into the arrays that are returned;
  the pages of the file are given back as they are read, so that memory holds
  little more than the result.

  Args:
    source: the file.
    found: what it holds.
    identity: the network it is of.
    on_tensor: called after each tensor with its size in bytes.

  Returns:
    Arrays that own their memory, and their metadata.

  Raises:
    ValueError: the bank does not fit, or a tensor is larger than the file.
  """
  _refuse_expansion(source, found)

  def on_read(nbytes: int):
    source.release()
    on_tensor(nbytes)

  name = _TREES.get(found.kind, "params")
  with concurrent.futures.ThreadPoolExecutor(1) as background:
    digest = background.submit(_sha256, source.path)
    trees = {name: rules.to_flax(identity.table, found.tensors, on_read)}
    buffers = rules.buffers(identity.table, found.tensors)
    if buffers:
      trees["buffers"] = buffers
    if found.bank:
      trees["bank"] = release_bank(found.bank, identity.model)
    metadata = _metadata(source, found, identity, digest.result())
  if found.kind == "latent_stats" and not np.all(trees["stats"]["std"] > 0):
    raise WrongFile("has a standard deviation that is not positive")
  return Converted(trees, metadata)


def release_bank(
  bank: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Checks the bank that comes with the first release.

  Args:
    bank: "memorybank" [m, d] and "memoryfreq", m counts.
    model: configuration of the network; d is its `snippet_dim`.

  Returns:
    "rows" [m, d] and "counts" [m], int64: how often each row is drawn.

  Raises:
    ValueError: they are missing, do not fit, or there is something else.
  """
  extra = bank.keys() - {"memorybank", "memoryfreq"}
  rows, counts = bank.get("memorybank"), bank.get("memoryfreq")
  if extra or rows is None or counts is None:
    raise WrongFile(
      "a release holds network, memorybank and memoryfreq; here are network, "
      f"{', '.join(sorted(map(str, bank)))}"
    )
  width = model["snippet_dim"]
  if not isinstance(rows, np.ndarray) or rows.shape[1:] != (width,):
    raise WrongFile(f"memorybank is no tensor [rows, {width}]")
  try:
    counts = np.array(counts)
  except (ValueError, OverflowError) as e:
    raise WrongFile(f"memoryfreq is no list of numbers: {e}") from None
  if counts.dtype.kind not in "iu" or counts.shape != rows.shape[:1]:
    raise WrongFile(f"memoryfreq is not {len(rows)} integers, one for each row")
  if counts.min() < 0 or not counts.any():
    raise WrongFile("memoryfreq has a negative count, or none that is positive")
  return {"rows": np.array(rows, order="C"), "counts": counts.astype(np.int64)}


def _refuse_expansion(source: Source, found: Found) -> None:
  """A tensor with strides of 0 can be larger than the disk."""
  size = sum(tensor.nbytes for tensor in found.tensors.values())
  limit = 64 * source.path.stat().st_size
  if size > limit:
    raise WrongFile(
      f"its tensors have {size:,} bytes in a file of "
      f"{source.path.stat().st_size:,}: they repeat themselves"
    )


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _metadata(
  source: Source, found: Found, identity: Identity, digest: str
) -> dict[str, Any]:
  return {
    "kind": found.kind,
    "title": identity.title,
    "model": dict(identity.model),
    "weights": found.weights,
    "step": found.step,
    "source": {
      "file": source.path.name,
      "sha256": digest,
      "container": found.container,
      "config": plain_json(found.config),
    },
    "tensors": [[n, list(t.shape)] for n, t in found.tensors.items()],
  }


def plain_json(value: Any) -> Any:
  """A configuration from a file as JSON; None if it cannot be.

  Args:
    value: anything that a reader returned.

  Returns:
    Dicts with string keys, lists, strings, finite numbers, booleans and None.
  """
  budget = _CONFIG_ENTRIES

  def walk(value: Any, depth: int) -> Any:
    nonlocal budget
    budget -= 1
    if budget < 0 or depth > _CONFIG_DEPTH:
      raise ValueError
    if isinstance(value, Mapping):
      return {str(k): walk(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
      return [walk(v, depth + 1) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
      return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
      return value
    raise ValueError

  try:
    return walk(value, 0)
  except ValueError:
    return None
