"""Records to batches, addressed by the training step.

The pipeline is a pure function of the step: batch s is the same whenever it is
asked for, and on however many hosts. So a checkpoint needs no data state, and
a run continues exactly, also on another number of hosts.

Arrays reach the devices as they are stored; `gmem_jax.train.step` makes
float32 of them inside the training step.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from gmem_jax.data import schema
from gmem_jax.parallel import sharding

# Most threads that read; fewer where there are fewer cores. Measured on two
# cores, grain's own 16 threads read bfloat16 records at a third of the rate.
MAX_THREADS = 16
# Most bytes that are read ahead of the step. An XL's batch of 256 with bfloat16
# tokens has 106 MB, so a fixed number of batches could exhaust the host.
READ_AHEAD_BYTES = 2 << 30
# Batches on the devices, or on their way, ahead of the step. Each takes memory
# that the step could use.
DEVICE_BATCHES = 2

_PARTS = len(schema.Flips._fields)


@runtime_checkable
class Records(Protocol):
  """Random access to training examples, from several threads at once.

  An example has `row` and a choice of the other fields:
    latent        [h w c] float32 or bfloat16, not normalised; or
    mean, logvar  [h w c] of the tokenizer's posterior
    tokens        [n d] float32, bfloat16, or int8 with
    token_scales  [n] float32; or
    pixels        [H W ch] uint8, the image as it is, with
    mirrored      [] bool, whether the example is its mirror image
    feature       [d] the raw feature of this view of the image
    row           [] int32, the image's row of the memory bank
    label         [] int32, its class, -1 where it has none

  Attributes:
    mirrored: Whether there are mirror images; else all flip flags are False.
  """

  mirrored: bool

  def spec(self) -> dict[str, schema.Spec]:
    """Shape and type of every field."""
    ...

  def __len__(self) -> int:
    """Number of images."""
    ...

  def read(self, index: int, flips: schema.Flips) -> Mapping[str, np.ndarray]:
    """The example of an image, in views of what was read where possible."""
    ...


class InMemoryRecords:
  """Records held as one array per field; without mirror images.

  Attributes:
    fields: The arrays "latent", "row" and "label"; their leading axis runs over
      the records.
  """

  mirrored = False

  def __init__(self, fields: Mapping[str, np.ndarray]):
    """Checks and keeps the arrays.

    Raises:
      ValueError: On an unknown field, a missing one, or unequal lengths.
    """
    expected = ["label", "latent", "row"]
    if sorted(fields) != expected:
      raise ValueError(f"records have {sorted(fields)}, not {expected}")
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) != 1:
      raise ValueError(f"fields differ in length: {lengths}")
    self.fields = dict(fields)

  def __len__(self) -> int:
    return len(self.fields["row"])

  def __repr__(self) -> str:
    return f"InMemoryRecords({len(self)})"

  def spec(self) -> dict[str, schema.Spec]:
    """Shape and type of every field."""
    return {
      n: schema.Spec(v.shape[1:], v.dtype) for n, v in self.fields.items()
    }

  def read(self, index: int, flips: schema.Flips) -> Mapping[str, np.ndarray]:
    """The example of an image; the flip flags cannot be set."""
    del flips
    return {name: value[index] for name, value in self.fields.items()}


def make_dataset(
  records: Records,
  *,
  fields: Sequence[str],
  seed: int,
  mirror_seed: int | None,
  independent_flips: bool = False,
  batch_size: int,
  steps_per_dispatch: int,
  process_index: int,
  process_count: int,
) -> Any:
  """Builds the shuffled, endless dataset of one process.

  Args:
    records: What to read from.
    fields: The fields to read.
    seed: Seed of the shuffles; each epoch has its own.
    mirror_seed: Seed of the flip flags that choose an image or its mirror image
      at every step; None for the images as they are.
    independent_flips: Whether latent, tokens and feature have a flag each, as
      in the published code: they then show the same view in one example of
      four.
    batch_size: Global batch size, a multiple of `process_count`.
    steps_per_dispatch: Steps that are stacked into one element.
    process_index: Which of the equal parts of each batch is read here.
    process_count: Number of these parts.

  Returns:
    A dataset whose element j holds this process's rows of the batches of steps
    j * k … j * k + k - 1, stacked: arrays [k, batch_size / process_count, …].

  Raises:
    ValueError: If the batch cannot be split or exceeds the records, or there
      are no mirror images.
  """
  if batch_size % process_count:
    raise ValueError(
      f"config.train.batch_size={batch_size}: must be a multiple of the"
      f" {process_count} processes"
    )
  if batch_size > len(records):
    raise ValueError(
      f"config.train.batch_size={batch_size}: must be at most the number of"
      f" records, {len(records)}"
    )
  if mirror_seed is not None and not records.mirrored:
    raise ValueError(
      f"config.data.mirror=True: {records!r} has no mirror images; prepare them"
      " with --config.data.mirror=True, or train with False"
    )
  k, rows = steps_per_dispatch, batch_size // process_count
  mine = slice(process_index * rows, (process_index + 1) * rows)

  def read(j: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
    flips = np.zeros((k, rows, _PARTS), bool)
    if mirror_seed is not None:
      for i in range(k):
        drawn = _draw_flips(mirror_seed, j * k + i, batch_size)[mine]
        flips[i] = drawn if independent_flips else drawn[:, :1]
    return _gather(records, fields, numbers, flips)

  import grain

  return (
    grain.MapDataset.range(len(records))
    .seed(seed)
    .shuffle()
    .repeat(None)
    # Consecutive rows go to consecutive processes: the global batch, and its
    # order, do not depend on how many processes share it.
    # Without a remainder: the length of an endless dataset, rounded up,
    # overflows.
    .batch(rows, drop_remainder=True)[process_index::process_count]
    .batch(k, drop_remainder=True)
    .map_with_index(read)
  )


def _draw_flips(seed: int, step: int, batch_size: int) -> np.ndarray:
  """The flip flags of a global batch, [batch_size, parts]."""
  # All processes draw for the whole batch and take their rows: the flags depend
  # on seed, step and position alone.
  random = np.random.default_rng((seed, step))
  return random.integers(0, 2, (batch_size, _PARTS), bool)


def _gather(
  records: Records,
  fields: Sequence[str],
  numbers: np.ndarray,
  flips: np.ndarray,
) -> dict[str, np.ndarray]:
  """Reads records into arrays with the axes of `numbers` first."""
  spec = records.spec()
  arrays = {
    n: np.empty((numbers.size, *spec[n][0]), spec[n][1]) for n in fields
  }
  # Types that numpy does not know are copied as plain bits, which is faster.
  bits = {n: f"u{a.itemsize}" for n, a in arrays.items() if a.dtype.kind == "V"}
  into = [(n, a.view(bits.get(n, a.dtype))) for n, a in arrays.items()]
  flat = flips.reshape(numbers.size, _PARTS).tolist()
  for i, number in enumerate(numbers.reshape(-1).tolist()):
    record = records.read(number, schema.Flips(*flat[i]))
    for name, array in into:
      value = record[name]
      array[i] = value.view(bits[name]) if name in bits else value
  return {n: a.reshape(*numbers.shape, *a.shape[1:]) for n, a in arrays.items()}


def batches(
  dataset: Any,
  first: int,
  to: jax.sharding.NamedSharding | None = None,
) -> Iterator[dict[str, Any]]:
  """Iterates over a dataset from any element on, reading ahead in threads.

  Args:
    dataset: The dataset of `make_dataset`.
    first: Number of the first element.
    to: Sharding of the global arrays, for batches on the devices; their
      transfer then runs ahead of the step. None for the host's arrays.
  """
  import grain

  threads = min(_cores(), MAX_THREADS)
  element: Any = dataset[first]
  size = sum(array.nbytes for array in element.values())
  ahead = min(2 * threads, max(READ_AHEAD_BYTES // max(size, 1), 2))
  stream = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=int(ahead))
  )
  if to is not None:
    stream = grain.experimental.ThreadPrefetchIterDataset(
      stream.map(lambda batch: sharding.to_global(batch, to)),
      prefetch_buffer_size=DEVICE_BATCHES,
    )
  iterator = iter(stream)
  # Nothing before `first` is read: a position is all the state there is.
  iterator.set_state({"next_index": first})
  return iterator


def _cores() -> int:
  """Cores that this process may use."""
  # A container or scheduler may allow fewer cores than the machine has.
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
