"""Images to a directory of prepared data.

Every process writes the shards i, i + n, i + 2 n … of the n processes, those
that are there left as they are; then the first one joins what belongs to all
shards. A kill at any moment costs the shards that were being written, and what
an uninterrupted run would have written comes out, byte for byte.
"""

import collections
import concurrent.futures
import logging
import os
import pathlib
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gmem_jax import progress
from gmem_jax.data import (
  encode,
  image_files,
  prepare_join,
  schema as schema_lib,
  shards,
  sources,
  store,
)
from gmem_jax.files import atomic

_log = logging.getLogger(__name__)

# Seconds between log lines, off a terminal.
LOG_EVERY = 30.0
MAX_THREADS = 16


def write_store(
  directory: pathlib.Path,
  schema: schema_lib.Schema,
  source: sources.Source,
  networks: encode.Frozen,
) -> dict[str, Any]:
  """Prepares images, from wherever an earlier call was stopped.

  Args:
    directory: Where to; made if need be.
    schema: How.
    source: The images.
    networks: The frozen networks.

  Returns:
    The report, as it is kept in report.json.

  Raises:
    ValueError: If the directory holds other data, no image can be read, or the
      networks gave NaN.
    OSError: If the disk is full; whole shards are kept.
  """
  first = jax.process_index() == 0
  try:
    if first:
      _claim(directory, schema)
    _wait("schema")
    if not first:
      _check(directory, schema)
    if not (directory / store.REPORT).exists():
      _write_shards(directory, schema, source, networks)
      _wait("shards")
      if first:
        prepare_join.join(directory, schema, source.ignored)
      _wait("bank")
    if first:
      prepare_join.clean(directory)
  except OSError as error:
    raise OSError(
      f"{error}\nThe shards that are whole are kept in {directory}: make room"
      " or give access, and give the same command again."
    ) from None
  return atomic.read_json(directory / store.REPORT)


def _claim(directory: pathlib.Path, schema: schema_lib.Schema) -> None:
  """Makes a directory this schema's, or checks that it already is."""
  if (directory / schema_lib.FILE).exists():
    _check(directory, schema)
    return
  directory.mkdir(parents=True, exist_ok=True)
  _check_space(directory, schema)
  atomic.write_json(directory / schema_lib.FILE, schema_lib.to_json(schema))


def _check(directory: pathlib.Path, schema: schema_lib.Schema) -> None:
  """Checks that a directory is of this schema; names what differs."""
  theirs = schema_lib.to_json(schema_lib.read(directory))
  ours = schema_lib.to_json(schema)
  differing = [
    f"  {key}: {theirs[key]!r} there, {ours[key]!r} now"
    for key in ours
    if theirs[key] != ours[key] and key not in ("fields", "record_bytes")
  ]
  if differing:
    raise ValueError(
      f"config.data.prepared={str(directory)!r} holds other data:\n"
      + "\n".join(differing)
      + "\nName another directory, or give the config its old values."
    )


def _check_space(directory: pathlib.Path, schema: schema_lib.Schema) -> None:
  """Refuses to start what cannot end."""
  record = schema_lib.layout(schema).size
  each = record * schema.records_per_image + 4 * schema.feature_width
  needed, free = each * schema.images, shutil.disk_usage(directory).free
  about, left = prepare_join.amount(needed), prepare_join.amount(free)
  _log.info("%s will take about %s", directory, about)
  if needed > free:
    raise ValueError(
      f"config.data.prepared={str(directory)!r}: about {about} are needed,"
      f" {left} are free; config.data.tokens has smaller forms"
    )


