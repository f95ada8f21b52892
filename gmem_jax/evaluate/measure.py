"""One pass over images: features on all devices, sums on every host.

Every host gets the features of all images, as these are few numbers beside
the images, and keeps the same sums; the first one writes them.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import pathlib
import shutil
import time
from typing import Any

import numpy as np

from gmem_jax import progress
from gmem_jax.evaluate import (
  accumulate as tally_lib,
  features as extractor_lib,
  sources,
)
from gmem_jax.parallel import processes


class Store:
  """Where passes keep what they have done, until their result is written."""

  def __init__(self, directory: pathlib.Path, every: float):
    """Nothing is made yet.

    Args:
      directory: Each pass has a directory of its own in it, named after all
        that its sums depend on.
      every: Seconds between saves.
    """
    self.every = every
    self._directory = directory
    self._used: list[pathlib.Path] = []

  def of(self, settings: Any) -> pathlib.Path:
    """The directory of a pass.

    Args:
      settings: All that its sums depend on; JSON.
    """
    text = json.dumps(settings, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._used.append(self._directory / name)
    return self._used[-1]

  def forget(self) -> None:
    """Removes what the passes kept."""
    processes.wait_for_all("forget")
    if processes.is_main():
      for directory in self._used:
        shutil.rmtree(directory, ignore_errors=True)
      with contextlib.suppress(OSError):  # Another evaluation's is there.
        self._directory.rmdir()


def measure(
  name: str,
  source: sources.Source,
  count: int,
  extractor: extractor_lib.Extractor,
  tally: tally_lib.Tally,
  store: Store | None,
) -> None:
  """Takes the first images of a source into a tally, from where it stopped.

  Args:
    name: What is being done, for the progress line.
    source: The images.
    count: How many.
    extractor: The networks.
    tally: Receives their features; empty.
    store: Where a killed pass continues from; None to keep nothing.

  Raises:
    ValueError: If an image cannot be read or a feature is not finite.
  """
  directory = None
  if store:
    settings = {
      "source": source.info,
      "count": count,
      "networks": extractor.info(),
      "features": sorted(tally.features),
      "moments": sorted(tally.moments),
      "kept": tally.kept,
    }
    directory = store.of(settings)
    tally.restore(directory)
    processes.wait_for_all(f"restored {directory.name}")
    if processes.is_main():
      tally_lib.claim(directory, settings)
  bar = progress.Progress(name, tally.done, count, unit="image")
  saved = reported = time.monotonic()
  first = tally.done
  for done in _batches(source, count, extractor, tally):
    now = time.monotonic()
    bar.update(done)
    if now - reported >= 10:
      bar.report(done, (done - first) / (now - reported), {})
      first, reported = done, now
    if store and directory and now - saved >= store.every:
      if processes.is_main():
        tally.save(directory)
      saved = now
  bar.close()
  if directory and processes.is_main():
    tally.save(directory)


def _batches(
  source: sources.Source,
  count: int,
  extractor: extractor_lib.Extractor,
  tally: tally_lib.Tally,
):
  """Takes in the images batch by batch; yields how many are done.

  While the devices work on a batch, the next one is read.
  """
  starts = range(tally.done, count, extractor.batch)
  numbers = [np.arange(s, min(s + extractor.batch, count)) for s in starts]
  pending = None
  for batch, loaded in _loaded(numbers, source, extractor):
    begun = extractor.start(batch, *loaded)
    if pending is not None:
      tally.add(pending())
      yield tally.done
    pending = begun
  if pending is not None:
    tally.add(pending())
    yield tally.done


def _loaded(numbers, source, extractor):
  """(numbers, what `load` gives for them) of each batch, read ahead."""
  if source.collective:  # It computes, too: in its turn, the same everywhere.
    for batch in numbers:
      yield batch, extractor.load(batch, source)
    return
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    ahead = [reader.submit(extractor.load, b, source) for b in numbers[:1]]
    for batch, following in itertools.zip_longest(numbers, numbers[1:]):
      loaded = ahead.pop().result()
      if following is not None:
        ahead.append(reader.submit(extractor.load, following, source))
      yield batch, loaded
