import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec as P

from gmem_jax.models import dit
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  state as train_state,
)
from tests import tiny


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
  with pytest.raises(
    ValueError, match=r"config\.mesh\.data=.*config\.mesh\.fsdp="
  ):
    sharding.make_mesh(sharding.MeshConfig(*sizes))


@dataclasses.dataclass(frozen=True)
class Chip:
  """What of a device decides its place in a mesh."""

  id: int
  slice_index: int
  platform: str = "tpu"
  device_kind: str = "TPU v6 lite"
  coords: tuple[int, ...] = ()
  core_on_chip: int = 0
  num_cores: int = 1
  process_index: int = 0


def slices(count, side):
  """Slices of side x side chips, in an order that tells nothing."""
  chips = [
    Chip(id=100_000 * n + side * y + x, slice_index=n, coords=(x, y, 0))
    for x in range(side)
    for y in range(side)
    for n in range(count)
  ]
  return chips[::-1]


@pytest.mark.parametrize(
  "sizes", [(2, -1, 1), (-1, 8, 1), (4, 4, 2), (-1, 1, 1)]
)
def test_only_data_leads_from_slice_to_slice(sizes):
  chips = slices(count=2, side=4)
  mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), chips)
  assert mesh.size == 32
  where = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  half = mesh.shape["data"] // 2
  assert (where[:half] == 0).all()
  assert (where[half:] == 1).all()


def test_slices_that_do_not_divide_data():
  with pytest.raises(
    ValueError, match=r"config\.mesh\.data=-1.*3 slices.*a multiple of 3"
  ):
    sharding.make_mesh(sharding.MeshConfig(-1, 6, 1), slices(count=3, side=2))


def test_an_axis_may_be_a_part_of_an_axis_of_chips():
  chips = slices(count=1, side=4)
  mesh = sharding.make_mesh(sharding.MeshConfig(-1, 8, 1), chips)
  assert mesh.shape["data"] == 2
  assert set(mesh.devices.flat) == set(chips)


def test_nodes_of_gpus_follow_each_other():
  """A node is what jax calls a slice there; `fsdp` may lead to the next."""
  gpus = [
    Chip(id=n, slice_index=n // 4, platform="gpu", device_kind="H100")
    for n in range(8)
  ]
  for sizes in ((2, 4, 1), (1, 8, 1), (1, 4, 2), (8, 1, 1)):
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), gpus[::-1])
    assert list(mesh.devices.flat) == gpus


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


def test_batch_ways_leave_out_the_tensor_axis(mesh):
  assert sharding.batch_ways(mesh) == 2
  assert sharding.batch_ways(AbstractMesh((3, 2, 4), sharding.AXES)) == 6


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


def test_a_large_array_that_cannot_be_split_as_ruled_is_split_otherwise():
  mesh = AbstractMesh((1, 4, 1), sharding.AXES)
  spec = sharding.spec_of("params/x/kernel", (28, 1151, 3456), mesh)
  assert spec == P(None, None, "fsdp")


def test_a_large_array_that_cannot_be_split_at_all_is_an_error():
  mesh = AbstractMesh((1, 256, 1), sharding.AXES)
  with pytest.raises(
    ValueError, match=r"config\.mesh\.fsdp=256: divides no axis of p"
  ):
    sharding.spec_of("params/x/kernel", (28, 1152, 3456), mesh)


@pytest.fixture(scope="module")
def xl():
  """The abstract training state of XL/1 with its projector."""
  network = dit.LightningDiT(
    channels=32, **dit.LIGHTNING_DIT_SIZES["XL/1"], token_dim=768
  )
  tx = train_state.make_optimizer(tiny.make_config().optim)
  init = train_state.make_init(network, (16, 16, 32), tx, seed=0)
  with jax.numpy_dtype_promotion("standard"):
    return jax.eval_shape(init)


@pytest.mark.parametrize(
  "sizes", [(1, 8, 1), (2, 128, 1), (1, 64, 4), (8, 16, 2)]
)
def test_nothing_large_of_xl_is_whole_on_a_device(xl, sizes):
  mesh = AbstractMesh(sizes, sharding.AXES)
  shardings = sharding.state_shardings(xl, mesh)
  whole, held, total = [], 0, 0
  for (path, leaf), where in zip(
    jax.tree_util.tree_leaves_with_path(xl),
    jax.tree.leaves(shardings),
    strict=True,
  ):
    size = leaf.size * leaf.dtype.itemsize
    part = np.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    held, total = held + part, total + size
    if size > sharding.MAX_REPLICATED_BYTES and part > size / sizes[1]:
      whole.append((jax.tree_util.keystr(path), leaf.shape, where.spec))
  assert total > 10e9  # parameters, average and two moments in float32
  assert not whole
  assert held < total / sizes[1] + 20e6  # biases and the like stay whole


def test_processes_load_the_rows_that_their_devices_hold(mesh):
  # One process holds all rows, also where devices share them.
  assert sharding.process_part(mesh, 8) == (0, 1)


def test_placed_arrays_are_whole_everywhere(mesh):
  placed = sharding.place({"x": np.arange(3)}, sharding.replicated(mesh))["x"]
  assert placed.sharding.is_fully_replicated
  np.testing.assert_array_equal(placed, np.arange(3))
