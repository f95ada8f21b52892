"""The commands of `python -m gmem_jax.bank`.

Each takes the parsed arguments of `commands.bank`, and raises ValueError or
OSError with one clear line.
"""

import argparse
import pathlib
import shutil
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gmem_jax import rngs
from gmem_jax.bank import (
  bank as bank_lib,
  edit,
  files as bank_files,
  lookup,
  storage,
)
from gmem_jax.commands import bank_sheet
from gmem_jax.data import encode_files, images

# Queries looked up at a time.
BATCH = 256
# Skipped files that are named; the others are counted.
NAMED = 20


def info(args: argparse.Namespace) -> None:
  """Prints what a bank is.

  Args:
    args: bank.
  """
  stored = bank_files.read(args.bank)
  bank, about = stored.bank, stored.info
  nbytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(bank))
  norms = np.linalg.norm(bank_lib.decode(bank), axis=1)
  facts = {
    "rows": f"{about.size:,} of width {about.width}",
    "storage": f"{bank.storage}, {nbytes:,} bytes",
    "norms": f"{norms.min():.4g} to {norms.max():.4g}, mean {norms.mean():.4g}",
    "encoder": about.encoder or "unknown",
    "crop": about.crop or "unknown",
    "source": about.source,
    "images": "unknown",
    "sha256": about.digest,
    "parent": about.parent or "none",
    "edit": about.edit or "none",
  }
  if stored.images is not None:
    known = sum(bool(name) for name in stored.images.names)
    facts["images"] = f"{known:,} named, in {stored.images.folder}"
  if stored.counts is not None:
    facts["counts"] = f"{stored.counts.sum():,} occurrences"
  print(args.bank)
  for key, value in facts.items():
    print(f"  {key:<8} {value}")


def build(args: argparse.Namespace) -> None:
  """Makes a bank of a folder of images.

  Args:
    args: folder, out, config, weights.
  """
  out = _new(args.out)
  config = encode_files.load_config(args.config, args.weights)
  root, files = encode_files.list_images([args.folder])
  encoder = encode_files.FileEncoder(config)
  partial = out.with_name(f".{out.name}.partial")
  found = encode_files.encode_all(encoder, files, partial)
  _say_skipped(found, len(files))
  bank = bank_lib.MemoryBank(found.features)
  about = bank_lib.make_info(
    bank,
    encoder=encoder.name,
    source=f"folder {pathlib.Path(root).name}",
    crop=encoder.crop,
  )
  _write(out, bank_files.Stored(bank, about, _named(root, files, found)))
  shutil.rmtree(partial)


def search(args: argparse.Namespace) -> None:
  """Prints the nearest rows, and draws them.

  Args:
    args: bank, row | image | features, k, sheet, images, config, weights.
  """
  sheet = _new(args.sheet) if args.sheet else None
  stored = bank_files.read(args.bank)
  if sheet is not None and stored.images is None:
    raise ValueError(f"--sheet: the source images of {args.bank} are not known")
  labels, files, queries = _queries(args, stored)
  if not 1 <= args.k <= stored.bank.size:
    raise ValueError(f"-k {args.k}: the bank has {stored.bank.size} rows")
  scores, rows = _nearest(queries, stored.bank, args.k)
  for label, score, row in zip(labels, scores, rows, strict=True):
    print(f"{label}:")
    for rank, (x, i) in enumerate(zip(score, row, strict=True), 1):
      name = stored.images.names[i] if stored.images else ""
      print(f"  {rank:>3}  {x:+.6f}  row {i}  {name}".rstrip())
  if sheet is None:
    return
  near = [[_image(args, stored, int(i)) for i in row] for row in rows]
  picture, missing = bank_sheet.draw(files, near, labels)
  images.save_png(sheet, picture)
  print(f"wrote {sheet}" + (f"; {missing} images missing" if missing else ""))


