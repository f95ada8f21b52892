"""Writes converted weights back as a file that torch.load opens, without torch.

The file is what torch.save would write: a zip of uncompressed members, the
first of which is a pickle that refers to the bytes of the others. It loads with
weights_only=True, in the layout that the published code expects.
"""

import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gmem_jax.convert import rules
from gmem_jax.convert.names import (
  dinov2,
  dit,
  efficientnet,
  inception,
  tables,
  vae,
)
from gmem_jax.convert.rules import Rule
from gmem_jax.files import atomic, shown
from gmem_jax.files.torch_reader import torch_types

# PyTorch's own. It lets torch.load(mmap=True) and numpy use the bytes in place.
_ALIGNMENT = 64
_ROOT = "archive"
_TABLES: Mapping[str, Sequence[Rule]] = {
  **dit.TABLES,
  "vae": vae.LDM,
  "dinov2": dinov2.RULES,
  "efficientnet_lite0": efficientnet.RULES,
  "inception": inception.RULES,
  "bank": tables.BANK,
  "low_rank_bank": tables.LOW_RANK_BANK,
  "latent_stats": tables.LATENT_STATS,
}


def published_value(
  trees: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Any]
) -> Any:
  """What a PyTorch file of converted weights contains.

  The value is containers and numpy arrays, in the layout of the published file.
  A trainer's file comes back as the plain state dict that was converted, and so
  do weights that never were in a file, such as random ones.

  Raises:
    ValueError: There is no PyTorch file of this kind.
    NamesError: Parameters are missing, unexpected or misshapen.
  """
  kind, container = metadata["kind"], metadata["source"].get("container")
  if kind == "fid_stats":
    raise ValueError("FID statistics are an npz, there is no PyTorch file")
  if kind == "patch_pca":
    raise ValueError("no published network reads a fitted tokenizer")
  if kind == "sit" and metadata.get("exported"):
    raise ValueError(
      "time 0 of a run's SiT is noise, of published code it is data"
    )
  if kind == "int8_bank":
    raise ValueError(
      "no PyTorch file holds int8 banks; make it one of full rows first:"
      " python -m gmem_jax.bank compress BANK OUT --storage=float32"
    )
  if kind not in _TABLES:
    raise ValueError(f"no PyTorch file holds a {shown.value(kind)}")
  # Weights of no file have none.
  shapes = {name: tuple(shape) for name, shape in metadata.get("tensors", ())}
  table = _TABLES[kind]
  if kind == "vae" and shapes:
    table = vae.table(shapes)
  tree = next(trees[n] for n in ("params", "bank", "stats") if n in trees)
  tensors = {**rules.to_torch(table, tree, shapes), **trees.get("buffers", {})}
  if shapes:
    tensors = _in_order(tensors, shapes, table)
  if kind == "bank":
    return tensors["rows"]
  if kind == "low_rank_bank":
    feature_dim, latent_dim = tensors["M"].shape
    return {**tensors, "latent_dim": latent_dim, "feature_dim": feature_dim}
  if kind == "sit" and "bank" in trees:
    bank = trees["bank"]
    # A list of Python numbers, as in the release.
    counts = [int(count) for count in bank["counts"]]
    return {
      "network": tensors, "memorybank": bank["rows"], "memoryfreq": counts
    }  # fmt: skip
  if container in (None, "ema") or metadata["weights"]:
    return tensors
  return {container: tensors}


def _in_order(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  table: Sequence[Rule],
) -> dict[str, np.ndarray]:
  """The tensors in the order of the source file, if they are the same."""
  # What conversion dropped cannot come back, and nobody misses it.
  dropped = [r.torch_pattern for r in table if r.transform == "drop"]
  problems, out = [], {}
  for name, shape in shapes.items():
    if name not in tensors:
      if not any(pattern.fullmatch(name) for pattern in dropped):
        problems.append(f"{name}: missing")
      continue
    out[name] = np.asarray(tensors[name])
    if out[name].shape != shape:
      problems.append(f"{name}: shape {out[name].shape}, expected {shape}")
  problems += [f"{name}: unexpected" for name in tensors if name not in shapes]
  rules.refuse("parameters changed since conversion", problems)
  return out


