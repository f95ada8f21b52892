"""References: what images are compared with, opened or measured."""

import dataclasses
import pathlib

from gmem_jax.evaluate import (
  accumulate,
  features as features_lib,
  open as open_lib,
  scores as scores_lib,
  sources,
  statistics,
)
from gmem_jax.files import numpy_files


def measure_statistics(
  source: sources.ImageSource,
  extractor: features_lib.Extractor,
  gaussians: set[str],
  rows: set[str],
  store: accumulate.PartialStore | None,
  what: str,
  *,
  count: int = scores_lib.REFERENCE_ROWS,
) -> statistics.Statistics:
  """Measures the statistics of all images of a source.

  Args:
    source: The images.
    extractor: The networks.
    gaussians: Features whose Gaussians are measured.
    rows: Features of which rows are kept.
    store: Where a killed pass continues from, or None.
    what: Names the images.
    count: Of how many images rows are kept.

  Raises:
    ValueError: If there are too few images, or a network cannot read them.
  """
  scores_lib.check_images(
    extractor, source.shape, source.count, gaussians, what
  )
  # Spread, as the files of a folder are often sorted by class.
  keep = {name: accumulate.evenly(source.count, count) for name in rows}
  sums = accumulate.Accumulator(
    extractor.widths, moments=sorted(gaussians), keep=keep
  )
  accumulate.measure(what, source, source.count, extractor, sums, store)
  return statistics.Statistics(
    gaussians={name: m.gaussian() for name, m in sums.moments.items()},
    rows={name: sums.rows(name) for name in keep},
    networks=extractor.info(),
    count=sums.done,
    shape=source.shape,
    info=source.info,
  )


def against(
  evaluator: scores_lib.Evaluator,
  path: pathlib.Path,
  shape: tuple[int, int, int],
  store: accumulate.PartialStore | None,
  *,
  published: bool = False,
) -> scores_lib.Evaluator:
  """The evaluator with a reference; measures what the reference lacks.

  Args:
    evaluator: Without a reference.
    path: Statistics, ours or converted, or images: an .npz or a folder.
    shape: H, W, ch of the images to compare.
    store: Where a killed pass continues from, or None.
    published: See `statistics.check_networks`.

  Raises:
    ValueError: If the reference does not fit, or lacks something.
  """
  needed = scores_lib.compared(evaluator.scores)
  reference = _statistics_of(
    evaluator.extractor, path, shape, needed, store, published
  )
  return dataclasses.replace(evaluator, reference=reference)


def with_heldout(
  evaluator: scores_lib.Evaluator,
  path: pathlib.Path,
  shape: tuple[int, int, int],
  store: accumulate.PartialStore | None,
) -> scores_lib.Evaluator:
  """The evaluator with held-out images, as `against` has a reference.

  Raises:
    ValueError: See `against`; or if no score is of held-out images.
  """
  needed = needed_heldout(evaluator)
  heldout = _statistics_of(
    evaluator.extractor, path, shape, needed, store, published=False
  )
  return dataclasses.replace(evaluator, heldout=heldout)


def needed_heldout(
  evaluator: scores_lib.Evaluator,
) -> tuple[set[str], set[str]]:
  """What is needed of held-out images, see `scores.compared_heldout`.

  Raises:
    ValueError: If no score is of held-out images.
  """
  needed = scores_lib.compared_heldout(evaluator.scores)
  if not any(needed):
    known = (*scores_lib.REPRESENTATIONS, *scores_lib.MANIFOLDS)
    raise ValueError(
      f"of the scores {', '.join(evaluator.scores)} none is of held-out images:"
      f" at least one of {', '.join(known)}"
    )
  return needed


def _statistics_of(
  extractor: features_lib.Extractor,
  path: pathlib.Path,
  shape: tuple[int, int, int],
  needed: tuple[set[str], set[str]],
  store: accumulate.PartialStore | None,
  published: bool,
) -> statistics.Statistics:
  """The statistics of a path; those that it lacks are measured."""
  stored, images = _open(path, shape[-1])
  gaussians, rows = needed
  # Stored statistics come first, as in the ADM suite: those of its reference
  # batch are of more images than the file has.
  if stored:
    used = gaussians & set(stored.gaussians), rows & set(stored.rows)
    _check(path, stored, extractor, shape, *used, published)
    gaussians, rows = gaussians - used[0], rows - used[1]
  if not gaussians and not rows:
    return stored or scores_lib.NO_REFERENCE
  images = _require_images(path, images, gaussians | rows, shape)
  reference = measure_statistics(
    images,
    extractor,
    gaussians,
    rows,
    store,
    f"reference {path.name}",
  )
  if stored:
    reference = dataclasses.replace(
      reference,
      gaussians={**reference.gaussians, **stored.gaussians},
      rows={**reference.rows, **stored.rows},
      info={**stored.info, "measured_on": reference.info},
    )
  return reference


def images_of(path: pathlib.Path, channels: int) -> sources.ImageSource | None:
  """The images of a reference, or None where it holds statistics alone."""
  return _open(path, channels)[1]


def _open(
  path: pathlib.Path, channels: int
) -> tuple[statistics.Statistics | None, sources.ImageSource | None]:
  """(statistics, images) of a reference, either or both."""
  if path.is_dir():
    if (path / "metadata").is_dir():
      return statistics.load(path), None
    return None, open_lib.open_images(path, channels=channels)
  if path.suffix == ".npz" and path.exists():
    with numpy_files.opened(path) as npz:
      names = npz.names
    images = open_lib.open_images(path) if "arr_0" in names else None
    has_statistics = "mu" in names or "meta" in names or not images
    return statistics.load(path) if has_statistics else None, images
  return None, open_lib.open_images(path)


def _check(
  path: pathlib.Path,
  stored: statistics.Statistics,
  extractor: features_lib.Extractor,
  shape: tuple[int, int, int],
  gaussians: set[str],
  rows: set[str],
  published: bool,
) -> None:
  """Refuses stored statistics that do not fit the networks or images.

  `gaussians` and `rows` are the features whose stored ones are used: the others
  may be of any network.
  """
  statistics.check_networks(
    stored, extractor.info(), gaussians | rows, published=published
  )
  # Not of another number of channels: grey images are compared as RGB.
  if stored.shape and stored.shape[:2] != shape[:2]:
    raise ValueError(
      f"{path} is of images of {stored.shape[0]} x {stored.shape[1]} pixels,"
      f" ours have {shape[0]} x {shape[1]}"
    )
  for name in sorted(gaussians):
    width, own = len(stored.gaussians[name].mean), extractor.widths[name]
    if width != own:
      raise ValueError(
        f"{path}: its {name} features are {width} wide, ours {own}: it is of"
        " another network"
      )


def _require_images(
  path: pathlib.Path,
  images: sources.ImageSource | None,
  missing: set[str],
  shape: tuple[int, int, int],
) -> sources.ImageSource:
  """The images to measure missing statistics on, of the right size."""
  if not images:
    raise ValueError(
      f"{path} has no {', '.join(sorted(missing))} statistics and no images to"
      " measure them on; leave out the scores that need them, or make"
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
  return images
