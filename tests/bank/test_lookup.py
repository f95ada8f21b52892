"""The public lookup: checks, cosine, platforms, and the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.bank import (
  bank as bank_lib,
  lookup,
  sharded_lookup,
  sharding as place_lib,
)
from gmem_jax.bank.kernels import topk_gpu
from gmem_jax.parallel import sharding
from tests.bank.kernels import arg_specs, oracle

SPEC = arg_specs.ArgSpec(8, 1503, 16, 10)


def example(kind="ties", dtype="float32", seed=0):
  spec = arg_specs.ArgSpec(8, 1503, 16, 10, dtype)
  query, rows, scales, exact = arg_specs.make(spec, kind, seed)
  return query, bank_lib.MemoryBank(rows, scales), exact


@pytest.fixture(scope="module")
def search():
  return jax.jit(
    lookup.nearest_counted, static_argnames=("k", "implementation", "placement")
  )


@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
@pytest.mark.parametrize("implementation", [None, "xla", "reference"])
def test_nearest_equals_the_oracle(search, implementation, dtype):
  for kind in ("ties", "random"):
    query, bank, exact = example(kind, dtype)
    found = search(query, bank, 10, implementation=implementation)
    assert not oracle.wrong_rows(SPEC, kind, query, exact, found)
    assert found.fallbacks == 0
  scores, rows = lookup.nearest(query, bank, 10)
  assert (rows == found.rows).all()
  np.testing.assert_allclose(scores, found.scores, rtol=1e-5)


@pytest.mark.multidevice
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
  ("rows", "queries"),
  [
    ((), ("data", "fsdp")),
    (("fsdp",), ("data", "fsdp")),
    (("data", "fsdp"), ("data",)),
    (sharding.AXES, ("data", "fsdp")),
  ],
)
def test_split_rows_are_searched_like_whole_ones(search, rows, queries, dtype):
  query, bank, _ = example(dtype=dtype)
  want = search(query, bank, 10)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1))
  where = sharded_lookup.Placement(mesh, queries, rows)
  # 1503 rows are padded to 1504; the padding, made to win, is not found.
  placed = place_lib.place(bank, mesh, "sharded" if rows else "replicated")
  assert bool(placed.padding) == bool(rows)
  if rows:
    placed = placed.replace(rows=placed.rows.at[1503:].set(100))
  found = search(query, placed, 10, placement=where)
  assert (found.rows == want.rows).all()
  assert (found.scores == want.scores).all()
  assert found.fallbacks == 0
  left = tuple(a for a in queries if a not in rows)
  spec = jax.sharding.PartitionSpec(left or None)
  assert found.rows.sharding.is_equivalent_to(
    jax.sharding.NamedSharding(mesh, spec), 2
  )
  # All rows of a shard, and more than one shard has.
  few = bank.replace(
    rows=bank.rows[:30], scales=None if dtype == "float32" else bank.scales[:30]
  )
  placed = place_lib.place(few, mesh, "sharded" if rows else "replicated")
  found = search(query, placed, 30, placement=where)
  assert (found.rows == search(query, few, 30).rows).all()


def test_padding_of_a_bank_on_one_device_is_not_found(search):
  query, bank, exact = example()
  rows = jnp.concatenate([bank.rows, jnp.full((3, 16), 100.0)])
  found = search(query, bank.replace(rows=rows, padding=3), 10)
  assert not oracle.wrong_rows(SPEC, "ties", query, exact, found)


@pytest.mark.multidevice
def test_what_does_not_divide_over_the_mesh_is_named():
  query, bank, _ = example()
  mesh = sharding.make_mesh(sharding.MeshConfig(4, 1, 1))
  where = sharded_lookup.Placement(mesh)
  with pytest.raises(ValueError, match="7 queries do not divide over 4"):
    lookup.nearest(query[:7], bank, 1, placement=where)
  where = sharded_lookup.Placement(mesh, (), ("data",))
  with pytest.raises(ValueError, match="1503 bank rows do not divide over 4"):
    lookup.nearest(query, bank, 1, placement=where)


@pytest.mark.parametrize("dtype", arg_specs.DTYPES)
def test_cosine_lookup(dtype):
  query, bank, exact = example("random", dtype)
  units = jax.jit(lookup.unit)(bank)
  assert units.rows.dtype == bank.rows.dtype
  wide = np.asarray(query, np.float64)
  wide, exact = (
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wide, exact)
  )
  cosine = wide @ exact.T
  scores, rows = lookup.nearest(bank_lib.normalise(query), units, 5)
  tolerance = 1e-2 if dtype == "bfloat16" else 1e-6
  best = -np.sort(-cosine, axis=1)[:, :5]
  np.testing.assert_allclose(scores, best, atol=tolerance)
  have = np.take_along_axis(cosine, np.asarray(rows), axis=1)
  np.testing.assert_allclose(have, best, atol=tolerance)


@pytest.mark.parametrize("batch", [3, 256])
def test_cosine_lookup_on_the_host_is_the_same_in_any_batch(batch, monkeypatch):
  monkeypatch.setattr(lookup, "BATCH", batch)
  query, bank, _ = example("random")
  units = lookup.place_units(bank_lib.on_host(bank))
  scores, rows = lookup.nearest_by_cosine(3 * np.asarray(query), units, 4)
  want = lookup.nearest(bank_lib.normalise(query), lookup.unit(bank), 4)
  np.testing.assert_allclose(scores, want[0], atol=1e-6)
  np.testing.assert_array_equal(rows, want[1])


def test_cosine_lookup_of_nothing_and_of_what_is_no_table():
  _, bank, _ = example("random")
  units = lookup.place_units(bank)
  scores, rows = lookup.nearest_by_cosine(np.zeros((0, bank.width)), units, 4)
  assert scores.shape == rows.shape == (0, 4)
  for features, message in (
    (np.ones(bank.width), rf"shape \({bank.width},\): \[n, {bank.width}\] is"),
    (
      np.ones((2, 3)),
      f"queries of width 3 and bank rows of width {bank.width}",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      lookup.nearest_by_cosine(features.astype(np.float32), units, 4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_padding_of_unit_rows_is_not_found(search, dtype):
  query, bank, _ = example("random", dtype)
  # Scores below zero, so that a zero row would win.
  query = -bank.rows[:4].astype(jnp.float32)
  bank = jax.tree.map(lambda x: x[:4], bank)
  want = search(query, lookup.unit(bank), 4)
  padded = lookup.unit(bank, multiple=8)
  assert (padded.rows.shape[0], padded.size) == (8, 4)
  found = search(query, padded, 4)
  assert (found.rows == want.rows).all()
  assert (found.scores == want.scores).all()


def test_unit_scales_residuals_with_their_rows():
  rows = jnp.array([[3, 4], [0, 2]], jnp.int8)
  bank = bank_lib.MemoryBank(rows, jnp.array([2.0, 0.5]), jnp.array([1.0, 0.1]))
  units = lookup.unit(bank)
  np.testing.assert_allclose(units.scales, [0.2, 0.5], rtol=1e-6)
  np.testing.assert_allclose(units.residuals, [0.1, 0.1], rtol=1e-6)


def test_no_gradient_passes():
  query, bank, _ = example("random")

  def loss(query, rows):
    found = lookup.nearest(query, bank.replace(rows=rows), 3)
    return found[0].sum() + query.sum()

  of_query, of_rows = jax.jit(jax.grad(loss, (0, 1)))(query, bank.rows)
  assert (of_query == 1).all()
  assert (of_rows == 0).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"k": 0}, r"k=0 is not in \[1, 1503\]"),
    ({"k": 1504}, r"k=1504 is not in \[1, 1503\]"),
    ({"query": jnp.ones((2, 17))}, "width 17 and bank rows of width 16"),
    ({"bank": bank_lib.MemoryBank(jnp.ones((0, 16)))}, "the bank is empty"),
    (
      {"bank": bank_lib.MemoryBank(jnp.ones((9, 16), jnp.int8))},
      "type int8 without scales",
    ),
    ({"implementation": "triton"}, "'triton' is none of"),
  ],
)
def test_bad_arguments_are_named(change, message):
  query, bank, _ = example()
  arguments = {"query": query, "bank": bank, "k": 3} | change
  with pytest.raises(ValueError, match=message):
    lookup.nearest(**arguments)


@pytest.mark.parametrize(
  ("implementation", "change", "message"),
  [
    ("tpu", {}, "cpu"),
    ("tpu", {"k": 1503}, "1503 rows are too few for k=1503"),
    ("tpu", {"width": 4096}, "width 4096"),
    ("gpu", {}, r"needs 0\.11|type float32"),
    ("gpu", {"dtype": jnp.bfloat16}, r"needs 0\.11|1503 rows.*pad the bank"),
    ("gpu", {"dtype": jnp.bfloat16, "m": 1504}, r"needs 0\.11|width 16"),
  ],
)
def test_a_kernel_that_cannot_serve_says_why(implementation, change, message):
  width = change.get("width", 16)
  rows = jnp.ones(
    (change.get("m", 1503), width), change.get("dtype", jnp.float32)
  )
  with pytest.raises(NotImplementedError, match=message):
    lookup.nearest(
      jnp.ones((2, width)),
      bank_lib.MemoryBank(rows),
      change.get("k", 3),
      implementation=implementation,
    )


def test_an_old_jax_on_a_gpu_says_that_it_is_slower(monkeypatch):
  query, bank, _ = example()
  lookup.nearest(query, bank, 3)  # Not elsewhere: warnings are errors here.
  monkeypatch.setattr(topk_gpu, "SUPPORTED", False)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.warns(UserWarning, match=r"needs 0\.11.*XLA searches"):
    lookup.nearest(query, bank, 3)
