"""Digests of arrays, the same however the arrays are split over devices.

A digest is a sum over all elements, modulo 2^32, of the element's bits times an
odd number that depends on its position: any one flipped bit changes it. Sums of
integers do not depend on their order, so no mesh changes it.
"""

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


def of_array(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  """The digest of one array.

  Args:
    x: Of any type of at most four bytes.
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


_of_leaves = jax.jit(lambda leaves: [of_array(leaf) for leaf in leaves])


def of_tree(tree: Any) -> dict[str, int]:
  """The digests of all arrays of a tree.

  Args:
    tree: Arrays; leaves that are none are left out.

  Returns:
    Path in the tree, joined by "/" -> digest.
  """
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if isinstance(leaf, jax.Array)
  }
  digests = jax.device_get(_of_leaves(list(found.values())))
  return {name: int(d) for name, d in zip(found, digests, strict=True)}


def of_json(value: Any) -> int:
  """The digest of a JSON value.

  Args:
    value: Nested dicts, lists, numbers and strings.
  """
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())
