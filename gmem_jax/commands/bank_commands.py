"""The commands of `python -m gmem_jax.bank`.

Each takes the parsed arguments of `commands.bank`, and raises ValueError or
OSError with one clear line. What it writes must not exist, which is checked
before the work.
"""

import argparse
import contextlib
import functools
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gmem_jax import progress, rngs
from gmem_jax.bank import (
  bank as bank_lib,
  edit,
  features as features_lib,
  files as bank_files,
  images as bank_images,
  lookup,
  storage,
)
from gmem_jax.convert import packaged
from gmem_jax.data import (
  decode_image,
  encode_files,
  row_images,
  write_images,
)
from gmem_jax.files import atomic, errors, paths
from gmem_jax.parallel import processes

# Skipped files that are named; the others are counted.
NAMED = 20
# Side of an image on a contact sheet, in pixels.
SIDE = 96


def info(args: argparse.Namespace) -> None:
  """Prints what a bank is."""
  stored = bank_files.read(args.bank)
  bank, about = stored.bank, stored.info
  images = row_images.find(args.bank, stored)
  norms = np.linalg.norm(bank_lib.decode(bank), axis=1)
  facts = {
    "rows": f"{about.size:,} of width {about.width}",
    "storage": f"{bank.storage}, {_nbytes(bank):,} bytes",
    "norms": f"{norms.min():.4g} to {norms.max():.4g}, mean {norms.mean():.4g}",
    "encoder": about.encoder or "unknown",
    "crop": about.crop or "unknown",
    "source": about.source,
    "images": images.where if images else "unknown",
    "sha256": about.digest,
    "made on": about.made_on or "unknown",
    "parent": about.parent or "none",
    "edit": about.edit or "none",
  }
  if stored.counts is not None:
    facts["counts"] = f"{stored.counts.sum():,} occurrences"
  errors.say(args.bank)
  for key, value in facts.items():
    errors.say(f"  {key:<8} {value}")


def build(args: argparse.Namespace) -> None:
  """Makes a bank of a folder of images."""
  out = atomic.new_path(args.out, directory=True)
  config = encode_files.load_config(args.config, args.weights)
  root, files = encode_files.list_images([args.folder])
  packaged.write_missing(config)
  encoder = encode_files.FileEncoder(config)
  # Beside the bank, so that the same command given again continues.
  partial = atomic.partial(out)
  encoded = encode_files.encode_all(encoder, files, partial)
  _report_skipped(encoded, len(files))
  bank = bank_lib.MemoryBank(encoded.features)
  about = bank_lib.make_info(
    bank,
    encoder=encoder.name,
    source=f"folder {pathlib.Path(root).name}",
    crop=encoder.crop,
    made_on=processes.hardware_line(),
  )
  _write(out, bank_files.Stored(bank, about, _named(root, files, encoded)))
  shutil.rmtree(partial)


def search(args: argparse.Namespace) -> None:
  """Prints the nearest rows of queries, and draws them on a contact sheet."""
  sheet = atomic.new_path(args.sheet) if args.sheet else None
  stored = bank_files.read(args.bank)
  images = row_images.find(args.bank, stored, args.images)
  if sheet is not None and images is None:
    raise ValueError(f"--sheet: the source images of {args.bank} are not known")
  queries = _queries(args, stored, images)
  if not 1 <= args.k <= stored.bank.size:
    raise ValueError(f"-k {args.k}: the bank has {stored.bank.size} rows")
  features = queries.features
  units = lookup.place_units(stored.bank)
  cosines, rows = lookup.nearest_by_cosine(features, units, args.k)
  for label, best, numbers in zip(queries.labels, cosines, rows, strict=True):
    errors.say(f"{label}:")
    for rank, (cosine, i) in enumerate(zip(best, numbers, strict=True), 1):
      name = stored.images.names[i] if stored.images else ""
      errors.say(f"  {rank:>3}  {cosine:+.6f}  row {i}  {name}".rstrip())
  if sheet is not None:
    near = [[_tile_of(images, i) for i in best] for best in rows.tolist()]
    picture, missing = _draw(queries, near)
    write_images.save_png(sheet, picture)
    errors.say(
      f"Wrote {sheet}" + (f"; {missing} images missing" if missing else "")
    )
  elif images is not None:
    errors.say("Next: --sheet=OUT.png draws them.")


