"""Records to batches, addressed by the training step.

The pipeline is a pure function of the step: batch s is the same whenever it is
asked for, and on however many hosts. So a checkpoint needs no data state, and
a run continues exactly, also on another number of hosts.
"""

import os
from collections.abc import Iterator

import grain
import numpy as np

# Fields that the training step reads; the others stay on the host.
STEP_FIELDS = ("latent", "row")


def make_dataset(
  records: grain.sources.RandomAccessDataSource,
  *,
  seed: int,
  batch_size: int,
  steps_per_dispatch: int,
  process_index: int,
  process_count: int,
) -> grain.MapDataset:
  """Builds the shuffled, endless dataset of one process.

  Args:
    records: Random access to the records.
    seed: Seed of the shuffles, each epoch its own.
    batch_size: Global batch size, a multiple of `process_count`.
    steps_per_dispatch: Steps that are stacked into one element.
    process_index: This process.
    process_count: Number of processes.

  Returns:
    A dataset whose element j holds this process's rows of the batches of steps
    j * k … j * k + k - 1, stacked: arrays [k, batch_size / process_count, …].

  Raises:
    ValueError: If the batch cannot be split, or exceeds the records.
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
  return (
    grain.MapDataset.source(records)
    .seed(seed)
    .shuffle()
    .repeat(None)
    .map(lambda record: {name: record[name] for name in STEP_FIELDS})
    # Consecutive rows go to consecutive processes: the global batch, and its
    # order, do not depend on how many there are.
    .batch(batch_size // process_count)[process_index::process_count]
    .batch(steps_per_dispatch)
  )


def batches(
  dataset: grain.MapDataset, first: int
) -> Iterator[dict[str, np.ndarray]]:
  """Iterates over a dataset from any element on, reading ahead in threads.

  Args:
    dataset: The dataset of `make_dataset`.
    first: Number of the first element.

  Returns:
    An iterator over the host's arrays.
  """
  threads = min(os.cpu_count() or 1, 16)
  iterator = iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
  )
  iterator.set_state({"next_index": first})
  return iterator
