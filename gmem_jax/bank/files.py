"""Memory banks on disk: read from wherever one is kept, written once.

A bank that `python -m gmem_jax.bank` writes is a directory of converted
weights, as published banks are once converted; where the source images are
known, their names are beside the arrays. Banks of runs and of prepared data are
read too.

Shapes: m bank rows.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import bank as bank_lib, edit, images as images_lib
from gmem_jax.files import atomic, numpy_files, paths, weights

# Kinds of converted weights that are banks.
KINDS = ("bank", "int8_bank", "low_rank_bank")
# Arrays of a low-rank bank, and their names in published files.
LOW_RANK = {
  "coefficients": "C",
  "basis": "M",
  "singular_values": "S",
  "mean": "mean",
}
# Folder of prepared data that has the bank, and its two files.
PREPARED, ROWS, INFO = "bank", "rows.npy", "info.json"
# What runs and prepared data have besides, which need not be fetched.
_NO_BANK = (
  "checkpoints/*", "images/*", "samples/*", "tensorboard/*", "evaluations/*",
  "compiled/*", "profile/*", "*.array_record",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stored:
  """A bank, read from disk or to be written.

  Attributes:
    bank: The bank, on the host.
    info: Where it comes from.
    images: Its source images, if known.
    counts: int64 [m] how often each row occurred, in banks of the first
      release.
    origin: What identifies it in a record of samples; JSON.
  """

  bank: bank_lib.Bank
  info: bank_lib.BankInfo
  images: images_lib.SourceImages | None = None
  counts: np.ndarray | None = None
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def edited(
  old: Stored, new: edit.Edited, added: images_lib.SourceImages | None = None
) -> Stored:
  """Joins an edited bank with what the old one has beside its rows.

  `added` are the images of the new rows, in order.
  """
  images, counts = None, None
  is_new = new.origin < 0
  if old.images or added:
    folder = (old.images or added).folder  # pyright: ignore
    names = old.images.names if old.images else ("",) * old.bank.size
    new_names = iter(
      _relative(added.path(i), folder) if added else ""
      for i in range(int(is_new.sum()))
    )
    images = images_lib.SourceImages(
      folder,
      tuple(next(new_names) if i < 0 else names[i] for i in new.origin),
    )
  if old.counts is not None:
    # A new memory is drawn as often as an average one.
    mean = max(1, round(float(old.counts.mean())))
    counts = np.where(is_new, mean, old.counts[new.origin])
  return Stored(new.bank, new.info, images, counts)


def _relative(path: paths.Path | None, folder: str) -> str:
  if path is None:
    return ""
  if path.is_relative_to(folder):
    return str(path.relative_to(folder))
  return str(path.absolute())


def write(path: str | os.PathLike, stored: Stored) -> None:
  """Writes a bank to a new directory, whole or not at all.

  Raises:
    FileExistsError: If the path is taken.
  """
  tree = {
    name: np.asarray(value)
    for name, value in vars(bank_lib.on_host(stored.bank)).items()
    if name != "padding" and value is not None
  }
  names, kind = {"rows": "rows"}, "bank"
  if isinstance(stored.bank, bank_lib.LowRankBank):
    names, kind = LOW_RANK, "low_rank_bank"
  elif stored.bank.scales is not None:
    kind = "int8_bank"
  if stored.counts is not None:
    tree["counts"] = stored.counts
  info = stored.info
  # The keys that the converter writes, so that it can turn the bank into a file
  # for PyTorch, and sampling can say where the rows come from.
  metadata = {
    "kind": kind,
    "title": f"memory bank, {info.size} rows of {info.width},"
    f" {stored.bank.storage}",
    "model": {},
    "weights": None,
    "step": None,
    "encoder": info.encoder,
    "source": {
      "file": info.source,
      "sha256": info.digest,
      "container": None,
      "config": None,
    },
    "tensors": [
      [published, list(tree[name].shape)] for name, published in names.items()
    ],
    "info": dataclasses.asdict(info),
  }
  weights.save_converted(path, {"bank": tree}, metadata)
  # Last: names without a bank would be nothing, a bank without names is one.
  if stored.images is not None:
    images_lib.write(paths.of(path), stored.images)


def read(path: str | os.PathLike) -> Stored:
  """Reads whatever names a bank, and checks it.

  Args:
    path: A bank that this module or the converter wrote, a converted network
      with its bank, a run or its `memory`, or prepared data.

  Returns:
    The bank; the encoder of a published one is unknown.

  Raises:
    ValueError: If there is none, or its arrays do not fit together.
  """
  path = paths.local(path, skip=_NO_BANK)
  try:
    if weights.is_converted(path):
      return _read_converted(path)
    for directory in (path, path / PREPARED):
      if (directory / ROWS).exists():
        return _read_prepared(directory)
    for directory in (path, path / "memory"):
      if directory.is_dir() and weights.holds_tree(directory):
        return _read_memory(directory)
  # Of a damaged file, each library raises what it likes.
  except (ValueError, OSError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: cannot be read as a bank: {error}") from error
  if not path.exists():
    raise ValueError(f"{path}: there is no such bank")
  raise ValueError(
    f"{path} is not a bank: expected output of `python -m gmem_jax.bank` or"
    " `python -m gmem_jax.convert`, a run's directory, or prepared data"
  )


def from_tree(tree: dict[str, Any]) -> bank_lib.Bank:
  """Makes a bank of stored arrays by name; arrays of other names may be there.

  Published rows of types that no bank stores (float16, 8-bit floats, float64)
  become float32.
  """
  if "coefficients" in tree:
    return bank_lib.LowRankBank(
      **{name: np.asarray(tree[name], np.float32) for name in LOW_RANK}
    )
  rows = np.asarray(tree["rows"])
  if rows.dtype not in (np.float32, jnp.bfloat16, np.int8):
    rows = rows.astype(np.float32)
  return bank_lib.MemoryBank(rows, tree.get("scales"), tree.get("residuals"))


def read_info(folder: paths.Path) -> bank_lib.BankInfo:
  """Reads the description of prepared data's bank from its folder."""
  return info_of(atomic.read_json(folder / INFO), str(folder / INFO))