def append(args: argparse.Namespace) -> None:
  """Adds memories of images, or features from a file."""
  out, stored = _open(args)
  if args.features:
    features = features_lib.read(args.features, stored.bank.width)
    source, added = pathlib.Path(args.features).name, None
  else:
    root, files, encoded = _encode(args, stored)
    features, source = encoded.features, f"{len(encoded.kept)} images"
    added = _named(root, files, encoded)
  new = edit.append(stored.bank, stored.info, features, source)
  _report_lost(features, new)
  _write(out, bank_files.edited(stored, new, added))


def interpolate(args: argparse.Namespace) -> None:
  """Adds memories between two rows."""
  out, stored = _open(args)
  if args.points < 1:
    raise ValueError(f"--points={args.points}: must be at least 1")
  # Weights of A, from A to B.
  weights = np.linspace(1, 0, args.points + 2)[1:-1]
  new = edit.interpolate(
    stored.bank, stored.info, args.first, args.second, weights,
    method=args.method, key=rngs.key(args.seed, "bank/mask"),
  )  # fmt: skip
  first = stored.bank.size
  errors.say(f"rows {first} to {first + args.points - 1} are new")
  _write(out, bank_files.edited(stored, new))


def remove(args: argparse.Namespace) -> None:
  """Takes rows out."""
  out, stored = _open(args)
  new = edit.remove(stored.bank, stored.info, np.array(args.row))
  _write(out, bank_files.edited(stored, new))


def compress(args: argparse.Namespace) -> None:
  """Stores rows in less memory, and says what that loses."""
  out, stored = _open(args)
  new = edit.compress(stored.bank, stored.info, args.storage, rank=args.rank)
  lost = storage.error(bank_lib.decode(stored.bank), bank_lib.decode(new.bank))
  errors.say(
    f"{_nbytes(stored.bank):,} to {_nbytes(new.bank):,} bytes; lost"
    f" {lost.relative:.3%} of the rows' norm; cosine of a row to what it was:"
    f" {lost.mean_cosine:.6f} in the mean, {lost.worst_cosine:.6f} at worst"
  )
  _write(out, bank_files.edited(stored, new))


def dedup(args: argparse.Namespace) -> None:
  """Takes repetitions out."""
  out, stored = _open(args)
  with _progress("dedup", stored.bank.size, "row") as bar:
    new = edit.deduplicate(
      stored.bank, stored.info, args.threshold, bar.advance
    )
  errors.say(f"{stored.bank.size - new.bank.size:,} repetitions")
  _write(out, bank_files.edited(stored, new))


def _open(args: argparse.Namespace) -> tuple[paths.Path, bank_files.Stored]:
  """Where an edit's result goes, and the bank that is edited."""
  out = atomic.new_path(args.out, directory=True)
  return out, bank_files.read(args.bank)


def _write(out: paths.Path, stored: bank_files.Stored) -> None:
  bank_files.write(out, stored)
  errors.say(
    f"Wrote {out}: {stored.info.size:,} rows of {stored.info.width},"
    f" {stored.bank.storage}, sha256 {stored.info.digest[:12]}\n"
    f"Next: python -m gmem_jax.bank info {out}; search finds its nearest rows,"
    f" and --mode=sample --bank={out} samples from it."
  )


def _nbytes(bank: bank_lib.Bank) -> int:
  return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(bank))


def _progress(name: str, total: int, unit: str) -> contextlib.closing:
  return contextlib.closing(progress.Progress(name, 0, total, unit))


# Draws one image of a contact sheet, or None where there is none.
_Tile = Callable[[], np.ndarray | None]


class _Queries(NamedTuple):
  """What is searched for: labels and images of q features."""

  labels: list[str]
  tiles: list[_Tile]
  features: np.ndarray


