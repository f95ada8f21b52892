import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax.parallel import sharding
from gmem_jax.train import digest

DTYPES = ["float32", "bfloat16", "int32", "int8", "uint8", "bool"]


def an_array(dtype):
  values = np.random.default_rng(0).normal(size=(8, 12)) * 50
  return jnp.asarray(values > 0 if dtype == "bool" else values).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_changes_it(dtype):
  x = an_array(dtype)
  before = digest.of_tree({"x": x})["x"]
  raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8).copy()
  bits = range(1) if dtype == "bool" else range(8)
  for byte in range(0, len(raw), 5):
    for bit in bits:
      flipped = raw.copy()
      flipped[byte] ^= 1 << bit
      other = np.frombuffer(flipped.tobytes(), x.dtype).reshape(x.shape)
      assert digest.of_tree({"x": jnp.asarray(other)})["x"] != before


def test_order_matters():
  x = an_array("float32")
  assert digest.of_tree({"x": x}) != digest.of_tree({"x": x[::-1]})


@pytest.mark.multidevice
def test_no_mesh_changes_it():
  x = an_array("float32")
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
  for spec in (
    P(),
    P("fsdp", "tensor"),
    P(None, "fsdp"),
    P(("fsdp", "tensor")),
  ):
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    assert digest.of_tree({"x": placed}) == digest.of_tree({"x": x})


def test_known_value():
  # 5 * 1 + 6 * (2 * 2654435769 + 1), modulo 2^32.
  x = jnp.array([5, 6], jnp.int32)
  expected = (5 + 6 * (2 * 2654435769 + 1)) % 2**32
  assert digest.of_tree({"a": {"x": x}}) == {"a/x": expected}