def info_of(value: Any, where: str) -> bank_lib.BankInfo:
  """A bank's description out of JSON.

  Raises:
    ValueError: Naming where it stands, if it is damaged.
  """
  fields = dataclasses.fields(bank_lib.BankInfo)
  kinds = {field.name: field.type for field in fields}
  given = atomic.check_keys(value, {}, where)
  needed = kinds.keys() - {"crop", "edit", "made_on"} | given.keys()
  if needed - kinds.keys():
    raise ValueError(f"{where} is damaged: it has keys of no bank")
  atomic.check_keys(given, {name: kinds[name] for name in needed}, where)
  return bank_lib.BankInfo(**given)


def write_info(folder: paths.Path, info: bank_lib.BankInfo) -> None:
  """Writes the description of prepared data's bank to its folder."""
  atomic.write_json(folder / INFO, dataclasses.asdict(info))


def _read_converted(path: paths.Path) -> Stored:
  tree, metadata = weights.load_converted(path, "bank")
  bank = from_tree(tree)
  if "info" in metadata:
    info = info_of(metadata["info"], f"info of {path}")
  else:
    # The converter's: a published file does not tell its encoder.
    source = f"{metadata['title']}, {metadata['source']['file']}"
    info = bank_lib.make_info(bank, encoder="", source=source)
  images = images_lib.read(path, bank.size)
  origin = weights.origin(metadata)
  return _checked(Stored(bank, info, images, tree.get("counts"), origin))


def _read_prepared(folder: paths.Path) -> Stored:
  # Mapped: rows are read as they are needed.
  rows = numpy_files.read_npy(folder / ROWS, mapped=True)
  bank, info = bank_lib.MemoryBank(rows), read_info(folder)
  images = images_lib.read(folder, len(rows))
  return _checked(Stored(bank, info, images, origin=origin_of(info)))


def _read_memory(directory: paths.Path) -> Stored:
  tree, metadata = weights.load_tree(directory, None)
  info = info_of(metadata.get("info"), f"info of {directory}")
  return _checked(of_run(directory, from_tree(tree), info))


def of_run(
  memory: paths.Path, bank: bank_lib.Bank, info: bank_lib.BankInfo
) -> Stored:
  """A run's bank, read from its `memory`, with the names of its images."""
  images = None
  if (folder := prepared_folder(memory, info)) is not None:
    images = images_lib.read(folder, info.size)
  return Stored(bank, info, images, origin=origin_of(info))


def origin_of(info: bank_lib.BankInfo) -> dict[str, Any]:
  """What identifies a run's or a prepared bank in a record of samples."""
  return {"digest": info.digest}


def prepared_folder(
  memory: paths.Path, info: bank_lib.BankInfo
) -> paths.Path | None:
  """The bank of the prepared data that a run was trained on.

  Its row i and the run's are of the same image.

  Args:
    memory: The run's `memory`.
    info: Of the run's bank.

  Returns:
    The folder, or None if the run had no prepared data, or they are no longer
    there or of other images.
  """
  try:
    config = atomic.read_json(memory.parent / "config.json")
    folder = paths.of(config["data"]["prepared"]) / PREPARED
    digest = read_info(folder).digest
  except (ValueError, KeyError, TypeError, ModuleNotFoundError):
    return None
  # The run's has a parent where it is stored in less memory.
  return folder if digest in (info.digest, info.parent) else None


def _checked(stored: Stored) -> Stored:
  """Checks that the rows are those of the description."""
  size = (stored.bank.size, stored.bank.width)
  if size != (stored.info.size, stored.info.width):
    raise ValueError(
      f"rows x width are {size}, described as"
      f" {(stored.info.size, stored.info.width)}"
    )
  bank_lib.check_bank(stored.bank)
  return stored