def append(args: argparse.Namespace) -> None:
  """Adds memories of images, or features.

  Args:
    args: bank, out, image | features, config, weights.
  """
  out, stored = _new(args.out), bank_files.read(args.bank)
  if args.features:
    features = encode_files.read_file(args.features, stored.bank.width)
    source, added = pathlib.Path(args.features).name, None
  else:
    root, files, found = _encode(args, stored)
    features, source = found.features, f"{len(found.kept)} images"
    added = _named(root, files, found)
  new = edit.append(stored.bank, stored.info, features, source)
  _say_lost(features, new)
  _write(out, bank_files.edited(stored, new, added))


def interpolate(args: argparse.Namespace) -> None:
  """Adds memories between two rows.

  Args:
    args: bank, out, first, second, method, points, seed.
  """
  out, stored = _new(args.out), bank_files.read(args.bank)
  if args.points < 1:
    raise ValueError(f"--points={args.points}: must be at least 1")
  # Weights of A, from A to B.
  weights = np.linspace(1, 0, args.points + 2)[1:-1]
  new = edit.interpolate(
    stored.bank, stored.info, args.first, args.second, weights,
    method=args.method, key=rngs.key(args.seed, "bank/mask"),
  )  # fmt: skip
  first = stored.bank.size
  print(f"rows {first} to {first + args.points - 1} are new")
  _write(out, bank_files.edited(stored, new, None))


def remove(args: argparse.Namespace) -> None:
  """Takes rows out.

  Args:
    args: bank, out, row.
  """
  out, stored = _new(args.out), bank_files.read(args.bank)
  new = edit.remove(stored.bank, stored.info, np.array(args.row))
  _write(out, bank_files.edited(stored, new, None))


def compress(args: argparse.Namespace) -> None:
  """Stores rows in less memory, and says what that loses.

  Args:
    args: bank, out, storage | rank.
  """
  out, stored = _new(args.out), bank_files.read(args.bank)
  new = edit.compress(stored.bank, stored.info, args.storage, rank=args.rank)
  before, after = (
    sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(bank))
    for bank in (stored.bank, new.bank)
  )
  lost = storage.error(bank_lib.decode(stored.bank), bank_lib.decode(new.bank))
  print(
    f"{before:,} to {after:,} bytes; lost {lost.relative:.3%} of the rows'"
    f" norm; cosine of a row to what it was: {lost.mean_cosine:.6f} in the"
    f" mean, {lost.worst_cosine:.6f} at worst"
  )
  _write(out, bank_files.edited(stored, new, None))


def dedup(args: argparse.Namespace) -> None:
  """Takes repetitions out.

  Args:
    args: bank, out, threshold.
  """
  out, stored = _new(args.out), bank_files.read(args.bank)
  with tqdm.tqdm(
    total=stored.bank.size,
    desc="dedup",
    unit="row",
    disable=not sys.stderr.isatty(),
    leave=False,
  ) as bar:
    new = edit.deduplicate(stored.bank, stored.info, args.threshold, bar.update)
  print(f"{stored.bank.size - new.bank.size:,} repetitions")
  _write(out, bank_files.edited(stored, new, None))


def _new(text: str) -> pathlib.Path:
  """A path where there is nothing yet: fails before the work."""
  path = pathlib.Path(text).absolute()
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise FileExistsError(f"{text} already exists; it is left as it is")
  if not path.parent.is_dir():
    raise ValueError(f"{text}: there is no directory {path.parent}")
  return path


def _write(out: pathlib.Path, stored: bank_files.Stored) -> None:
  bank_files.write(out, stored)
  print(
    f"wrote {out}: {stored.info.size:,} rows of {stored.info.width},"
    f" {stored.bank.storage}, sha256 {stored.info.digest[:12]}"
  )


