"""Two ways to take a gradient: of a batch in parts, and at gathered parameters.

Both change functions (parameters, batch) -> (value, gradient).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def at_gathered(
  grad_fn: Callable[..., Any], gather: Callable[[Any], Any]
) -> Callable[..., Any]:
  """Takes a gradient at other parameters, made of the given ones by `gather`.

  Both functions are (params, batch) -> (value, gradient); the gradient is that
  by the parameters that are given.
  """

  def gathered(params, batch):
    whole, pull = jax.vjp(gather, params)
    value, grads = grad_fn(whole, batch)
    # Parts of a batch are summed in float32.
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, whole)
    return value, pull(grads)[0]

  return gathered


def accumulate(fn: Callable[..., Any], parts: int) -> Callable[..., Any]:
  """Lets a function see a batch in parts, and averages what it returns.

  The function is (params, batch) -> pytree of means over the batch; the result
  is the same up to rounding. The number of parts divides the batch.
  """
  if parts == 1:
    return fn

  # Part j has the rows j, j + parts, …: a batch split over devices in blocks of
  # rows then needs no exchange, and every part keeps all devices busy.
  def split(x):
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

  def accumulated(params, batch):
    leaves, structure = jax.tree.flatten(batch)

    def one(part):
      return fn(params, structure.unflatten(part))

    def add(total, part):
      parts = one(part)
      return jax.tree.map(
        lambda t, x: t + x.astype(t.dtype), total, parts
      ), None

    leaves = [split(x) for x in leaves]
    shapes = jax.eval_shape(one, [x[0] for x in leaves])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    # A scan, not a Python loop: one part's activations are alive at a time.
    total, _ = jax.lax.scan(add, zeros, leaves)
    return jax.tree.map(lambda x: x / parts, total)

  return accumulated
