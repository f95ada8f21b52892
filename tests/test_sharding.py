import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gmem_jax import sharding


@pytest.fixture
def mesh():
  return sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, tensor=2))


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [((-1, 1, 1), (4, 1, 1)), ((2, 2, 1), (2, 2, 1)), ((1, -1, 2), (1, 2, 2))],
)
def test_mesh_sizes(sizes, expected):
  mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
  assert tuple(mesh.shape[a] for a in sharding.AXES) == expected


@pytest.mark.parametrize(
  "sizes", [(3, 1, 1), (8, 1, 1), (-1, -1, 1), (0, 4, 1), (-1, 8, 1), (1, 1, 1)]
)
def test_wrong_mesh_names_the_key(sizes):
  with pytest.raises(ValueError, match=r"mesh\.data=.*mesh\.fsdp="):
    sharding.make_mesh(sharding.MeshConfig(*sizes))


@pytest.mark.parametrize(
  ("path", "shape", "expected"),
  [
    ("params/blocks/attn/qkv/kernel", (4, 96, 288), P(None, "fsdp", "tensor")),
    ("params/blocks/attn/proj/kernel", (4, 96, 96), P(None, "tensor", "fsdp")),
    ("opt_state/1/0/mu/blocks/mlp/fc2/kernel", (96, 96), P("tensor", "fsdp")),
    ("ema/blocks/mlp/fc1/kernel", (96, 97), P("fsdp", None)),
    ("params/patch_embed/linear/kernel", (4, 96), P()),
    ("params/blocks/modulation/bias", (28, 6912), P()),
    ("params/pos_embed", (1, 256, 1152), P()),
    ("params/cross/q/kernel", (4, 96, 96), P(None, "fsdp", "tensor")),
    ("params/cross/kv/kernel", (4, 96, 192), P(None, "fsdp", "tensor")),
    ("params/cross/proj/kernel", (4, 96, 96), P(None, "tensor", "fsdp")),
    ("params/cross/score_scale", (1024, 16), P()),
    ("params/memory_embed/kernel", (768, 96), P("fsdp", "tensor")),
    ("params/memory_norm/scale", (8192,), P()),
  ],
)
def test_rules(mesh, path, shape, expected):
  assert sharding.spec_of(path, shape, mesh) == expected


def test_a_large_array_without_a_rule_is_an_error(mesh):
  with pytest.raises(ValueError, match="params/mystery"):
    sharding.spec_of("params/mystery", (1000, 1000), mesh)


def test_batch_is_split_over_data_and_fsdp():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=1))
  batch = {"x": np.arange(24, dtype=np.float32).reshape(3, 8)}
  placed = sharding.to_global(
    batch, sharding.batch_sharding(mesh, steps_axis=True)
  )["x"]
  assert placed.sharding.spec == P(None, ("data", "fsdp"))
  assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}
  np.testing.assert_array_equal(placed, batch["x"])


def test_abstract_carries_shardings(mesh):
  shapes = jax.eval_shape(lambda: {"kernel": jnp.zeros((128, 128))})
  shardings = sharding.state_shardings(shapes, mesh)
  target = sharding.abstract(shapes, shardings)["kernel"]
  assert target.shape == (128, 128)
  assert target.sharding.spec == P("fsdp", "tensor")
