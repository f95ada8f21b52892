"""References: what images are compared with, opened or measured."""

import dataclasses
import pathlib
from collections.abc import Sequence

from gmem_jax.evaluate import (
  accumulate as tally_lib,
  catalogue,
  features as extractor_lib,
  measure,
  sources,
  statistics,
)
from gmem_jax.files import atomic


def measure_statistics(
  source: sources.Source,
  extractor: extractor_lib.Extractor,
  gaussians: set[str],
  rows: int,
  store: measure.Store | None,
  what: str,
) -> statistics.Statistics:
  """Measures the statistics of all images of a source.

  Args:
    source: The images.
    extractor: The networks.
    gaussians: Features whose Gaussian is wanted.
    rows: How many rows to keep for precision and recall, spread evenly.
    store: Where a killed pass continues from, or None.
    what: Names the images, in errors and on the progress line.

  Raises:
    ValueError: If there are too few images, or a network cannot read them.
  """
  catalogue.check_count(source.count, gaussians, extractor.widths, what)
  extractor.check(source.shape)
  keep = {"pool": tally_lib.evenly(source.count, rows)} if rows else {}
  tally = tally_lib.Tally(
    extractor.widths, moments=sorted(gaussians), keep=keep
  )
  measure.measure(what, source, source.count, extractor, tally, store)
  kept = "pool" if rows else None
  return statistics.of_tally(tally, kept, extractor.info(), source)


def open_reference(
  path: pathlib.Path,
  scores: Sequence[str],
  extractor: extractor_lib.Extractor,
  shape: tuple[int, int, int],
  store: measure.Store | None,
  *,
  published: bool = False,
) -> statistics.Statistics:
  """The statistics to compare with; measures of a reference what it lacks.

  Args:
    path: Statistics, or images: an .npz, a folder, converted statistics.
    scores: The scores that are wanted.
    extractor: The networks.
    shape: H, W, ch of the images that are compared.
    store: Where a killed pass continues from, or None.
    published: See `statistics.check_networks`.

  Raises:
    ValueError: If the reference does not fit, or lacks something.
  """
  gaussians, rows = catalogue.compared(scores)
  found, images = _open(path, shape[-1])
  if found:
    held = (gaussians & set(found.gaussians)) | (rows & set(found.rows))
    statistics.check_networks(
      found, extractor.info(), held, published=published
    )
    statistics.check_shape(found, shape)
    for name in sorted(gaussians & set(found.gaussians)):
      theirs, own = len(found.gaussians[name].mean), extractor.widths[name]
      if theirs != own:
        raise ValueError(
          f"{path}: its {name} features are {theirs} wide, ours {own}: it is of"
          " another network"
        )
    gaussians, rows = gaussians - set(found.gaussians), rows - set(found.rows)
  if not gaussians and not rows:
    return found or catalogue.NO_REFERENCE
  if not images:
    raise ValueError(
      f"{path} has no {', '.join(sorted(gaussians | rows))} statistics and no"
      " images to measure them on; leave out the scores that need them, or make"
      " statistics of your own: python -m gmem_jax.evaluate stats --help"
    )
  if images.shape[:2] != shape[:2]:
    crop = (
      f": crop them by python -m gmem_jax.evaluate stats {path} OUT.npz"
      f" --crop={shape[0]}"
    )
    raise ValueError(
      f"{path} holds images of {images.shape[0]} x {images.shape[1]} pixels,"
      f" ours have {shape[0]} x {shape[1]}{crop if path.is_dir() else ''}"
    )
  measured = measure_statistics(
    images,
    extractor,
    gaussians,
    catalogue.REFERENCE_ROWS if rows else 0,
    store,
    f"reference {path.name}",
  )
  if not found:
    return measured
  return dataclasses.replace(
    measured,
    gaussians={**measured.gaussians, **found.gaussians},
    rows={**measured.rows, **found.rows},
    info={**found.info, "measured_on": measured.info},
  )


def _open(
  path: pathlib.Path, channels: int
) -> tuple[statistics.Statistics | None, sources.Source | None]:
  """(statistics, images) of a reference, either or both."""
  if path.is_dir():
    if (path / "metadata").is_dir():
      return statistics.load(path), None
    return None, sources.open_images(path, channels=channels)
  if path.suffix == ".npz" and path.exists():
    names = atomic.array_names(path)
    images = sources.open_images(path) if "arr_0" in names else None
    holds = "mu" in names or "meta" in names or not images
    return statistics.load(path) if holds else None, images
  return None, sources.open_images(path)
