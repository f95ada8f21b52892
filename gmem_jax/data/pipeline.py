"""Records to batches, addressed by the training step.

The pipeline is a pure function of the step: batch s is the same whenever it is
asked for, and on however many hosts. So a checkpoint needs no data state, and
a run continues exactly, also on another number of hosts.

Arrays reach the devices as they are stored; `gmem_jax.train.batch` makes
float32 of them inside the training step.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from gmem_jax.data import records as records_lib
from gmem_jax.parallel import sharding

# Most threads that read, and most bytes that lie read ahead of the step.
MAX_THREADS = 16
READ_AHEAD_BYTES = 2 << 30
# Batches that are on the devices, or under way to them, ahead of the step.
DEVICE_BATCHES = 2

_PARTS = len(records_lib.Coins._fields)


def make_dataset(
  records: records_lib.Records,
  *,
  fields: Sequence[str],
  seed: int,
  mirror_seed: int | None,
  independent_flips: bool = False,
  batch_size: int,
  steps_per_dispatch: int,
  process_index: int,
  process_count: int,
) -> grain.MapDataset:
  """Builds the shuffled, endless dataset of one process.

  Args:
    records: Random access to the records.
    fields: The fields to read.
    seed: Seed of the shuffles, each epoch its own.
    mirror_seed: Seed of the coins that choose an image or its mirror image at
      every step; None for the images as they are.
    independent_flips: Latent, tokens and feature by a coin each, as in the
      published code: they then show the same view in one example of four.
    batch_size: Global batch size, a multiple of `process_count`.
    steps_per_dispatch: Steps that are stacked into one element.
    process_index: This process.
    process_count: Number of processes.

  Returns:
    A dataset whose element j holds this process's rows of the batches of steps
    j * k … j * k + k - 1, stacked: arrays [k, batch_size / process_count, …].

  Raises:
    ValueError: If the batch cannot be split or exceeds the records, or there
      are no mirror images.
  """
  if batch_size % process_count:
    raise ValueError(
      f"train.batch_size={batch_size} is not a multiple of the"
      f" {process_count} processes"
    )
  if batch_size > len(records):
    raise ValueError(
      f"train.batch_size={batch_size} exceeds the {len(records)} records"
    )
  if mirror_seed is not None and not records.mirrored:
    raise ValueError(
      f"data.mirror=True: there are no mirror images in {records!r}"
    )
  k, rows = steps_per_dispatch, batch_size // process_count
  mine = slice(process_index * rows, (process_index + 1) * rows)

  def read(j: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
    coins = np.zeros((k, rows, _PARTS), bool)
    if mirror_seed is not None:
      for i in range(k):
        thrown = _throw(mirror_seed, j * k + i, batch_size)[mine]
        coins[i] = thrown if independent_flips else thrown[:, :1]
    return _gather(records, fields, numbers, coins)

  return (
    grain.MapDataset.range(len(records))
    .seed(seed)
    .shuffle()
    .repeat(None)
    # Consecutive rows go to consecutive processes: the global batch, and its
    # order, do not depend on how many there are.
    # Without a remainder: the length of an endless one, rounded up, overflows.
    .batch(rows, drop_remainder=True)[process_index::process_count]
    .batch(k, drop_remainder=True)
    .map_with_index(read)
  )


def _throw(seed: int, step: int, batch_size: int) -> np.ndarray:
  """The coins of a global batch, [batch_size, parts]."""
  random = np.random.default_rng((seed, step))
  return random.integers(0, 2, (batch_size, _PARTS), bool)


def _gather(
  records: records_lib.Records,
  fields: Sequence[str],
  numbers: np.ndarray,
  coins: np.ndarray,
) -> dict[str, np.ndarray]:
  """Reads records into arrays with the axes of `numbers` first."""
  spec = records.spec()
  arrays = {
    n: np.empty((numbers.size, *spec[n][0]), spec[n][1]) for n in fields
  }
  # Types that numpy does not know are copied as plain bits, which is faster.
  bits = {n: f"u{a.itemsize}" for n, a in arrays.items() if a.dtype.kind == "V"}
  into = [(n, a.view(bits.get(n, a.dtype))) for n, a in arrays.items()]
  flat = coins.reshape(numbers.size, _PARTS).tolist()
  for i, number in enumerate(numbers.reshape(-1).tolist()):
    record = records.read(number, records_lib.Coins(*flat[i]))
    for name, array in into:
      value = record[name]
      array[i] = value.view(bits[name]) if name in bits else value
  return {n: a.reshape(*numbers.shape, *a.shape[1:]) for n, a in arrays.items()}


def batches(
  dataset: grain.MapDataset,
  first: int,
  to: jax.sharding.NamedSharding | None = None,
) -> Iterator[dict[str, Any]]:
  """Iterates over a dataset from any element on, reading ahead in threads.

  Args:
    dataset: The dataset of `make_dataset`.
    first: Number of the first element.
    to: Sharding of the global arrays, for batches on the devices; their
      transfer then runs ahead of the step.

  Returns:
    An iterator over the host's arrays, or over global ones.
  """
  threads = min(_cores(), MAX_THREADS)
  element: Any = dataset[first]
  size = sum(array.nbytes for array in element.values())
  ahead = min(2 * threads, max(READ_AHEAD_BYTES // max(size, 1), 2))
  ahead_of_step = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=int(ahead))
  )
  if to is not None:
    ahead_of_step = grain.experimental.ThreadPrefetchIterDataset(
      ahead_of_step.map(lambda batch: sharding.to_global(batch, to)),
      prefetch_buffer_size=DEVICE_BATCHES,
    )
  iterator = iter(ahead_of_step)
  iterator.set_state({"next_index": first})
  return iterator


def _cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
