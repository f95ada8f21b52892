"""Digests of arrays: any flipped bit shows, and no mesh does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax.parallel import sharding
from gmem_jax.train import digests

DTYPES = ["float32", "bfloat16", "int32", "int8", "uint8", "bool"]


def _array_of(dtype):
  values = np.random.default_rng(0).normal(size=(8, 12)) * 50
  return jnp.asarray(values > 0 if dtype == "bool" else values).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_changes_the_digest(dtype):
  x = _array_of(dtype)
  before = digests.of_arrays({"x": x})["x"]
  raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8).copy()
  bits = range(1) if dtype == "bool" else range(8)
  for byte in range(0, len(raw), 5):
    for bit in bits:
      flipped = raw.copy()
      flipped[byte] ^= 1 << bit
      other = np.frombuffer(flipped.tobytes(), x.dtype).reshape(x.shape)
      assert digests.of_arrays({"x": jnp.asarray(other)})["x"] != before


def test_order_changes_the_digest():
  x = _array_of("float32")
  assert digests.of_arrays({"x": x}) != digests.of_arrays({"x": x[::-1]})


@pytest.mark.multidevice
def test_no_mesh_changes_the_digest():
  x = _array_of("float32")
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
  for spec in (
    P(),
    P("fsdp", "tensor"),
    P(None, "fsdp"),
    P(("fsdp", "tensor")),
  ):
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    assert digests.of_arrays({"x": placed}) == digests.of_arrays({"x": x})


def test_known_digest():
  # 5 * 1 + 6 * (2 * 2654435769 + 1), modulo 2^32.
  x = jnp.array([5, 6], jnp.int32)
  expected = (5 + 6 * (2 * 2654435769 + 1)) % 2**32
  assert digests.of_arrays({"a": {"x": x}}) == {"a/x": expected}
