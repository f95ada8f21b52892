import itertools

import numpy as np
import pytest

from gmem_jax.data import pipeline, records as records_lib

N, BATCH = 97, 16


@pytest.fixture
def records():
  return records_lib.InMemoryRecords(
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
  [(15, 2, "not a multiple"), (98, 1, "exceeds the 97 records")],
)
def test_wrong_batch_size_names_the_key(records, size, count, match):
  with pytest.raises(ValueError, match=f"train.batch_size={size}.*{match}"):
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


def test_records_check_their_fields():
  with pytest.raises(ValueError, match="records have"):
    records_lib.InMemoryRecords({"latent": np.zeros(3)})
  with pytest.raises(ValueError, match="differ in length"):
    records_lib.InMemoryRecords(
      {"latent": np.zeros(3), "row": np.zeros(2), "label": np.zeros(3)}
    )
