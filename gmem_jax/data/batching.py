"""Batches of one shape, and work that runs ahead of those who wait for it."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")
S = TypeVar("S")


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """Yields `size` items at a time; the last group may be smaller."""
  iterator = iter(items)
  while group := list(itertools.islice(iterator, size)):
    yield group


def fill(rows: np.ndarray, size: int) -> np.ndarray:
  """Repeats rows until there are `size`: one shape, one compilation."""
  return np.resize(rows, (size, *rows.shape[1:]))


def one_ahead(started: Iterable[T]) -> Iterator[T]:
  """Yields each item once the one after it has been taken.

  A jitted function returns before its result is computed. So where `started`
  gives such results, the devices compute the next while the last is fetched
  and written. Two are alive at a time.
  """
  previous: list[T] = []
  for item in started:
    if previous:
      yield previous.pop()
    previous.append(item)
  yield from previous


def in_batches(
  function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int
) -> Iterator[Any]:
  """Applies a jitted function to rows, `size` at a time and one batch ahead.

  Args:
    function: Gives a tree of arrays with an axis for the rows; a row's result
      must not depend on the others.
    rows: [n …].
    size: Rows in a batch; the last one is filled up, and its results are cut.

  Yields:
    Trees of numpy arrays.
  """
  parts = (rows[i : i + size] for i in range(0, len(rows), size))
  started = ((len(part), function(fill(part, size))) for part in parts)
  for count, results in one_ahead(started):
    yield jax.tree.map(lambda x, n=count: np.asarray(x)[:n], results)


def read_ahead(
  pool: concurrent.futures.Executor,
  read: Callable[[S], T],
  items: Iterable[S],
  ahead: int,
) -> Iterator[T]:
  """Reads items in threads, in order, up to `ahead` before they are needed."""
  # `pool.map` has no such bound: where reading is faster than the devices, it
  # would pile up a whole data set.
  queue: collections.deque[concurrent.futures.Future[T]] = collections.deque()
  for item in items:
    queue.append(pool.submit(read, item))
    if len(queue) > ahead:
      yield queue.popleft().result()
  while queue:
    yield queue.popleft().result()
