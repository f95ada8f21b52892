"""Batches of one shape, and work that runs ahead."""

import concurrent.futures

import jax
import numpy as np
import pytest

from gmem_jax.data import batching


def test_groups_lose_nothing():
  assert list(batching.grouped(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
  assert list(batching.grouped([], 2)) == []


def test_one_item_is_started_before_the_last_is_used():
  events = []

  def started():
    for i in range(3):
      events.append(f"start {i}")
      yield i

  for i in batching.one_ahead(started()):
    events.append(f"use {i}")
  assert events == [
    "start 0", "start 1", "use 0", "start 2", "use 1", "use 2",
  ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_have_one_shape_and_results_none_too_many(count):
  rows = np.random.default_rng(0).standard_normal((count, 2), np.float32)
  shapes = []

  @jax.jit
  def function(x):
    shapes.append(x.shape)
    return 2 * x, x[:, 0]

  parts = list(batching.in_batches(function, rows, 4))
  assert shapes == [(4, 2)]
  twice, first = (np.concatenate(part) for part in zip(*parts, strict=True))
  np.testing.assert_array_equal(twice, 2 * rows)
  np.testing.assert_array_equal(first, rows[:, 0])


def test_reading_ahead_keeps_order_and_bound():
  asked = []

  def items():
    for i in range(10):
      asked.append(i)
      yield i

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    stream = batching.read_ahead(pool, lambda i: i * i, items(), 3)
    assert next(stream) == 0
    assert asked == [0, 1, 2, 3]
    assert list(stream) == [i * i for i in range(1, 10)]
