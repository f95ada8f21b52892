"""Digests of a state, which tell whether it is still what was written."""

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

# An odd number without pattern: 2^32 over the golden ratio.
_SPREAD = 2654435769
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _digest(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  """The digest of one array of a type of at most four bytes.

  The sum over all elements, modulo 2^32, of the element's bits times an odd
  number that depends on its position: any one flipped bit changes it. Sums of
  integers do not depend on their order, so every mesh gives the same.
  """
  bits = x
  if x.dtype == jnp.bool:
    bits = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(bits, _BITS[bits.dtype.itemsize])
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
    position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
  odd = (position * jnp.uint32(_SPREAD)) * jnp.uint32(2) + jnp.uint32(1)
  return jnp.sum(bits.astype(jnp.uint32) * odd, dtype=jnp.uint32)


# One program for all leaves: a dispatch each would cost more than the sums.
_digest_all = jax.jit(lambda leaves: [_digest(leaf) for leaf in leaves])


def of_arrays(tree: Any) -> dict[str, int]:
  """The digest of every jax array of a tree, by its path joined with "/"."""
  arrays = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if isinstance(leaf, jax.Array)
  }
  values = jax.device_get(_digest_all(list(arrays.values())))
  return {name: int(d) for name, d in zip(arrays, values, strict=True)}


def of_json(value: Any) -> int:
  """The digest of a JSON value."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())
