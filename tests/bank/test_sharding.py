"""A bank on four devices: split rows are the replicated ones, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gmem_jax.bank import (
  bank as bank_lib,
  lookup,
  sharding as bank_sharding,
  storage as storage_lib,
)
from gmem_jax.parallel import sharding

SIZE, WIDTH = 251, 16


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(sharding.MeshConfig(2, 2, 1))


def _bank(storage):
  rows = np.random.default_rng(0).normal(size=(SIZE, WIDTH))
  return storage_lib.encode(rows.astype(np.float32), storage)


@pytest.mark.multidevice
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_sharded_snippets_equal_replicated(mesh, storage):
  host = _bank(storage)
  whole = bank_sharding.place(host, mesh, "replicated")
  split = bank_sharding.place(host, mesh, "sharded")
  assert split.rows.sharding.spec == P(sharding.AXES)
  assert split.rows.addressable_shards[0].data.shape == (63, WIDTH)
  assert (split.padding, split.size, whole.padding) == (1, SIZE, 0)

  rows = np.random.default_rng(1).integers(0, SIZE, 24)
  rows[:2] = 0, SIZE - 1
  batch = jax.device_put(
    jnp.asarray(rows, jnp.int32), sharding.batch_sharding(mesh)
  )
  read = jax.jit(bank_lib.snippets, out_shardings=sharding.batch_sharding(mesh))
  found = read(split, batch)
  np.testing.assert_array_equal(found, read(whole, batch))
  np.testing.assert_allclose(
    found, bank_lib.snippets(host, rows), rtol=1e-6, atol=1e-7
  )
  text = read.lower(split, batch).compile().as_text()
  # The rows stay where they are: what moves is of the batch's size.
  assert "all-reduce" in text
  assert f"[{SIZE + 1},{WIDTH}]" not in text
  np.testing.assert_array_equal(
    bank_sharding.read_rows(split, rows), bank_lib.features(host, rows)
  )


@pytest.mark.multidevice
def test_lookup_finds_the_same_wherever_the_rows_lie(mesh):
  host = _bank("float32")
  queries = bank_lib.snippets(host, np.arange(8))
  found = []
  for where in ("replicated", "sharded"):
    units = lookup.unit(bank_sharding.place(host, mesh, where))
    placement = bank_sharding.lookup_placement(units)
    assert placement is not None
    # All rows but the padding: nothing hides.
    found.append(lookup.nearest(queries, units, SIZE, placement=placement))
  for ours, theirs in zip(*found, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
  assert set(np.unique(found[1][1])) == set(range(SIZE))


@pytest.mark.multidevice
def test_a_split_bank_comes_back_without_padding(mesh):
  host = _bank("int8")
  back = bank_lib.on_host(bank_sharding.place(host, mesh, "sharded"))
  assert back.padding == 0
  for ours, theirs in zip(
    jax.tree.leaves(back), jax.tree.leaves(host), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
  assert bank_lib.digest(back) == bank_lib.digest(host)


@pytest.mark.multidevice
def test_auto_splits_what_does_not_fit(mesh, monkeypatch):
  host = _bank("float32")

  class Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  assert bank_sharding.memory_limit(Device(None)) is None
  assert bank_sharding.memory_limit(Device({"bytes_limit": 7})) == 7
  # The bank has 16,064 bytes.
  for limit, split in ((None, False), (130_000, False), (128_000, True)):
    monkeypatch.setattr(
      bank_sharding, "memory_limit", lambda _, limit=limit: limit
    )
    where = bank_sharding.place(host, mesh, "auto").sharding
    assert bool(len(where.spec)) == split, limit
