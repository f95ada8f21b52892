"""Memory banks on disk: read from wherever one is kept, written once.

A bank that `python -m gmem_jax.bank` writes is a directory of converted
weights, like those of published banks; where the source images are known, their
names lie beside the arrays. Banks of runs and of prepared data are read too.

Shapes: m bank rows, d feature width.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from gmem_jax.bank import bank as bank_lib, edit
from gmem_jax.files import atomic, weights

# Storage -> kind of converted weights.
KINDS = ("bank", "int8_bank", "low_rank_bank")
# Arrays of a low-rank bank, and what the published file calls them.
LOW_RANK = {
  "coefficients": "C",
  "basis": "M",
  "singular_values": "S",
  "mean": "mean",
}
# Folder of prepared data that holds the bank: rows.npy and info.json.
PREPARED = "bank"
IMAGES = "images.json"


@dataclasses.dataclass(frozen=True)
class SourceImages:
  """The source images of a bank's rows.

  Attributes:
    folder: Where they were.
    names: m paths relative to it, or absolute; "" for rows without an image.
  """

  folder: str
  names: tuple[str, ...]

  def path(self, row: int, folder: str | None = None) -> pathlib.Path | None:
    """The file of a row's image, or None if it is not known.

    Args:
      row: The row.
      folder: Where the images are now.
    """
    if not self.names[row]:
      return None
    return pathlib.Path(folder or self.folder) / self.names[row]


@dataclasses.dataclass(frozen=True)
class Stored:
  """A bank, read from disk or to be written.

  Attributes:
    bank: The bank, on the host.
    info: Where it comes from.
    images: Its source images, if known.
    counts: int64 [m] how often each row occurred, in banks of the first
      release.
  """

  bank: bank_lib.Bank
  info: bank_lib.BankInfo
  images: SourceImages | None = None
  counts: np.ndarray | None = None


def edited(old: Stored, new: edit.Edited, added: SourceImages | None) -> Stored:
  """What an edit makes of all that is stored.

  Args:
    old: What was edited.
    new: The edit of its bank.
    added: Images of the rows that it added, in order.
  """
  origin, images, counts = new.origin, None, None
  fresh = int((origin < 0).sum())
  if old.images or added:
    folder = (old.images or added).folder  # pyright: ignore
    kept = old.images.names if old.images else ("",) * old.bank.size
    extra = [""] * fresh
    if added:
      extra = [_relative(added.path(i), folder) for i in range(fresh)]
    rest = iter(extra)
    names = tuple(kept[i] if i >= 0 else next(rest) for i in origin)
    images = SourceImages(folder, names)
  if old.counts is not None:
    # A new memory is drawn as often as a mean one.
    mean = max(1, round(float(old.counts.mean())))
    counts = np.where(origin >= 0, old.counts[origin], mean)
  return Stored(new.bank, new.info, images, counts)


def _relative(path: pathlib.Path | None, folder: str) -> str:
  if path is None:
    return ""
  if path.is_relative_to(folder):
    return str(path.relative_to(folder))
  return str(path.absolute())


def write(path: str | os.PathLike, stored: Stored) -> None:
  """Writes a bank to a new directory, whole or not at all.

  Args:
    path: The directory.
    stored: The bank.

  Raises:
    FileExistsError: If there is something already.
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
  tensors = [[theirs, list(tree[ours].shape)] for ours, theirs in names.items()]
  if stored.counts is not None:
    tree["counts"] = stored.counts
  info = stored.info
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
    "tensors": tensors,
    "info": dataclasses.asdict(info),
  }
  weights.save_converted(path, {"bank": tree}, metadata)
  if stored.images is not None:
    value = dataclasses.asdict(stored.images)
    atomic.write_json(pathlib.Path(path) / IMAGES, value)


def read(path: str | os.PathLike) -> Stored:
  """Reads a bank.

  Args:
    path: A bank that this module or the converter wrote, a converted network
      that came with one, the `memory` of a run, or prepared data.

  Returns:
    The bank. Of published ones nothing tells the encoder.

  Raises:
    ValueError: If there is none, or its arrays do not fit together.
  """
  path = pathlib.Path(path).absolute()
  try:
    if weights.is_converted(path):
      return _read_converted(path)
    for directory in (path, path / PREPARED):
      if (directory / "rows.npy").exists():
        return _read_prepared(directory)
    for directory in (path, path / "memory"):
      if directory.is_dir() and weights.holds_tree(directory):
        return _read_memory(directory)
  except (ValueError, OSError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: cannot be read as a bank: {error}") from error
  if not path.exists():
    raise ValueError(f"{path}: there is no such bank")
  raise ValueError(
    f"{path} holds no bank: it is none that `python -m gmem_jax.bank` or"
    " `python -m gmem_jax.convert` wrote, and no run or prepared data"
  )


def read_info(path: str | os.PathLike) -> bank_lib.BankInfo | None:
  """Reads where a converted bank comes from, and no array of it.

  Args:
    path: What `write` or the converter wrote.

  Returns:
    None for a published bank, which does not tell.
  """
  info = weights.read_metadata(path).get("info")
  return None if info is None else bank_lib.BankInfo(**info)


def from_tree(tree: dict[str, Any]) -> bank_lib.Bank:
  """A bank of named arrays.

  Args:
    tree: The arrays, as they are stored; others are left alone.
  """
  if "coefficients" in tree:
    return bank_lib.LowRankBank(
      **{name: np.asarray(tree[name], np.float32) for name in LOW_RANK}
    )
  rows = np.asarray(tree["rows"])
  if rows.dtype == np.float64 or rows.dtype == np.float16:
    rows = rows.astype(np.float32)
  return bank_lib.MemoryBank(rows, tree.get("scales"), tree.get("residuals"))


def _read_converted(path: pathlib.Path) -> Stored:
  tree, metadata = weights.load_converted(path, "bank")
  bank, info = from_tree(tree), metadata.get("info")
  if info is not None:
    info = bank_lib.BankInfo(**info)
  else:
    source = f"{metadata['title']}, {metadata['source']['file']}"
    info = bank_lib.make_info(bank, encoder="", source=source)
  images = None
  if path.is_dir() and (path / IMAGES).exists():
    value = json.loads((path / IMAGES).read_text())
    images = SourceImages(value["folder"], tuple(value["names"]))
    if len(images.names) != bank.size:
      raise ValueError(
        f"{IMAGES} names {len(images.names)} images for {bank.size} rows"
      )
  return _checked(Stored(bank, info, images, tree.get("counts")))


def _read_prepared(directory: pathlib.Path) -> Stored:
  rows = np.load(directory / "rows.npy", mmap_mode="r", allow_pickle=False)
  info = bank_lib.BankInfo(**atomic.read_json(directory / "info.json"))
  return _checked(Stored(bank_lib.MemoryBank(rows), info))


def _read_memory(directory: pathlib.Path) -> Stored:
  tree, metadata = weights.load_tree(directory, None)
  info = bank_lib.BankInfo(**metadata["info"])
  return _checked(Stored(from_tree(tree), info))


def _checked(stored: Stored) -> Stored:
  """Checks that the rows are those that are described."""
  found = (stored.bank.size, stored.bank.width)
  if found != (stored.info.size, stored.info.width):
    raise ValueError(
      f"rows x width are {found}, described as"
      f" {(stored.info.size, stored.info.width)}"
    )
  bank_lib.check_bank(stored.bank)
  return stored
