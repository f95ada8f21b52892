"""Shards to whole prepared data: the bank, the statistics, the report."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import (
  bank as bank_lib,
  files as bank_files,
  images as bank_images,
)
from gmem_jax.data import schema as schema_lib, shards, store
from gmem_jax.files import atomic, errors, numpy_files, paths
from gmem_jax.parallel import processes

# Names that the screen shows; report.json has all of them.
SHOWN = 20


def join(
  directory: paths.Path,
  schema: schema_lib.Schema,
  ignored: Mapping[str, int],
  files: bank_images.SourceImages | None = None,
) -> None:
  """Writes what belongs to all shards of a directory.

  `ignored` counts the source's files that are no images, by extension; `files`
  are its images, those that were skipped included.

  Raises:
    ValueError: If no image could be read (nothing is kept then), or a shard is
      missing: hosts that share no disk cannot prepare together.
  """
  facts = [
    atomic.read_json(directory / f"{schema.shard_name(i)}.json")
    for i in range(schema.shards)
  ]
  skipped = [s for fact in facts for s in fact["skipped"]]
  images = sum(fact["images"] for fact in facts)
  bank = directory / bank_files.PREPARED
  if not images:
    # They are read anew once they are mended, or others are named.
    for number in range(schema.shards):
      shards.remove(directory, schema, number)
    bank.rmdir()
    (directory / schema_lib.FILE).unlink()
    raise ValueError("no image can be used:\n" + "\n".join(_named(skipped)))
  info = _join_bank(directory, schema, images)
  bank_files.write_info(bank, info)
  if files is not None:
    left_out = {s["name"] for s in skipped}
    kept = tuple(name for name in files.names if name not in left_out)
    bank_images.write(bank, bank_images.SourceImages(files.folder, kept))
  atomic.write_json(directory / store.STATISTICS, _statistics(facts))
  size = sum(fact["bytes"] for fact in facts)
  # Last: where there is a report, the data are whole.
  atomic.write_json(
    directory / store.REPORT,
    {
      "images": images,
      "shards": schema.shards,
      "bytes": size + paths.size(bank / bank_files.ROWS),
      "bank": info.digest,
      "skipped": skipped,
      "noted": [n for fact in facts for n in fact["noted"]],
      # A shard from before there was such a number says nothing.
      "rotated_by_exif": sum(f.get("rotated_by_exif", 0) for f in facts),
      "ignored": dict(sorted(ignored.items())),
    },
  )


def clean(directory: paths.Path) -> None:
  """Removes from whole data the bank's parts and what kills have left."""
  bank = directory / bank_files.PREPARED
  for folder in (directory, bank):
    for path in atomic.leftovers(folder):
      path.unlink()
  for path in bank.glob("train-*.npy"):
    path.unlink()


def describe(directory: paths.Path, report: Mapping[str, Any]) -> str:
  """Formats the report of report.json for people."""
  skipped, noted = report["skipped"], report["noted"]
  lines = [
    f"Prepared data: {directory}",
    f"  images   {report['images']:,} in {report['shards']:,} shards",
    f"  bytes    {report['bytes']:,} ({amount(report['bytes'])})",
    f"  bank     row i is image i; sha256 {report['bank']}",
    f"  skipped  {len(skipped):,}",
    *_named(skipped),
  ]
  if noted:
    lines += [f"  noted    {len(noted):,}", *_named(noted)]
  if rotated := report.get("rotated_by_exif"):
    lines.append(
      f"  rotated  {rotated:,} by EXIF, ignored as in published code"
    )
  if report["ignored"]:
    kinds = ", ".join(f"{n} {k}" for k, n in report["ignored"].items())
    lines.append(f"  ignored  other files: {kinds}")
  return "\n".join(lines)


def amount(size: int) -> str:
  """Formats a number of bytes for people."""
  power = min(int(math.log10(max(size, 1)) // 3), 4)
  return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _named(entries: Sequence[Mapping[str, str]]) -> list[str]:
  lines = [
    f"    {errors.printable(one['name'])}: {one.get('reason', one.get('note'))}"
    for one in entries[:SHOWN]
  ]
  if len(entries) > SHOWN:
    lines.append(f"    and {len(entries) - SHOWN:,} more, see {store.REPORT}")
  return lines


def _join_bank(
  directory: paths.Path, schema: schema_lib.Schema, images: int
) -> bank_lib.BankInfo:
  """Joins the rows of all shards."""
  header = {
    "descr": "<f4",
    "fortran_order": False,
    "shape": (images, schema.feature_width),
  }
  path = directory / bank_files.PREPARED / bank_files.ROWS
  with atomic.replacing(path) as temporary:
    # Shard by shard: the whole would be held twice by np.concatenate.
    with temporary.open("wb") as file:
      np.lib.format.write_array_header_1_0(file, header)
      for number in range(schema.shards):
        rows = numpy_files.read_npy(
          paths.local(shards.rows_path(directory, schema, number))
        )
        file.write(rows.tobytes())
      # On the disk before the name, or a power cut could leave an empty file.
      file.flush()
      os.fsync(file.fileno())
    bank = bank_lib.MemoryBank(rows=jnp.asarray(np.load(temporary)))
    return bank_lib.make_info(
      bank,
      encoder=schema.features["name"],
      source=schema.source["name"],
      crop=f"center_crop({schema.image_shape[0]})",
      made_on=processes.hardware_line(),
    )


def _statistics(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Mean and (n - 1) standard deviation of each latent channel."""
  sums = [fact["latents"] for fact in facts]
  count = sum(s["count"] for s in sums)
  total = np.sum([s["sum"] for s in sums], axis=0)
  square = np.sum([s["square"] for s in sums], axis=0)
  mean = total / count
  # One pass over the data gives sums alone. They are float64, so the difference
  # of large numbers loses nothing that float32 statistics would show.
  variance = (square - count * mean**2) / max(count - 1, 1)
  if not (variance > 0).all():
    channels = np.flatnonzero(~(variance > 0)).tolist()
    raise ValueError(
      f"latent channels {channels} are the same everywhere: the flow cannot"
      " be trained on them"
    )
  return {
    "count": count,
    "mean": mean.tolist(),
    "std": np.sqrt(variance).tolist(),
  }
