"""One pass over images: features on all devices, sums on every host.

Every host receives the features of all images, few numbers beside the pixels,
and keeps the same sums; the first host writes them.

A pass on disk is a directory: `tally.npz` has the sums and the number of images
done, `rows_N.npz` features that are kept, from image N on. Parts are written
before the sums that count them, each whole or not at all, so a killed pass
continues from the last save.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmem_jax import progress
from gmem_jax.evaluate import (
  features as features_lib,
  frechet,
  inception_score,
  sources,
)
from gmem_jax.files import atomic, numpy_files, paths
from gmem_jax.parallel import lock, processes

_SUMS = "tally.npz"


class Accumulator:
  """Sums over images 0 … done - 1.

  Attributes:
    done: Number of images added.
    moments: Feature -> its moments.
    score: The Inception Score, or None.
  """

  def __init__(
    self,
    widths: Mapping[str, int],
    *,
    moments: Sequence[str] = (),
    classes: bool = False,
    keep: Mapping[str, np.ndarray] | None = None,
  ):
    """Starts with no image.

    Args:
      widths: Width of each feature.
      moments: Features whose moments are needed.
      classes: Whether "logits" are summed for the Inception Score.
      keep: Feature -> sorted numbers of the images whose rows are kept.
    """
    self.done = 0
    self.moments = {name: frechet.Moments(widths[name]) for name in moments}
    self.score = None
    if classes:
      self.score = inception_score.InceptionScore(widths["logits"])
    self._keep = dict(keep or {})
    self._widths = {name: widths[name] for name in self._keep}
    self._rows: dict[str, list[np.ndarray]] = {name: [] for name in self._keep}
    self._saved = 0  # Images whose kept rows are on disk.
    self._unsaved = {name: 0 for name in self._keep}  # First part not on disk.

  @property
  def features(self) -> set[str]:
    """Names of the features that `add` reads."""
    logits = {"logits"} if self.score else set()
    return set(self.moments) | set(self._keep) | logits

  @property
  def kept(self) -> dict[str, int]:
    """Feature -> number of rows kept when all images are done."""
    return {name: len(numbers) for name, numbers in self._keep.items()}

  def add(self, features: Mapping[str, np.ndarray]) -> None:
    """Adds the next images' features [n f], of which some may be ignored.

    Raises:
      ValueError: If one is not finite.
    """
    (n,) = {len(features[name]) for name in self.features}
    for name, moments in self.moments.items():
      moments.add(features[name])
    if self.score:
      self.score.add(features["logits"])
    for name, numbers in self._keep.items():
      first, last = np.searchsorted(numbers, (self.done, self.done + n))
      if last > first:
        rows = features[name][numbers[first:last] - self.done]
        self._rows[name].append(rows)
    self.done += n

  def rows(self, name: str) -> np.ndarray:
    """The rows of a feature that were kept, float32 [n f]."""
    nothing = np.zeros((0, self._widths[name]), np.float32)
    return np.concatenate([nothing, *self._rows[name]])

  def save(self, directory: paths.Path) -> None:
    """Writes the state for `restore` to an existing directory."""
    new = {n: self._rows[n][first:] for n, first in self._unsaved.items()}
    if any(new.values()):
      parts: Any = {name: np.concatenate(p) for name, p in new.items() if p}
      path = directory / f"rows_{self._saved:09d}.npz"
      with atomic.replacing(path) as temporary:
        np.savez(temporary, **parts)
    arrays: dict[str, Any] = {"done": np.array(self.done)}
    for name, moments in self.moments.items():
      arrays |= {f"moments/{name}/{k}": v for k, v in moments.arrays().items()}
    if self.score:
      arrays |= {f"score/{k}": v for k, v in self.score.arrays().items()}
    with atomic.replacing(directory / _SUMS) as temporary:
      np.savez(temporary, **arrays)
    self._saved = self.done
    self._unsaved = {name: len(rows) for name, rows in self._rows.items()}

  def restore(self, directory: paths.Path) -> None:
    """Continues from the last `save`, or from nothing if there is none."""
    if not (directory / _SUMS).exists():
      return
    arrays = numpy_files.read_npz(paths.local(directory / _SUMS))
    self.done = self._saved = int(arrays["done"])
    for name, moments in self.moments.items():
      moments.restore(_below(arrays, f"moments/{name}/"))
    if self.score:
      self.score.restore(_below(arrays, "score/"))
    for path in sorted(directory.glob("rows_*.npz")):
      # A kill between the two writes leaves a part that no sums count.
      if int(path.stem.removeprefix("rows_")) < self.done:
        for name, rows in numpy_files.read_npz(paths.local(path)).items():
          self._rows[name].append(rows)
    self._unsaved = {name: len(rows) for name, rows in self._rows.items()}


class PartialStore:
  """Where passes keep what they have done, until their result is written.

  A context manager: other jobs are kept out of the passes that were begun until
  it ends, or they are forgotten.
  """

  def __init__(self, directory: paths.Path, every: float):
    """Makes nothing yet; `every` is the number of seconds between saves."""
    self.every = every
    self._directory = directory
    self._used: list[paths.Path] = []
    self._held = contextlib.ExitStack()

  def __enter__(self) -> "PartialStore":
    return self

  def __exit__(self, *error: object) -> None:
    self._held.close()

  def of(self, settings: Any) -> paths.Path:
    """The directory of a pass, named after all that its sums depend on.

    Raises:
      ValueError: If another job makes the same pass there.
    """
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = self._directory / name
    if path not in self._used:
      self._held.enter_context(lock.held(path, "evaluation in --workdir"))
      self._used.append(path)
    return path

  def forget(self) -> None:
    """Removes what the passes kept."""
    # A slower host may still be restoring from it.
    processes.wait_for_all("forget")
    if not processes.is_main():
      return
    for directory in self._used:
      # The lock goes last: until then nobody may begin there.
      for path in directory.iterdir():
        if path.name != lock.NAME:
          path.unlink()
    self._held.close()
    for directory in (*self._used, self._directory):
      with contextlib.suppress(OSError):  # Not empty: another evaluation's.
        directory.rmdir()


def measure(
  name: str,
  source: sources.ImageSource,
  count: int,
  extractor: features_lib.Extractor,
  sums: Accumulator,
  store: PartialStore | None,
) -> None:
  """Adds the features of a source's first images to an empty accumulator.

  `name` begins the progress line. A killed pass continues from the store.

  Raises:
    ValueError: If an image cannot be read, a feature is not finite, or another
      job makes the same pass in the store.
  """
  directory = None
  if store:
    settings = {
      "source": source.info,
      "count": count,
      "networks": extractor.info(),
      "features": sorted(sums.features),
      "moments": sorted(sums.moments),
      "kept": sums.kept,
    }
    directory = store.of(settings)
    sums.restore(directory)
    # Before the first host writes what the others have yet to read.
    processes.wait_for_all(f"restored {directory.name}")
    if processes.is_main():
      directory.mkdir(parents=True, exist_ok=True)
      atomic.write_json(directory / "settings.json", settings)
  bar = progress.Progress(name, sums.done, count, unit="image")
  saved = time.monotonic()
  for features in _features(source, range(sums.done, count), extractor):
    sums.add(features)
    now = time.monotonic()
    bar.update(sums.done)
    if store and directory and now - saved >= store.every:
      if processes.is_main():
        sums.save(directory)
      saved = now
  bar.close()
  if directory and processes.is_main():
    sums.save(directory)


def _features(
  source: sources.ImageSource, numbers: range, extractor: features_lib.Extractor
) -> Iterator[dict[str, np.ndarray]]:
  """Features of images, batch by batch.

  While the devices work on a batch, the next one is read.
  """
  batches = [
    np.asarray(numbers[start : start + extractor.batch])
    for start in range(0, len(numbers), extractor.batch)
  ]
  if source.collective:
    # Its reading computes on the devices, so it must run in the same order on
    # every host: never in a thread.
    loaded = ((b, *extractor.load(b, source)) for b in batches)
    for wait in _one_ahead(extractor.start(*arrays) for arrays in loaded):
      yield wait()
    return
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    reads = ((b, reader.submit(extractor.load, b, source)) for b in batches)
    loaded = ((b, *read.result()) for b, read in _one_ahead(reads))
    for wait in _one_ahead(extractor.start(*arrays) for arrays in loaded):
      yield wait()


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
  """Yields each item once the next one has been begun."""
  pending = collections.deque()
  for item in items:
    pending.append(item)
    if len(pending) > 1:
      yield pending.popleft()
  yield from pending


def evenly(count: int, number: int) -> np.ndarray:
  """At most `number` image numbers in [0, count), sorted, evenly spread."""
  number = min(count, number)
  return np.arange(number, dtype=np.int64) * count // max(number, 1)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
  """The arrays whose names begin with a prefix, without it."""
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }
