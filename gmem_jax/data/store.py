"""A directory of prepared data: its files, opened and checked.

`gmem_jax.data.schema` says what lies where.
"""

import dataclasses
import pathlib

import numpy as np

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.data import schema as schema_lib
from gmem_jax.files import atomic

REPORT = "report.json"
STATISTICS = "statistics.json"


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records.

  Attributes:
    path: The file.
    images: Images in it; `Schema.records_per_image` records each.
  """

  path: pathlib.Path
  images: int


@dataclasses.dataclass(frozen=True)
class Store:
  """Prepared data.

  Attributes:
    directory: Where it lies.
    schema: Its schema.
    shards: Its files, in order; those without an image are left out.
    mean: Mean of each latent channel, float32 [c].
    std: Standard deviation of each, float32 [c].
    info: Where the bank comes from.
  """

  directory: pathlib.Path
  schema: schema_lib.Schema
  shards: tuple[Shard, ...]
  mean: np.ndarray
  std: np.ndarray
  info: bank_lib.BankInfo

  @property
  def images(self) -> int:
    """Images in all shards, and rows of the bank."""
    return sum(shard.images for shard in self.shards)

  def bank_rows(self) -> np.ndarray:
    """The bank's rows, float32 [images, d], read by memory map."""
    return np.load(
      self.directory / bank_files.PREPARED / "rows.npy", mmap_mode="r"
    )


def open_store(directory: pathlib.Path) -> Store:
  """Opens prepared data and checks that all of it is there.

  Args:
    directory: Where it lies.

  Raises:
    ValueError: If it is of another version, not finished, or a file of it is
      missing, damaged or of other data.
  """
  schema = schema_lib.read(directory)
  if not (directory / REPORT).exists():
    raise ValueError(
      f"{directory} is not finished: give the same --mode=prepare command"
      " again, it continues"
    )
  shards = []
  for number in range(schema.shards):
    name = schema.shard_name(number)
    facts = atomic.read_json(directory / f"{name}.json")
    path = directory / f"{name}.array_record"
    if not path.exists():
      raise ValueError(f"{path} is missing")
    size = path.stat().st_size
    if size != facts["bytes"]:
      raise ValueError(
        f"{path} has {size} bytes, {facts['bytes']} were written: it is"
        " damaged or of other data"
      )
    if facts["schema"] != schema_lib.digest(schema):
      raise ValueError(
        f"{path} was made under another {schema_lib.FILE} than is beside it:"
        " of other networks, images or settings"
      )
    if facts["images"]:
      shards.append(Shard(path, facts["images"]))
  statistics = atomic.read_json(directory / STATISTICS)
  info = bank_lib.BankInfo(
    **atomic.read_json(directory / bank_files.PREPARED / "info.json")
  )
  return Store(
    directory,
    schema,
    tuple(shards),
    np.asarray(statistics["mean"], np.float32),
    np.asarray(statistics["std"], np.float32),
    info,
  )


def write_info(directory: pathlib.Path, info: bank_lib.BankInfo) -> None:
  """Writes where the bank comes from.

  Args:
    directory: Of prepared data.
    info: The bank's.
  """
  path = directory / bank_files.PREPARED / "info.json"
  atomic.write_json(path, dataclasses.asdict(info))
