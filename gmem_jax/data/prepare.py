"""Images to a directory of prepared data.

Of n processes, process i writes the shards i, i + n, i + 2 n … and leaves those
that exist as they are; then the first process joins what belongs to all shards.
A kill at any moment costs the shards that were being written. The next call
continues, and its result is that of an uninterrupted run, byte for byte.
"""

import dataclasses
import errno
import functools
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gmem_jax import progress as progress_lib
from gmem_jax.data import (
  batching,
  decode_image,
  encode,
  prepare_join,
  schema as schema_lib,
  shards,
  sources,
  store,
)
from gmem_jax.files import atomic, errors, paths
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)


def write_store(
  directory: paths.Path,
  schema: schema_lib.Schema,
  source: sources.Source,
  encoders: encode.Encoders,
) -> dict[str, Any]:
  """Prepares images, from wherever an earlier call was stopped.

  The directory is created if need be.

  Returns:
    The report, as it is kept in report.json.

  Raises:
    ValueError: If the directory holds other data, no image can be read, or the
      encoders gave NaN.
    OSError: If the disk is full; whole shards are kept.
  """
  first = jax.process_index() == 0
  try:
    # The schema is written once and by one process; the others compare, so that
    # processes with different configs do not share a directory.
    if first:
      _claim(directory, schema)
    processes.wait_for_all("prepare/schema")
    if not first:
      _check(directory, schema)
    _check_files(directory, schema, source)
    if not (directory / store.REPORT).exists():
      _write_shards(directory, schema, source, encoders)
      processes.wait_for_all("prepare/shards")
      if first:
        prepare_join.join(directory, schema, source.ignored, source.files)
      processes.wait_for_all("prepare/bank")
    if first:
      prepare_join.clean(directory)
  except OSError as error:
    # With the system's number: launchers start again where a disk is full.
    raise OSError(
      error.errno or errno.EIO,
      f"{error.strerror or error}. The shards that are whole are kept in"
      f" {directory}: make room or give access, and give the same command"
      " again",
      error.filename or str(directory),
    ) from None
  return atomic.read_json(directory / store.REPORT)


def _claim(directory: paths.Path, schema: schema_lib.Schema) -> None:
  """Makes a directory this schema's, or checks that it already is."""
  if (directory / schema_lib.FILE).exists():
    _check(directory, schema)
    return
  directory.mkdir(parents=True, exist_ok=True)
  _check_space(directory, schema)
  about = {schema_lib.MADE_ON: processes.hardware()}
  atomic.write_json(
    directory / schema_lib.FILE, schema_lib.to_json(schema) | about
  )


def _check(directory: paths.Path, schema: schema_lib.Schema) -> None:
  """Checks that a directory is of this schema; names what differs."""
  differing = atomic.differences(
    schema_lib.to_json(schema_lib.read(directory)),
    schema_lib.to_json(schema),
    # They follow from the others.
    ignored=("fields", "record_bytes"),
  )
  if differing:
    raise ValueError(
      f"config.data.prepared={str(directory)!r} holds other data:\n"
      + "\n".join(differing)
      + "\nName another directory, or give the config its old values."
    )


def _check_files(
  directory: paths.Path, schema: schema_lib.Schema, source: sources.Source
) -> None:
  """Checks that what was written is of the files that the source has now."""

  def differs(number: int) -> bool:
    path = directory / f"{schema.shard_name(number)}.json"
    # A shard from before this was noted says nothing.
    noted = atomic.read_json(path).get("files", "") if path.exists() else ""
    return noted not in ("", source.fingerprint(_images(schema, number)))

  numbers = _shards_of_process(schema)
  with decode_image.threads() as pool:
    found = zip(numbers, pool.map(differs, numbers), strict=True)
    others = [number for number, other in found if other]
  if not others:
    return
  message = (
    f"config.data.prepared={str(directory)!r} was made of other files of the"
    " same names: name another directory"
  )
  if not (directory / store.REPORT).exists():
    names = ", ".join(f"{schema.shard_name(i)}.json" for i in others[:3])
    more = " …" if others[3:] else ""
    message += f", or remove {names}{more} there to have these made again"
  raise ValueError(message)


def _check_space(directory: paths.Path, schema: schema_lib.Schema) -> None:
  """Refuses to start what the disk has no room for."""
  if not isinstance(directory, pathlib.Path):
    return  # A bucket has room for anything that is paid for.
  record = schema_lib.layout(schema).size
  # Besides its records, each image has a row of the bank in float32.
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
  directory: paths.Path,
  schema: schema_lib.Schema,
  source: sources.Source,
  encoders: encode.Encoders,
) -> None:
  """Writes the missing ones among this process's shards."""
  mine = _shards_of_process(schema)
  missing = [i for i in mine if not shards.is_whole(directory, schema, i)]
  done = sum(len(_images(schema, i)) for i in mine if i not in set(missing))
  total = sum(len(_images(schema, i)) for i in mine)
  if done:
    _log.info("continuing: %d of %d images are there", done, total)
  progress = progress_lib.Progress("prepare", done, total, unit="image")
  with decode_image.threads() as pool:
    read = functools.partial(_read, source, schema.image_shape[0])
    # One stream of pictures over all shards: the threads never run dry.
    numbers = (n for shard in missing for n in _images(schema, shard))
    # The next batch is whole in memory while the devices work on this one.
    ahead = 2 * encoders.batch_size
    pictures = batching.read_ahead(pool, read, numbers, ahead)
    for shard in missing:
      with shards.writing(directory, schema, shard) as writer:
        images = _images(schema, shard)
        writer.files = source.fingerprint(images)
        _fill(writer, encoders, pictures, images, progress)
  progress.close()


def _fill(
  writer: shards.ShardWriter,
  encoders: encode.Encoders,
  pictures: Iterator[sources.Picture],
  images: Sequence[int],
  progress: progress_lib.Progress,
) -> None:
  """Encodes the images of a shard; the devices are one batch ahead."""

  def readable() -> Iterator[tuple[int, sources.Picture, np.ndarray]]:
    for number in images:
      picture = next(pictures)
      if picture.pixels is None:
        writer.skip(picture)
        name = errors.printable(picture.name)
        _log.warning("skipped %s: %s", name, picture.note)
      else:
        yield number, picture, picture.pixels
      progress.advance(1)

  def started() -> Iterator[tuple[Sequence[sources.Picture], Any]]:
    # Batches end with the shard: what is encoded together never depends on
    # where an earlier call was killed.
    for batch in batching.grouped(readable(), encoders.batch_size):
      numbers, kept, pixels = zip(*batch, strict=True)
      yield kept, encoders(np.stack(pixels), np.array(numbers, np.int32))

  for kept, arrays in batching.one_ahead(started()):
    writer.add(kept, {n: np.asarray(a)[: len(kept)] for n, a in arrays.items()})


def _read(source: sources.Source, size: int, number: int) -> sources.Picture:
  """Reads an image and crops it to the size that the encoders take."""
  picture = source.read(number)
  pixels = picture.pixels
  if pixels is None or pixels.shape[:2] == (size, size):
    return picture
  cut = decode_image.center_crop(pixels, size)
  return dataclasses.replace(picture, pixels=cut)


def _shards_of_process(schema: schema_lib.Schema) -> range:
  """Numbers of the shards that this process writes."""
  return range(jax.process_index(), schema.shards, jax.process_count())


def _images(schema: schema_lib.Schema, shard: int) -> range:
  """Positions in the source of a shard's images."""
  start = shard * schema.shard_size
  return range(start, min(start + schema.shard_size, schema.images))
