"""A directory of prepared data: opened, checked, and read.

`gmem_jax.data.schema` has the files and what is in them.
"""

import bisect
import dataclasses
import itertools
import pathlib

import numpy as np

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.data import schema as schema_lib
from gmem_jax.files import atomic, numpy_files, paths, shown

REPORT = "report.json"
STATISTICS = "statistics.json"


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of records: `Schema.records_per_image` for each of its images."""

  path: pathlib.Path
  images: int


@dataclasses.dataclass(frozen=True)
class Store:
  """Prepared data.

  Attributes:
    schema: What its records hold.
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
    folder = self.directory / bank_files.PREPARED
    return numpy_files.read_npy(folder / bank_files.ROWS, mapped=True)


def open_store(directory: paths.Path) -> Store:
  """Opens prepared data and checks that all of it is there.

  Raises:
    ValueError: If it is of another version, not finished, or a file of it is
      missing, damaged or of other data.
  """
  # Records are read at random: what is in a bucket is copied.
  directory = paths.local(directory)
  schema = schema_lib.read(directory)
  if not (directory / REPORT).exists():
    raise ValueError(
      f"{directory} is not finished: give the same --mode=prepare command"
      " again, it continues"
    )
  numbers = range(schema.shards)
  shards = [_open_shard(directory, schema, number) for number in numbers]
  statistics = atomic.read_json(
    directory / STATISTICS, {"mean": list, "std": list}
  )
  try:
    mean, std = (np.asarray(statistics[k], np.float32) for k in ("mean", "std"))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{directory / STATISTICS} is damaged: {shown.cause(error)}"
    ) from None
  info = bank_files.read_info(directory / bank_files.PREPARED)
  return Store(
    directory,
    schema,
    tuple(shard for shard in shards if shard.images),
    mean,
    std,
    info,
  )


def _open_shard(
  directory: pathlib.Path, schema: schema_lib.Schema, number: int
) -> Shard:
  """Checks a shard by its size and schema; no record is read."""
  name = schema.shard_name(number)
  facts = atomic.read_json(
    directory / f"{name}.json", {"bytes": int, "schema": str, "images": int}
  )
  path = directory / f"{name}.array_record"
  if not path.exists():
    raise ValueError(f"{path} is missing")
  size = path.stat().st_size
  # The digest in `facts` would take hours: a terabyte must be read for it.
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
  return Shard(path, facts["images"])


class PreparedRecords:
  """The records of prepared data; see `pipeline.Records`.

  Attributes:
    store: The directory.
    mirrored: Whether there are mirror images.
  """

  def __init__(self, store: Store):
    """Opens the shards.

    Raises:
      ValueError: If there is no image, or its record is not of the schema.
    """
    from array_record.python import array_record_data_source

    self.store = store
    self.mirrored = store.schema.mirrored
    self._layout = schema_lib.layout(store.schema)
    if not store.images:
      raise ValueError(f"{store.directory} holds no images")
    counts = [s.images * store.schema.records_per_image for s in store.shards]
    # With the number of records in its name, a file is opened on first use.
    self._source = array_record_data_source.ArrayRecordDataSource(
      [f"{s.path}[0:{n}]" for s, n in zip(store.shards, counts, strict=True)]
    )
    self._ends = list(itertools.accumulate(counts))
    # Records of another schema are refused now, not in the first epoch.
    self.read(0, schema_lib.Flips(False, False, False))

  def __len__(self) -> int:
    return self.store.images

  def __repr__(self) -> str:
    return f"{self.store.directory} ({len(self)} images)"

  def spec(self) -> dict[str, schema_lib.Spec]:
    """Shape and type of every field."""
    fields = {
      name: schema_lib.Spec(field.shape[field.viewed :], field.dtype)
      for name, field in self._layout.fields.items()
    }
    if "pixels" in fields:
      fields["mirrored"] = schema_lib.Spec((), np.dtype(bool))
    return fields | {"row": schema_lib.Spec((), np.dtype(np.int32))}

  def read(self, index: int, flips: schema_lib.Flips) -> dict[str, np.ndarray]:
    """The example of an image.

    Raises:
      ValueError: If the record is damaged; names its file.
    """
    result = self._view(index, flips.latent)
    # Flags of their own, as published, may take a second record.
    if any(flag != flips.latent for flag in flips):
      other = self._view(index, not flips.latent)
      for name in result:
        if flips.of(name) != flips.latent:
          result[name] = other[name]
    if "pixels" in result:
      result["mirrored"] = np.asarray(flips.tokens)
    result["row"] = np.asarray(index, np.int32)
    return result

  def _view(self, index: int, mirrored: bool) -> dict[str, np.ndarray]:
    """All fields of one view of an image."""
    number, view = self.store.schema.locate(index, int(mirrored))
    try:
      return schema_lib.decode(self._layout, self._source[number], view)
    except (RuntimeError, ValueError, IndexError) as error:
      shard = self.store.shards[bisect.bisect_right(self._ends, number)]
      raise ValueError(
        f"{shard.path}: record {number} of the data: {error}"
      ) from None
