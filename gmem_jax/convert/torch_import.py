"""From a recognised PyTorch file to converted weights."""

import concurrent.futures
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gmem_jax.convert import rules
from gmem_jax.convert.detect import Contents
from gmem_jax.convert.manifest import Identity
from gmem_jax.convert.read import OpenFile, WrongFile
from gmem_jax.files import shown

# What the trees of each kind are called; a network's are "params".
_TREES = {
  "bank": "bank",
  "low_rank_bank": "bank",
  "latent_stats": "stats",
  "fid_stats": "stats",
}
# A configuration with more entries, or deeper, is none: a few bytes of a pickle
# can stand for a tree without end.
_CONFIG_ENTRIES, _CONFIG_DEPTH, _CONFIG_TEXT = 10_000, 16, 100
# Bytes that tensors may have besides twice the file's: some share their bytes.
_REPEATED = 1 << 29
# Elements that are looked at together.
_PIECE = 1 << 20


def convert(
  source: OpenFile,
  contents: Contents,
  identity: Identity,
  on_tensor: Callable[[int], Any] = lambda nbytes: None,
  *,
  allow_nonfinite: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts what was recognised and identified in an open file.

  The tensors are read one after the other into the arrays that are returned,
  and the pages of the file are given back as they are read: memory holds little
  more than the result. `on_tensor` is called after each with its size in bytes.

  Returns:
    (trees of arrays by name, metadata), for `files.weights` to save. The
    metadata's "nonfinite" names the tensors that hold NaN or infinity, with
    their number.

  Raises:
    ValueError: The bank does not fit, the tensors are larger than the file, or
      values are NaN or infinite and that is not allowed.
  """
  _refuse_expansion(source, contents)
  nonfinite: dict[str, int] = {}

  def check(name: str, array: np.ndarray):
    count = _count_nonfinite(array)
    if count:
      nonfinite[name] = count

  def on_read(name: str, array: np.ndarray):
    check(name, array)
    # Else the pages read stay resident beside the result.
    source.release()
    on_tensor(array.nbytes)

  name = _TREES.get(contents.kind, "params")
  # Beside the conversion: both read the file, and hashing holds no lock.
  with concurrent.futures.ThreadPoolExecutor(1) as background:
    digest = background.submit(_sha256, source.files)
    trees = {name: rules.to_flax(identity.table, contents.tensors, on_read)}
    buffers = rules.buffers(identity.table, contents.tensors)
    if buffers:
      trees["buffers"] = buffers
    for buffer, array in buffers.items():
      check(buffer, array)
    if contents.bank:
      trees["bank"] = release_bank(contents.bank, identity.model)
      check("memorybank", trees["bank"]["rows"])
    metadata = _metadata(source, contents, identity, digest.result())
  if nonfinite and not allow_nonfinite:
    raise WrongFile(
      f"holds NaN or infinity in {describe_nonfinite(nonfinite)}; give"
      " --allow-nonfinite to convert it all the same"
    )
  if contents.kind == "latent_stats" and not np.all(trees["stats"]["std"] > 0):
    raise WrongFile("has a standard deviation that is not positive")
  return trees, {**metadata, "nonfinite": nonfinite}


def _count_nonfinite(array: np.ndarray) -> int:
  """How many elements are NaN or infinite."""
  flat = array.reshape(-1)
  # In pieces: a mask of a whole bank would take a quarter of its memory again.
  pieces = (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE))
  return sum(int(np.count_nonzero(~np.isfinite(piece))) for piece in pieces)


def describe_nonfinite(counts: Mapping[str, int]) -> str:
  """How many values of which tensors, for a message."""
  named = shown.some(f"{name} ({count:,})" for name, count in counts.items())
  return f"{sum(counts.values()):,} values of {len(counts)} tensor(s): {named}"


def release_bank(
  bank: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Checks the bank that comes with the first release.

  Args:
    bank: "memorybank" [m, d] and "memoryfreq", m counts.
    model: Configuration of the network; d is its `snippet_dim`.

  Returns:
    "rows" [m, d] and "counts" [m], int64: how often each row is drawn.

  Raises:
    WrongFile: They are missing, do not fit, or there is something else.
  """
  # Anything else could be a second bank of which nobody would notice the loss.
  extra = bank.keys() - {"memorybank", "memoryfreq"}
  rows, counts = bank.get("memorybank"), bank.get("memoryfreq")
  if extra or rows is None or counts is None:
    raise WrongFile(
      "a release holds network, memorybank and memoryfreq; here are network,"
      f" {shown.some(sorted(map(str, bank)))}"
    )
  width = model["snippet_dim"]
  if not isinstance(rows, np.ndarray) or rows.shape[1:] != (width,):
    raise WrongFile(f"memorybank is no tensor [rows, {width}]")
  try:
    # Numpy would walk into lists of lists, which may name each other.
    if not isinstance(counts, np.ndarray) and any(
      not isinstance(count, (int, float)) for count in counts
    ):
      raise TypeError("it holds something else")
    counts = np.array(counts)
  except (ValueError, OverflowError, TypeError) as e:
    raise WrongFile(f"memoryfreq is no list of numbers: {e}") from None
  if counts.dtype.kind not in "iu" or counts.shape != rows.shape[:1]:
    raise WrongFile(f"memoryfreq is not {len(rows)} integers, one for each row")
  if counts.min() < 0 or not counts.any():
    raise WrongFile("memoryfreq has a negative count, or none that is positive")
  return {"rows": np.array(rows, order="C"), "counts": counts.astype(np.int64)}


def _refuse_expansion(source: OpenFile, contents: Contents) -> None:
  """A tensor with strides of 0 can be larger than the disk."""
  size = sum(tensor.nbytes for tensor in contents.tensors.values())
  if size > 2 * source.nbytes + _REPEATED:
    raise WrongFile(
      f"its tensors have {size:,} bytes in a file of {source.nbytes:,}: they"
      " repeat themselves"
    )


def _sha256(paths: Iterable[pathlib.Path]) -> str:
  """The digest of a file, or of several as if they were one."""
  digest = hashlib.sha256()
  for path in paths:
    with open(path, "rb") as file:
      hashlib.file_digest(file, lambda: digest)
  return digest.hexdigest()


def _metadata(
  source: OpenFile, contents: Contents, identity: Identity, digest: str
) -> dict[str, Any]:
  return {
    "kind": contents.kind,
    "title": identity.title,
    "model": dict(identity.model),
    "weights": contents.weights,
    "step": contents.step,
    "source": {
      "file": source.path.name,
      "sha256": digest,
      "container": contents.container,
      "config": plain_json(contents.config),
    },
    # The order and shapes of the file, to write the same one back.
    "tensors": [[n, list(t.shape)] for n, t in contents.tensors.items()],
  }


def plain_json(value: Any) -> Any:
  """A configuration from a file as JSON; None if it cannot be.

  The result has dicts with string keys, lists, strings, finite numbers,
  booleans and None.
  """
  # Of the whole walk: each level may name the next one ten times.
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
    # JSON has no infinity.
    if isinstance(value, float) and not math.isfinite(value):
      return str(value)
    if isinstance(value, str):
      budget -= len(value) // _CONFIG_TEXT
    if isinstance(value, int) and value.bit_length() > 64:
      raise ValueError
    if value is None or isinstance(value, (str, bool, int, float)):
      return value
    raise ValueError

  try:
    return walk(value, 0)
  except ValueError:
    return None
