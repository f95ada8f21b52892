"""A program's own matrix products, timed alone.

Their sum is what a step would take were all else free: the mark to hold a
step's time against, as products of odd shapes run below the device's peak.
"""

import collections
import functools
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gmem_jax.bench import _timing

# Shapes and dtypes of both sides, axes, and what else says how to multiply.
Product = tuple[Any, ...]
_REPEATS = 5


def collect(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> dict[Product, int]:
  """The matrix products of a traced function, and how often each is done."""
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  found: collections.Counter[Product] = collections.Counter()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      left, right = _avals(eqn)
      found[
        (
          (left.shape, str(left.dtype)),
          (right.shape, str(right.dtype)),
          eqn.params["dimension_numbers"],
          eqn.params["preferred_element_type"],
        )
      ] += 1
      continue
    # A scan's body runs so often; all other equations call theirs once.
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for inner in eqn.params.values():
      if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
        for product, count in collect(inner).items():
          found[product] += times * count
  return dict(found)


def _avals(eqn: core.JaxprEqn) -> list[Any]:
  """Shapes and dtypes of what goes in."""
  return [var.aval for var in eqn.invars]


def seconds(products: dict[Product, int]) -> float:
  """Time of all of them, one after the other.

  Returns:
    The sum over the products of the best time of each, times its number.
  """
  random, total = np.random.default_rng(0), 0.0
  for (left, right, numbers, preferred), count in products.items():
    # Random and not zero: a chip needs less power for zeros, and may then run
    # at a higher clock than in training.
    sides = [
      jax.device_put(random.standard_normal(shape, np.float32).astype(dtype))
      for shape, dtype in (left, right)
    ]
    multiply = jax.jit(
      functools.partial(
        jax.lax.dot_general,
        dimension_numbers=numbers,
        preferred_element_type=preferred,
      )
    )
    jax.block_until_ready(multiply(*sides))
    # The best, not the median: this is a bound to hold the step against.
    best = min(
      _timing.seconds(lambda f=multiply, s=sides: f(*s))
      for _ in range(_REPEATS)
    )
    total += count * best
  return total