def _write_shards(
  directory: pathlib.Path,
  schema: schema_lib.Schema,
  source: sources.Source,
  networks: encode.Frozen,
) -> None:
  """Writes those shards of this process that are not there yet."""
  mine = range(jax.process_index(), schema.shards, jax.process_count())
  missing = [i for i in mine if not shards.is_whole(directory, schema, i)]
  done = sum(len(_images(schema, i)) for i in mine if i not in set(missing))
  total = sum(len(_images(schema, i)) for i in mine)
  if done:
    _log.info("continuing: %d of %d images are there", done, total)
  progress = _Progress(done, total)
  threads = min(os.cpu_count() or 1, MAX_THREADS)
  with (
    concurrent.futures.ThreadPoolExecutor(threads) as pool,
    warnings.catch_warnings(),
  ):
    image_files.silence_pillow()
    # One stream of pictures over all shards: the pool never runs dry.
    numbers = [n for shard in missing for n in _images(schema, shard)]
    ahead = 2 * networks.batch_size
    pictures = _read_ahead(pool, source, schema.image_shape[0], numbers, ahead)
    for shard in missing:
      with shards.writing(directory, schema, shard) as writer:
        images = _images(schema, shard)
        _fill(writer, networks, pictures, images, progress)
  progress.close()


def _fill(
  writer: shards.ShardWriter,
  networks: encode.Frozen,
  pictures: Iterator[sources.Picture],
  images: Sequence[int],
  progress: "_Progress",
) -> None:
  """Encodes the images of a shard; the devices are one batch ahead."""
  batch: list[sources.Picture] = []
  numbers: list[int] = []
  late = None

  def dispatch() -> None:
    nonlocal late, batch, numbers
    pixels = np.stack([_pixels(picture) for picture in batch])
    started = batch, networks(pixels, np.array(numbers, np.int32))
    batch, numbers = [], []
    flush()
    late = started

  def flush() -> None:
    if late is not None:
      done, arrays = late
      writer.add(
        done, {n: np.asarray(a)[: len(done)] for n, a in arrays.items()}
      )

  for number in images:
    picture = next(pictures)
    if picture.pixels is None:
      writer.skip(picture)
      _log.warning(
        "skipped %s: %s", prepare_join.printable(picture.name), picture.note
      )
    else:
      batch.append(picture)
      numbers.append(number)
    if len(batch) == networks.batch_size:
      dispatch()
    progress.step(skipped=picture.pixels is None)
  if batch:
    dispatch()
  flush()


def _read_ahead(
  pool: concurrent.futures.Executor,
  source: sources.Source,
  size: int,
  numbers: Sequence[int],
  ahead: int,
) -> Iterator[sources.Picture]:
  """Reads and crops images in threads, in order."""
  queue: collections.deque[Any] = collections.deque()
  for number in numbers:
    queue.append(pool.submit(_read, source, number, size))
    if len(queue) > ahead:
      yield queue.popleft().result()
  while queue:
    yield queue.popleft().result()


def _read(source: sources.Source, number: int, size: int) -> sources.Picture:
  picture = source.read(number)
  pixels = picture.pixels
  if pixels is None or pixels.shape[:2] == (size, size):
    return picture
  cut = image_files.center_crop(pixels, size)
  return sources.Picture(picture.name, picture.label, cut, picture.note)


def _pixels(picture: sources.Picture) -> np.ndarray:
  assert picture.pixels is not None
  return picture.pixels


def _images(schema: schema_lib.Schema, shard: int) -> range:
  """Positions in the source of a shard's images."""
  start = shard * schema.shard_size
  return range(start, min(start + schema.shard_size, schema.images))


class _Progress:
  """Images per second and ETA, of this call."""

  def __init__(self, done: int, total: int):
    self._line = progress.Progress("prepare", done, total, unit="image")
    self._done, self._skipped = done, 0
    self._lap = done, time.monotonic()

  def step(self, *, skipped: bool) -> None:
    """Counts an image."""
    self._done += 1
    self._skipped += skipped
    self._line.update(self._done)
    (done, then), now = self._lap, time.monotonic()
    if now - then > LOG_EVERY:
      rate = (self._done - done) / (now - then)
      numbers = {"skipped": float(self._skipped)}
      self._line.report(self._done, rate, numbers)
      self._lap = self._done, now

  def close(self) -> None:
    """Ends the line."""
    self._line.close()


def _wait(name: str) -> None:
  """Until all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"prepare/{name}")
