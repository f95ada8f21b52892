"""What a prior is trained on: the rows of a bank, their groups and statistics.

Shapes: m bank rows, d snippet width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Float32, Int

from gmem_jax.bank import bank as bank_lib, storage
from gmem_jax.config import training
from gmem_jax.files import atomic, paths, weights
from gmem_jax.models import prior as prior_network
from gmem_jax.parallel import processes
from gmem_jax.train import checkpoint

# Where a run keeps its prior, and what the prior knows of the rows.
FOLDER, RECORD = "prior", "rows"
# Fewer rows tell nothing of what lies between them.
FEWEST = 16
# They may change while it is trained, or after: they decide how long it is
# trained, and how it samples.
_FREE = ("steps", "points", "guidance")


@flax.struct.dataclass
class Rows:
  """What a prior is trained on; a pytree of arrays on devices.

  Attributes:
    bank: The memory bank.
    groups: int32 [m] number of each row's group, that of groups for none.
    mean: float32 [d], of the unit rows.
    scale: float32 [1], their standard deviation over all coordinates.
  """

  bank: bank_lib.MemoryBank
  groups: Any
  mean: Any
  scale: Any


@dataclasses.dataclass(frozen=True)
class Record:
  """What a prior knows of its rows, besides their mean and scale.

  Attributes:
    width: Of a snippet.
    digest: Of the bank.
    rows: Number of rows.
    groups: Names of the groups; () for none.
    counts: Number of rows of each, and at last of those without one.
    seed: Of the training.
    prior: The section of the config.
  """

  width: int
  digest: str
  rows: int
  groups: tuple[str, ...]
  counts: tuple[int, ...]
  seed: int
  prior: training.PriorConfig

  def network(self) -> prior_network.PriorNetwork:
    """The prior's network."""
    return prior_network.PriorNetwork(
      self.prior.width, self.prior.depth, len(self.groups)
    )


def statistics(
  bank: bank_lib.MemoryBank,
) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, "1"]]:
  """Mean of a bank's unit rows, and their standard deviation around it.

  Raises:
    ValueError: If the bank has too few rows, or they are all alike.
  """
  if bank.size < FEWEST:
    raise ValueError(
      f"the bank has {bank.size} rows: a prior needs at least {FEWEST}"
    )
  total, squares = np.zeros(bank.width), 0.0
  first = _units(bank, 0, 1)[0]
  for start in range(0, bank.size, storage.CHUNK):
    # From the first row, so that the squares of rows that are nearly alike do
    # not cancel.
    rows = _units(bank, start, storage.CHUNK) - first
    total, squares = total + rows.sum(axis=0), squares + (rows**2).sum()
  mean = total / bank.size
  variance = (squares / bank.size - (mean**2).sum()) / bank.width
  # Of unit vectors, whose float32 has rounding of 1e-7.
  if not variance > 1e-12:
    raise ValueError("the bank's rows are all alike: a prior has no use there")
  scale = np.full(1, variance**0.5, np.float32)
  return (first + mean).astype(np.float32), scale


def _units(bank: bank_lib.MemoryBank, start: int, count: int) -> np.ndarray:
  """Some rows as unit vectors, float64."""
  numbers = np.arange(start, min(start + count, bank.size))
  rows = np.asarray(bank_lib.features(bank, numbers), np.float64)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def group(
  classes: Sequence[str], size: int
) -> tuple[tuple[str, ...], Int[np.ndarray, " m"], tuple[int, ...]]:
  """Names of groups, the number of each row's, and rows of each."""
  names = sorted(set(classes) - {""})
  if len(names) < 2:
    return (), np.zeros(size, np.int32), (size,)
  number = {name: i for i, name in enumerate(names)} | {"": len(names)}
  numbers = np.array([number[name] for name in classes], np.int32)
  counts = np.bincount(numbers, minlength=len(names) + 1)
  return tuple(names), numbers, tuple(counts.tolist())


def claim(
  folder: paths.Path, record: Record, arrays: dict[str, np.ndarray]
) -> None:
  """Keeps what the prior knows of its rows, or checks that it is the same."""
  path = folder / RECORD
  if checkpoint.exist(folder / "checkpoints") and path.exists():
    stored, given = (_settings(each) for each in (load_record(path)[0], record))
    differing = atomic.differences(stored, given, ignored=_FREE)
    if differing:
      lines = "; ".join(line.strip() for line in differing)
      raise ValueError(
        f"{folder} has a prior of another config or bank: {lines}. Give these"
        " their old values, or remove it to begin anew"
      )
  if processes.is_main():
    if path.exists():
      paths.remove(path)
    folder.mkdir(parents=True, exist_ok=True)
  processes.wait_for_all("prior")
  weights.save_tree(path, arrays, dataclasses.asdict(record))


def _settings(record: Record) -> dict[str, Any]:
  """What decides a prior, by names for people."""
  settings = dataclasses.asdict(record.prior)
  return settings | {
    "seed": record.seed,
    "bank": record.digest[:12],
    "groups": len(record.groups),
  }


def load_record(path: paths.Path) -> tuple[Record, dict[str, np.ndarray]]:
  """Reads what a prior knows of its rows: (record, mean and scale).

  Raises:
    ValueError: If it is damaged.
  """
  tree, metadata = weights.load_tree(path, None)
  try:
    record = Record(
      **metadata
      | {
        "groups": tuple(metadata["groups"]),
        "counts": tuple(metadata["counts"]),
        "prior": training.PriorConfig(**metadata["prior"]),
      }
    )
    return record, {name: tree[name] for name in ("mean", "scale")}
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from None