def _queries(
  args: argparse.Namespace,
  stored: bank_files.Stored,
  images: row_images.RowImages | None,
) -> _Queries:
  if args.row is not None:
    rows = np.array(args.row)
    bank_lib.check_rows(rows, stored.bank.size, "--row")
    return _Queries(
      [f"row {i}" for i in rows],
      [_tile_of(images, i) for i in args.row],
      np.asarray(bank_lib.features(stored.bank, rows)),
    )
  if args.features:
    rows = features_lib.read(args.features, stored.bank.width)
    labels = [f"{args.features}[{i}]" for i in range(len(rows))]
    return _Queries(labels, [lambda: None] * len(rows), rows)
  _, files, encoded = _encode(args, stored)
  kept = [files[i] for i in encoded.kept]
  tiles: list[_Tile] = [
    functools.partial(decode_image.load, path, 3, SIDE, upright=True)
    for path in kept
  ]
  return _Queries([path.name for path in kept], tiles, encoded.features)


def _tile_of(images: row_images.RowImages | None, row: int) -> _Tile:
  """The image of a row."""
  return lambda: images and images.load(row, SIDE)


def _encode(
  args: argparse.Namespace, stored: bank_files.Stored
) -> tuple[str, list[pathlib.Path], encode_files.Encoded]:
  """(common folder, files, features) of --image, by the bank's encoder."""
  if args.config is None:
    raise ValueError("--image needs --config: it names the feature encoder")
  config = encode_files.load_config(args.config, args.weights)
  root, files = encode_files.list_images(args.image)
  packaged.write_missing(config)
  encoder = encode_files.FileEncoder(config, upright=True)
  key = f"--config={args.config}: config.encoder.features"
  # Features of two encoders may have one width, and cosines without meaning.
  bank_lib.check_encoder(stored.info, encoder.name, key)
  with _progress("encode", len(files), "image") as bar:
    encoded = encoder(files, bar.advance)
  _report_skipped(encoded, len(files))
  if encoded.features.shape[1] != stored.bank.width:
    raise ValueError(
      f"{key}={config.encoder.features!r} makes features"
      f" {encoded.features.shape[1]} wide, the bank's are {stored.bank.width}"
    )
  return root, files, encoded


def _named(
  root: str, files: Sequence[pathlib.Path], encoded: encode_files.Encoded
) -> bank_images.SourceImages:
  """Names of the images that became rows."""
  names = [str(files[i].relative_to(root)) for i in encoded.kept]
  return bank_images.SourceImages(root, tuple(names))


def _report_skipped(encoded: encode_files.Encoded, count: int) -> None:
  """Names the files that could not be read; refuses if that is all."""
  for path, reason in encoded.skipped[:NAMED]:
    errors.say(f"skipped {path}: {reason}", sys.stderr)
  if encoded.skipped:
    errors.say(f"skipped {len(encoded.skipped)} of {count} files", sys.stderr)
  if not len(encoded.kept):
    raise ValueError(f"none of the {count} images could be read")


def _report_lost(features: np.ndarray, new: edit.Edited) -> None:
  """Says how much of appended rows the bank's storage loses."""
  rows = np.flatnonzero(new.origin < 0)
  kept = np.asarray(bank_lib.features(new.bank, rows))
  lost = storage.error(features.astype(np.float32), kept)
  # Less is rounding of the report's own arithmetic.
  if lost.relative > 1e-6:
    errors.say(
      f"stored as {new.bank.storage}, the new rows lose {lost.relative:.3%} of"
      f" their norm; worst cosine {lost.worst_cosine:.6f}"
    )


def _draw(
  queries: _Queries, neighbours: list[list[_Tile]]
) -> tuple[np.ndarray, int]:
  """Draws a contact sheet: in each row a query and its neighbours, best first.

  Returns:
    (uint8 [H, W, 3], how many images are gone; their places are white).
  """
  tiles, missing = [], 0
  white = np.full((SIDE, SIDE, 3), 255, np.uint8)
  for query, others in zip(queries.tiles, neighbours, strict=True):
    for draw in (query, *others):
      # A bank outlives its images: what has moved leaves a gap.
      try:
        tile = draw()
      except decode_image.BadImageError:
        tile = None
        missing += 1
      tiles.append(white if tile is None else tile)
  grid = write_images.make_grid(np.stack(tiles), 1 + len(neighbours[0]), gap=4)
  return write_images.label_rows(grid, queries.labels), missing