def _queries(
  args: argparse.Namespace, stored: bank_files.Stored
) -> tuple[list[str], list[pathlib.Path | None], np.ndarray]:
  """(labels, image files, features) of what is searched for."""
  if args.row is not None:
    rows = np.array(args.row)
    bank_lib.check_rows(rows, stored.bank.size, "--row")
    files = [_image(args, stored, int(i)) for i in rows]
    return (
      [f"row {i}" for i in rows],
      files,
      np.asarray(bank_lib.features(stored.bank, rows)),
    )
  if args.features:
    rows = encode_files.read_file(args.features, stored.bank.width)
    labels = [f"{args.features}[{i}]" for i in range(len(rows))]
    return labels, [None] * len(rows), rows
  _, files, found = _encode(args, stored)
  kept = [files[i] for i in found.kept]
  return [path.name for path in kept], list(kept), found.features


def _encode(
  args: argparse.Namespace, stored: bank_files.Stored
) -> tuple[str, list[pathlib.Path], encode_files.Encoded]:
  """(common folder, files, features) of --image, by the bank's encoder."""
  if args.config is None:
    raise ValueError("--image needs --config: it names the feature encoder")
  config = encode_files.load_config(args.config, args.weights)
  root, files = encode_files.list_images(args.image)
  encoder = encode_files.FileEncoder(config)
  key = f"--config={args.config}: config.encoder.features"
  bank_lib.check_encoder(stored.info, encoder.name, key)
  with tqdm.tqdm(
    total=len(files),
    desc="encode",
    unit="image",
    disable=not sys.stderr.isatty(),
    leave=False,
  ) as bar:
    found = encoder(files, bar.update)
  _say_skipped(found, len(files))
  if found.features.shape[1] != stored.bank.width:
    raise ValueError(
      f"{key}={config.encoder.features!r} makes features"
      f" {found.features.shape[1]} wide, the bank's are {stored.bank.width}"
    )
  return root, files, found


def _nearest(
  queries: np.ndarray, bank: bank_lib.Bank, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and rows of the nearest neighbours, [q, k] each."""
  if isinstance(bank, bank_lib.LowRankBank):
    bank = bank_lib.MemoryBank(bank_lib.decode(bank))
  units = lookup.unit(jax.device_put(bank))
  queries = np.asarray(bank_lib.normalise(queries))
  find = jax.jit(lookup.nearest, static_argnames="k")
  size, parts = min(BATCH, len(queries)), []
  for start in range(0, len(queries), size):
    part = queries[start : start + size]
    filled = jnp.asarray(np.resize(part, (size, part.shape[1])))
    found = jax.device_get(find(filled, units, k=k))
    parts.append([x[: len(part)] for x in found])
  scores, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
  return scores, rows


def _image(
  args: argparse.Namespace, stored: bank_files.Stored, row: int
) -> pathlib.Path | None:
  if stored.images is None:
    return None
  return stored.images.path(row, args.images)


def _named(
  root: str, files: Sequence[pathlib.Path], found: encode_files.Encoded
) -> bank_files.SourceImages:
  """Names of the images that became rows."""
  names = [str(files[i].relative_to(root)) for i in found.kept]
  return bank_files.SourceImages(root, tuple(names))


def _say_skipped(found: encode_files.Encoded, count: int) -> None:
  """Names what could not be read; refuses if that is all."""
  for path, reason in found.skipped[:NAMED]:
    print(f"skipped {path}: {reason}", file=sys.stderr)
  if found.skipped:
    print(f"skipped {len(found.skipped)} of {count} files", file=sys.stderr)
  if not len(found.kept):
    raise ValueError(f"none of the {count} images could be read")


def _say_lost(features: np.ndarray, new: edit.Edited) -> None:
  """Says how much of appended rows the storage keeps."""
  rows = np.flatnonzero(new.origin < 0)
  kept = np.asarray(bank_lib.features(new.bank, rows))
  lost = storage.error(features.astype(np.float32), kept)
  if lost.relative > 1e-6:
    print(
      f"stored as {new.bank.storage}, the new rows lose {lost.relative:.3%} of"
      f" their norm; worst cosine {lost.worst_cosine:.6f}"
    )