def save(
  value: Any,
  path: str | os.PathLike,
  on_tensor: Callable[[int], Any] = lambda nbytes: None,
) -> None:
  """Writes what torch.save(value, path) would.

  Args:
    value: Dicts, lists, tuples, strings, numbers, booleans, None and numpy
      arrays, which become tensors.
    path: The file; it must not exist.
    on_tensor: Called after each tensor with its size in bytes.

  Raises:
    FileExistsError: If the path is taken.
    TypeError: For anything else in `value`.
  """
  path = pathlib.Path(path)
  atomic.new_path(path)
  writer = _PickleWriter()
  program = writer.program(value)
  with (
    atomic.replacing(path) as temporary,
    zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
  ):
    _write(archive, "data.pkl", program)
    _write(archive, "byteorder", b"little")
    for key, tensor in enumerate(writer.tensors):
      # One copy at a time: transposed views are made contiguous here.
      flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
      _write(archive, f"data/{key}", flat.data)
      on_tensor(tensor.nbytes)
    _write(archive, "version", b"3\n")


def _write(archive: zipfile.ZipFile, name: str, data: bytes | memoryview):
  """Adds a member whose bytes begin at a multiple of _ALIGNMENT."""
  info = zipfile.ZipInfo(f"{_ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
  if len(data):
    # 30 bytes of header, the name, and the 4 bytes that frame the padding.
    begins = archive.fp.tell() + 30 + len(info.filename) + 4  # type: ignore
    padding = -begins % _ALIGNMENT
    # The tag that PyTorch gives its own padding.
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
  with archive.open(info, "w", force_zip64=len(data) >= 2**31) as member:
    member.write(data)


class _PickleWriter:
  """Emits a pickle of protocol 2, with tensors as PyTorch writes them."""

  # Not pickle.Pickler: it could name torch's functions only by importing torch.
  def __init__(self):
    self.tensors: list[np.ndarray] = []
    self._names = {np.dtype(d): n for n, (d, _) in torch_types.DTYPES.items()}

  def program(self, value: Any) -> bytes:
    """The whole pickle; `tensors` then holds what it refers to, in order."""
    return pickle.PROTO + b"\x02" + self._emit(value) + pickle.STOP

  def _emit(self, value: Any) -> bytes:
    if value is None:
      return pickle.NONE
    # Before int, of which it is a kind.
    if isinstance(value, bool):
      return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, int):
      digits = pickle.encode_long(value)
      return pickle.LONG1 + bytes([len(digits)]) + digits
    if isinstance(value, float):
      return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
      data = value.encode("utf-8", "surrogatepass")
      return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
    if isinstance(value, np.ndarray):
      return self._tensor(value)
    if isinstance(value, tuple):
      return pickle.MARK + self._all(value) + pickle.TUPLE
    if isinstance(value, list):
      return pickle.EMPTY_LIST + pickle.MARK + self._all(value) + pickle.APPENDS
    if isinstance(value, Mapping):
      pairs = [part for pair in value.items() for part in pair]
      return (
        pickle.EMPTY_DICT + pickle.MARK + self._all(pairs) + pickle.SETITEMS
      )
    raise TypeError(f"cannot write a {type(value).__name__}")

  def _all(self, values: Sequence[Any]) -> bytes:
    return b"".join(map(self._emit, values))

  def _tensor(self, tensor: np.ndarray) -> bytes:
    """A call of torch's function on a reference to the bytes."""
    if tensor.dtype not in self._names:
      raise TypeError(f"PyTorch has no tensors of {tensor.dtype}")
    name = self._names[tensor.dtype]
    storage = torch_types.DTYPES[name][1]
    key = str(len(self.tensors))
    self.tensors.append(tensor)
    # Dtypes without a storage class are views of untyped bytes.
    numel = tensor.size if storage else tensor.nbytes
    strides = [math.prod(tensor.shape[k + 1 :]) for k in range(tensor.ndim)]
    hooks = _global("collections", "OrderedDict") + b")" + pickle.REDUCE
    reference = (
      pickle.MARK
      + self._emit("storage")
      + (_global("torch", storage) if storage else _UNTYPED)
      + self._all([key, "cpu", numel])
      + pickle.TUPLE
      + pickle.BINPERSID
    )
    arguments = [0, tuple(tensor.shape), tuple(strides), False]
    version = "v2" if storage else "v3"
    return (
      _global("torch._utils", f"_rebuild_tensor_{version}")
      + pickle.MARK
      + reference
      + self._all(arguments)
      + hooks
      + (b"" if storage else _global("torch", name))
      + pickle.TUPLE
      + pickle.REDUCE
    )


def _global(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_UNTYPED = _global("torch.storage", "UntypedStorage")
