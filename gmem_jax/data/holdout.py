"""Images kept out of training and bank: single ones, and whole groups."""

import fnmatch
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from gmem_jax import rngs
from gmem_jax.data import sources
from gmem_jax.files import shown

Source = TypeVar("Source", bound=sources.Source)


def split(
  source: Source, count: int, groups: Sequence[str], seed: int
) -> tuple[Source, Source]:
  """Holds images out of a source.

  Args:
    source: All images.
    count: Random images that are held out, of those outside of `groups`.
    groups: Classes that are held out whole; patterns, as "animal-*".
    seed: The same one holds out the same images of a source.

  Returns:
    (images to train on, held-out images), each in the order of the source.

  Raises:
    ValueError: If that leaves nothing to train on, a pattern fits no class, or
      the source does not tell the classes of its images.
  """
  known = ~_in_groups(source, groups)
  rest = np.flatnonzero(known)
  if not 0 <= count < len(rest):
    raise ValueError(
      f"config.data.holdout={count}: must be at least 0 and below the"
      f" {len(rest)} images of {source.name}"
      + (" outside of config.data.holdout_groups" if groups else "")
    )
  order = np.asarray(
    jax.random.permutation(rngs.key(seed, "data/holdout"), len(rest))
  )
  kept = np.sort(rest[order[count:]])
  held = np.setdiff1d(np.arange(len(source)), kept)
  return (
    source.take(kept, f"{source.name}/train"),
    source.take(held, f"{source.name}/held-out"),
  )


def _in_groups(source: sources.Source, patterns: Sequence[str]) -> np.ndarray:
  """Whether each image is of a class that one of the patterns fits."""
  inside = np.zeros(len(source), bool)
  if not patterns:
    return inside
  if (classes := source.classes_of_images()) is None:
    raise ValueError(
      f"config.data.holdout_groups={patterns}: the classes of"
      f" {source.name} are in its records alone; hold out images with"
      " config.data.holdout, or name a part with config.data.split"
    )
  names, numbers = np.unique(classes, return_inverse=True)
  for pattern in patterns:
    fits = np.array([fnmatch.fnmatchcase(name, pattern) for name in names])
    if not fits.any():
      raise ValueError(
        f"config.data.holdout_groups={patterns}: {pattern!r} fits no class;"
        f" there are {shown.value(names.tolist())}"
      )
    inside |= fits[numbers]
  return inside
