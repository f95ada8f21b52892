"""What benchmarks share: times, the machine's speeds, tables."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PAUSE = 0.02  # seconds


@dataclasses.dataclass(frozen=True)
class Speeds:
  """What the machine does at best, measured.

  Attributes:
    copy: Bytes read and written in a second by copying a large array.
    products: Floating point operations in a second of a large matrix product.
  """

  copy: float
  products: float

  def least(self, nbytes: int, operations: int) -> float:
    """Seconds that reading and multiplying take at least."""
    return max(nbytes / self.copy, operations / self.products)


def nbytes(tree: Any) -> int:
  """Bytes of all arrays of a pytree."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def seconds(function: Callable[[], Any]) -> float:
  """Seconds until a call's result is there; torch synchronises itself."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def interleaved(
  searches: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any]
) -> dict[str, float]:
  """Median seconds of each function, called in turns, after one warm-up."""
  taken: dict[str, list[float]] = {name: [] for name in searches}
  # Compiles, and fills caches; not counted.
  for function in searches.values():
    jax.block_until_ready(function(inputs[0]))
  # In turns, so that a change of the machine's speed meets all of them alike.
  for x in inputs:
    for name, function in searches.items():
      # Threads of OpenMP keep their cores for a while after their work is done,
      # and would slow down the function that comes next.
      time.sleep(_PAUSE)
      taken[name].append(seconds(lambda f=function, x=x: f(x)))
  return {name: float(np.median(times)) for name, times in taken.items()}


def measure_speeds(dtype: str) -> Speeds:
  """Measures copying, and products of matrices of a type."""
  host = jax.default_backend() == "cpu"
  # Far larger than any cache, or the copy would measure that.
  size = 2**26 if host else 2**29
  side = 2048 if host else 8192
  array = jnp.ones((size,), jnp.float32)
  matrix = jnp.ones((side, side), dtype)
  copy = jax.jit(lambda x: x + 1)
  product = jax.jit(
    lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32)
  )
  best = {}
  for name, function, x in (("copy", copy, array), ("mul", product, matrix)):
    jax.block_until_ready(function(x))
    # The best of a few: this is a limit, so a slow turn says nothing.
    best[name] = min(seconds(lambda f=function, x=x: f(x)) for _ in range(7))
  # A copy reads and writes each byte; a product multiplies and adds.
  return Speeds(2 * array.nbytes / best["copy"], 2 * side**3 / best["mul"])


def scratch(compiled: Any) -> str:
  """Temporary memory of a compiled function, in MB."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return "?"
  return f"{analysis.temp_size_in_bytes / 1e6:,.1f} MB"


def markdown(head: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  rows = [head, ["---"] * len(head), *table]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)
