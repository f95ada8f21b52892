"""One shard of prepared data, written whole or not at all.

A shard has three files: records, rows of the bank, and what is known of both as
JSON. The JSON gets its name last, so a shard is whole once it exists.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmem_jax.data import schema as schema_lib, sources
from gmem_jax.files import atomic, disk, paths

# Records are read one by one in random order, so groups would be read in vain;
# and noise does not compress.
OPTIONS = "group_size:1,uncompressed"


class ShardWriter:
  """Collects what a shard holds; see `writing`.

  Attributes:
    files: `sources.Source.fingerprint` of its images.
  """

  files = ""

  def __init__(self, schema: schema_lib.Schema, path: pathlib.Path):
    """Opens a file of records."""
    from array_record.python import array_record_module  # type: ignore

    self._schema, self._layout = schema, schema_lib.layout(schema)
    self._path = path
    with _disk_errors(path):
      self._writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
    channels = schema.latent_shape[-1]
    self._sum, self._square = np.zeros(channels), np.zeros(channels)
    self._count = 0
    self.rows: list[np.ndarray] = []
    self.skipped: list[dict[str, str]] = []
    self.noted: list[dict[str, str]] = []
    self._rotated = 0

  def skip(self, picture: sources.Picture) -> None:
    """Leaves out an image without pixels; its note says why."""
    self.skipped.append({"name": picture.name, "reason": picture.note})

  def add(
    self, pictures: Sequence[sources.Picture], arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Appends the records of images.

    Args:
      pictures: In the order of the arrays' rows.
      arrays: What `encode.encode` made of them.

    Raises:
      ValueError: If an encoder gave NaN or infinity; names the image.
    """
    self._count_latents(pictures, arrays)
    for i, picture in enumerate(pictures):
      self._rotated += picture.rotated
      if picture.note:
        self.noted.append({"name": picture.name, "note": picture.note})
      for record in self._records(picture, i, arrays):
        with _disk_errors(self._path):
          self._writer.write(record)
    self.rows.append(arrays["row"])

  def close(self) -> dict[str, Any]:
    """Finishes the file and says what the shard holds; JSON."""
    with _disk_errors(self._path):
      self._writer.close()
    return {
      "images": sum(map(len, self.rows)),
      "latents": {
        "count": self._count,
        "sum": self._sum.tolist(),
        "square": self._square.tolist(),
      },
      "skipped": self.skipped,
      "noted": self.noted,
      "rotated_by_exif": self._rotated,
      "files": self.files,
    }

  def abandon(self) -> None:
    """Closes the file after an error."""
    # A full disk fails here, too; the first error is the one to tell.
    with contextlib.suppress(RuntimeError):
      self._writer.close()

  def _records(
    self,
    picture: sources.Picture,
    i: int,
    arrays: Mapping[str, np.ndarray],
  ) -> Iterator[bytes]:
    """The records of an image, the i-th of its batch."""
    alone = {
      "pixels": picture.pixels,
      "label": np.asarray(picture.label, np.int32),
    }
    v = self._schema.views_per_record
    for first in range(0, self._schema.views, v):
      values = {
        name: arrays[name][i, first : first + v]
        if field.viewed
        else alone[name]
        for name, field in self._layout.fields.items()
      }
      yield schema_lib.encode(self._layout, values)

  def _count_latents(
    self, pictures: Sequence[sources.Picture], arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Adds the images as they are, not mirrored, to the statistics' sums."""
    posterior = self._schema.latents == "posterior"
    mean = arrays["mean" if posterior else "latent"][:, 0].astype(np.float64)
    square = mean**2
    if posterior:
      # Training draws from the posterior: E[z²] = mean² + variance.
      square += np.exp(arrays["logvar"][:, 0].astype(np.float64))
    finite = np.isfinite(square).all(axis=(1, 2, 3))
    finite &= np.isfinite(arrays["row"]).all(axis=1)
    if not finite.all():
      name = pictures[int(np.argmin(finite))].name
      raise ValueError(
        f"the encoders gave NaN or infinity for {name}: the weights of"
        " config.encoder.tokenizer_weights or .features_weights are damaged"
      )
    self._sum += mean.sum(axis=(0, 1, 2))
    self._square += square.sum(axis=(0, 1, 2))
    self._count += mean[..., 0].size


@contextlib.contextmanager
def writing(
  directory: paths.Path, schema: schema_lib.Schema, number: int
) -> Iterator[ShardWriter]:
  """Writes a shard: whole when the block ends, not at all if it fails.

  Yields:
    The writer to fill.

  Raises:
    OSError: If the disk is full or the directory cannot be written.
  """
  path = directory / f"{schema.shard_name(number)}.array_record"
  with atomic.replacing(path) as temporary:
    writer = ShardWriter(schema, temporary)
    try:
      yield writer
      facts = writer.close()
    except BaseException:
      writer.abandon()
      raise
    _save_rows(directory, schema, number, writer.rows)
    facts |= {
      "bytes": temporary.stat().st_size,
      "sha256": _digest(temporary),
      "schema": schema_lib.digest(schema),
    }
  atomic.write_json(path.with_suffix(".json"), facts)


def is_whole(
  directory: paths.Path, schema: schema_lib.Schema, number: int
) -> bool:
  """Whether all of a shard has been written."""
  return (directory / f"{schema.shard_name(number)}.json").exists()


def remove(
  directory: paths.Path, schema: schema_lib.Schema, number: int
) -> None:
  """Removes the files of a shard, whole or not."""
  path = directory / f"{schema.shard_name(number)}.json"
  # In the opposite order of their writing: a kill leaves no half that is taken
  # for a whole.
  for file in (
    path,
    path.with_suffix(".array_record"),
    rows_path(directory, schema, number),
  ):
    file.unlink(missing_ok=True)


def rows_path(
  directory: paths.Path, schema: schema_lib.Schema, number: int
) -> paths.Path:
  """Where a shard's rows of the bank are until the bank is joined."""
  return directory / "bank" / f"{schema.shard_name(number)}.npy"


def _save_rows(
  directory: paths.Path,
  schema: schema_lib.Schema,
  number: int,
  rows: Sequence[np.ndarray],
) -> None:
  path = rows_path(directory, schema, number)
  path.parent.mkdir(exist_ok=True)
  # A shard whose images are all damaged has no rows, and no width without this.
  empty = np.zeros((0, schema.feature_width), np.float32)
  with atomic.replacing(path) as temporary, temporary.open("wb") as file:
    np.save(file, np.concatenate([empty, *rows]))
    file.flush()
    os.fsync(file.fileno())


def _digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, once all of it is on the disk."""
  # The digest promises what was written, so it must outlive a power cut.
  with path.open("rb") as file:
    os.fsync(file.fileno())
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns the RuntimeError by which ArrayRecord reports a full disk."""
  try:
    yield
  except RuntimeError as error:
    # It tells the system's message, and not its number.
    number = next((n for n in disk.FULL if os.strerror(n) in str(error)), None)
    reason = f"cannot be written: {error}"
    raise OSError(number or errno.EIO, reason, str(path)) from None
