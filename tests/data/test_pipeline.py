import itertools
import os

import grain
import jax
import ml_dtypes
import numpy as np
import pytest

from gmem_jax.data import pipeline, schema
from gmem_jax.parallel import sharding

N, BATCH = 97, 16


@pytest.fixture
def records():
  return pipeline.InMemoryRecords(
    {
      "latent": np.zeros((N, 2, 2, 1), np.float32),
      "row": np.arange(N, dtype=np.int32),
      "label": np.zeros(N, np.int32),
    }
  )


def rows(records, first, steps, *, index=0, count=1, k=1, seed=0):
  dataset = pipeline.make_dataset(
    records,
    fields=("row",),
    seed=seed,
    mirror_seed=None,
    batch_size=BATCH,
    steps_per_dispatch=k,
    process_index=index,
    process_count=count,
  )
  batches = pipeline.batches(dataset, first)
  return np.concatenate(
    [b["row"] for b in itertools.islice(batches, steps // k)]
  )


def test_each_epoch_is_a_fresh_permutation(records):
  order = rows(records, 0, 18).reshape(-1)
  first, second = order[:N], order[N : 2 * N]
  assert sorted(first) == sorted(second) == list(range(N))
  assert (first != second).any()
  assert (order[:N] != np.arange(N)).any()


def test_batches_are_addressed_by_the_step(records):
  whole = rows(records, 0, 20)
  np.testing.assert_array_equal(rows(records, 13, 7), whole[13:])


@pytest.mark.parametrize("count", [2, 4])
def test_global_batches_do_not_depend_on_the_processes(records, count):
  whole = rows(records, 0, 20)
  parts = [rows(records, 0, 20, index=i, count=count) for i in range(count)]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_dispatches_stack_consecutive_steps(records):
  np.testing.assert_array_equal(rows(records, 0, 12, k=4), rows(records, 0, 12))
  np.testing.assert_array_equal(rows(records, 2, 4, k=4), rows(records, 8, 4))


def test_seed_changes_the_order(records):
  assert (rows(records, 0, 3) != rows(records, 0, 3, seed=1)).any()


@pytest.mark.parametrize(
  ("size", "count", "match"),
  [(15, 2, "a multiple of the 2 proc"), (98, 1, "at most .* records, 97$")],
)
def test_wrong_batch_size_names_the_key(records, size, count, match):
  with pytest.raises(
    ValueError, match=f"config.train.batch_size={size}: .*{match}"
  ):
    pipeline.make_dataset(
      records,
      fields=("row",),
      seed=0,
      mirror_seed=None,
      batch_size=size,
      steps_per_dispatch=1,
      process_index=0,
      process_count=count,
    )


class Numbers:
  """Records that say which image, and which view of each part, was read."""

  def __init__(self, mirrored=True):
    self.mirrored = mirrored

  def __len__(self):
    return N

  def spec(self):
    return {
      "row": schema.Spec((), np.dtype(np.int32)),
      "latent": schema.Spec((3,), np.dtype(ml_dtypes.bfloat16)),
    }

  def read(self, index, flips):
    latent = np.asarray(flips, ml_dtypes.bfloat16)
    return {"row": np.int32(index), "latent": latent}


def views(steps, *, seed=5, first=0, index=0, count=1, k=1, independent=False):
  """(images, flips) of some steps: [steps, b] and [steps, b, 3]."""
  dataset = pipeline.make_dataset(
    Numbers(),
    fields=("latent", "row"),
    seed=0,
    mirror_seed=seed,
    independent_flips=independent,
    batch_size=BATCH,
    steps_per_dispatch=k,
    process_index=index,
    process_count=count,
  )
  found = list(itertools.islice(pipeline.batches(dataset, first), steps // k))
  return tuple(
    np.concatenate([b[name] for b in found]) for name in ("row", "latent")
  )


def test_one_flag_mirrors_all_parts_of_an_example():
  images, flips = views(60)
  assert flips.dtype == ml_dtypes.bfloat16
  flips = flips.astype(bool)
  assert (flips == flips[..., :1]).all()
  share = flips[..., 0].mean()
  assert abs(share - 0.5) < 4 * 0.5 / flips[..., 0].size ** 0.5
  # The same image is seen both ways in the course of time.
  both = {(i, c) for i, c in zip(images.flat, flips[..., 0].flat, strict=True)}
  assert len(both) > 1.9 * N


def test_published_flips_are_three_flags():
  _, flips = views(60, independent=True)
  flips = flips.astype(bool).reshape(-1, 3)
  kinds, counts = np.unique(flips, axis=0, return_counts=True)
  assert len(kinds) == 8
  assert abs(counts / len(flips) - 1 / 8).max() < 0.05


def test_flips_are_addressed_by_seed_step_and_example():
  whole = views(12)
  for name, a, b in zip("ic", views(5, first=7), whole, strict=True):
    np.testing.assert_array_equal(a, b[7:], name)
  for a, b in zip(views(12, k=4), whole, strict=True):
    np.testing.assert_array_equal(a, b)
  parts = [views(12, index=i, count=4) for i in range(4)]
  for part, b in zip(zip(*parts, strict=True), whole, strict=True):
    np.testing.assert_array_equal(np.concatenate(part, axis=1), b)
  images, flips = views(12, seed=6)
  np.testing.assert_array_equal(images, whole[0])
  assert (flips != whole[1]).any()


def test_images_as_they_are():
  images, flips = views(4, seed=None)
  assert not flips.astype(bool).any()
  assert len(np.unique(images)) == 4 * BATCH


def test_mirror_images_that_are_not_there():
  with pytest.raises(ValueError, match=r"data\.mirror=True"):
    pipeline.make_dataset(
      Numbers(mirrored=False),
      fields=("row",),
      seed=0,
      mirror_seed=1,
      batch_size=BATCH,
      steps_per_dispatch=1,
      process_index=0,
      process_count=1,
    )


@pytest.mark.multidevice
def test_batches_on_the_mesh(records):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=1))
  where = sharding.batch_sharding(mesh, steps_axis=True)
  dataset = pipeline.make_dataset(
    records,
    fields=("row", "latent"),
    seed=0,
    mirror_seed=None,
    batch_size=BATCH,
    steps_per_dispatch=2,
    process_index=0,
    process_count=1,
  )
  found = list(itertools.islice(pipeline.batches(dataset, 3, where), 4))
  for batch in found:
    assert batch["latent"].shape == (2, BATCH, 2, 2, 1)
    assert batch["latent"].sharding == where
    assert batch["row"].addressable_shards[0].data.shape == (2, BATCH // 4)
  expected = rows(records, 3, 8, k=2)
  ours = np.concatenate([jax.device_get(batch["row"]) for batch in found])
  np.testing.assert_array_equal(ours, expected)


def test_reading_ahead_is_bounded(monkeypatch, records):
  """A few large elements, however many threads; the iterator still works."""
  asked = []
  real = grain.ReadOptions

  def options(**kwargs):
    asked.append(kwargs)
    return real(**kwargs)

  monkeypatch.setattr(grain, "ReadOptions", options)
  rows(records, 0, 3)
  monkeypatch.setattr(pipeline, "READ_AHEAD_BYTES", 200)  # A batch is 64 bytes.
  rows(records, 0, 3)
  cores = len(os.sched_getaffinity(0))
  assert [a["num_threads"] for a in asked] == [min(cores, 16)] * 2
  assert asked[0]["prefetch_buffer_size"] == 2 * min(cores, 16)
  assert asked[1]["prefetch_buffer_size"] == min(3, 2 * min(cores, 16))


def test_records_check_their_fields():
  with pytest.raises(ValueError, match="records have"):
    pipeline.InMemoryRecords({"latent": np.zeros(3)})
  with pytest.raises(ValueError, match="differ in length"):
    pipeline.InMemoryRecords(
      {"latent": np.zeros(3), "row": np.zeros(2), "label": np.zeros(3)}
    )
