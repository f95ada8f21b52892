"""Looking up neighbours, alone and inside the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, lookup, sharding as bank_sharding
from gmem_jax.commands import programs
from gmem_jax.config import networks
from gmem_jax.models import retrieval
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  setup,
  state as train_state,
  step as train_step,
)
from tests import tiny

CROSS = {
  "model__conditioning": "adaln+cross",
  "retrieval__neighbours": 3,
  "retrieval__dropout": 0.25,
  "model__scan_layers": True,  # Fast to compile.
}

retrieve = jax.jit(retrieval.retrieve, static_argnums=0)


def config(neighbours=3, exclude_own=True, dropout=0.0):
  return networks.RetrievalConfig(neighbours, exclude_own, dropout)


@pytest.fixture(scope="module")
def bank():
  rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
  rows[7] = 3 * rows[30]  # equal directions
  return lookup.unit(bank_lib.MemoryBank(jnp.asarray(rows)))


@pytest.fixture(scope="module")
def dataset():
  return dataset_lib.load(tiny.make_config())


@pytest.mark.parametrize("exclude_own", [True, False])
def test_neighbours_are_the_nearest_others(bank, exclude_own):
  own = np.array([3, 7, 30, 39])
  snippet = bank_lib.snippets(bank, jnp.asarray(own))
  found = retrieve(config(3, exclude_own), bank, snippet, jnp.asarray(own))
  rows = np.asarray(bank.rows, np.float64)
  for i, row in enumerate(own):
    scores = rows @ rows[row]
    scores[row] = -np.inf
    order = np.argsort(-scores, kind="stable")
    expected, best = rows[order], scores[order]
    if not exclude_own:
      expected, best = np.r_[rows[[row]], expected], np.r_[1, best]
    np.testing.assert_allclose(found.snippets[i], expected[:3], atol=1e-6)
    np.testing.assert_allclose(found.scores[i], best[:3], atol=1e-6)


def test_a_memory_outside_of_the_bank_has_no_own_row(bank):
  snippet = bank_lib.snippets(bank, jnp.array([5]))
  outside = jnp.array([retrieval.OUTSIDE])
  found = retrieve(config(2), bank, snippet, outside)
  # It happens to be a row, and nothing says that this row is its own.
  np.testing.assert_allclose(found.scores[0, 0], 1, atol=1e-6)
  np.testing.assert_allclose(found.snippets[0, 0], snippet[0], atol=1e-6)


def test_dropped_neighbours_are_absent(bank):
  snippet = bank_lib.snippets(bank, jnp.arange(40))
  found = retrieve(config(10), bank, snippet, jnp.arange(40))
  dropped = retrieval.drop(found, 0.3, jax.random.key(0))
  absent = ~np.asarray(dropped.snippets).any(axis=-1)
  assert 0.2 < absent.mean() < 0.4
  np.testing.assert_array_equal(
    np.asarray(dropped.snippets)[~absent], np.asarray(found.snippets)[~absent]
  )
  np.testing.assert_array_equal(dropped.scores, found.scores)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ((0, True, 0.0), r"config\.retrieval\.neighbours=0: must be positive"),
    ((1, True, 1.0), r"config\.retrieval\.dropout=1\.0: must lie in \[0, 1\)"),
    ((40, True, 0.0), "neighbours=40: the bank has 39 rows besides an example"),
    ((41, False, 0.0), "neighbours=41: the bank has 40 rows$"),
  ],
)
def test_bad_settings_are_refused(bank, fields, message):
  with pytest.raises(ValueError, match=message):
    retrieval.check_bank(networks.RetrievalConfig(*fields), bank)


def test_as_many_neighbours_as_the_bank_has(bank):
  retrieval.check_bank(config(39), bank)
  retrieval.check_bank(config(40, exclude_own=False), bank)
  found = retrieve(
    config(39), bank, bank_lib.snippets(bank, jnp.array([0])), jnp.array([0])
  )
  assert found.scores.shape == (1, 39)


def make_step(mesh, dataset, placement="replicated"):
  """The training step's function, its state and its bank on a mesh."""
  settings = tiny.make_config(**CROSS, bank__placement=placement)
  memory = setup.make_memory(settings, dataset, mesh)
  bank = memory.unit
  step_fn = train_step.make_train_step(
    setup.network(settings, memory),
    train_state.make_optimizer(settings.optim),
    settings.loss,
    memory.stats,
    seed=0,
    ema_decay=0.9,
    retrieve=setup.make_retrieve(settings, bank),
  )
  init = setup.make_init(settings, memory)
  shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  return jax.jit(step_fn), state, bank


def make_batch(mesh, dataset):
  fields = dataset.train.records.fields
  batch = {name: fields[name][100:116] for name in ("latent", "row")}
  return sharding.to_global(batch, sharding.batch_sharding(mesh))


@pytest.mark.multidevice
@pytest.mark.parametrize("exclude_own", [True, False])
def test_split_rows_give_the_same_neighbours(bank, exclude_own):
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1))
  raw = bank_lib.MemoryBank(3 * bank.rows[:39])  # 39 do not divide by 4
  settings = tiny.make_config(
    **CROSS, **{"retrieval__exclude_own": exclude_own}
  )
  own = jnp.arange(16) + 20
  found = []
  for where in ("replicated", "sharded"):
    unit = setup.lookup_bank(settings, bank_sharding.place(raw, mesh, where))
    assert unit.rows.sharding.is_fully_replicated == (where == "replicated")
    # Whole multiples of 8 rows on every device, as the kernels want them.
    assert unit.rows.shape[0] == (40 if where == "replicated" else 64)
    retrieve = jax.jit(setup.make_retrieve(settings, unit))
    found.append(retrieve(unit, bank_lib.snippets(raw, own), own))
  np.testing.assert_array_equal(found[0].snippets, found[1].snippets)
  np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-6)
  assert (np.asarray(found[0].scores)[:, 0] > 0.999).all() != exclude_own


@pytest.mark.slow
@pytest.mark.multidevice
def test_the_step_looks_up_replicated_and_in_split_rows(
  dataset, standard_promotion
):
  del standard_promotion
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1))
  results = []
  for placement in ("replicated", "sharded"):
    step_fn, state, bank = make_step(mesh, dataset, placement)
    split = not bank.rows.sharding.is_fully_replicated
    assert split == (placement == "sharded")
    losses = []
    for _ in range(3):
      state, metrics = step_fn(state, make_batch(mesh, dataset), bank)
      losses.append(float(metrics["train/loss"]))
    results.append((losses, jax.device_get(state.params)))
  (losses, params), (others, theirs) = results
  # Gradients reached the cross-attention: its output is no longer zero.
  assert params["cross"]["proj"]["kernel"].any()
  np.testing.assert_allclose(others, losses, rtol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-4),
    theirs,
    params,
  )


@pytest.mark.multidevice
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_accelerators(platform, standard_promotion):
  """The whole training step over four devices, with the lookup's kernel."""
  del standard_promotion
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1))
  settings = tiny.make_config(**CROSS)
  program = programs.training(settings, mesh, 5_001)
  lowered = program.jitted.trace(*program.arguments).lower(
    lowering_platforms=(platform,)
  )
  # The kernel for GPUs takes bfloat16 rows alone; these are float32.
  assert ("tpu_custom_call" in lowered.as_text()) == (platform == "tpu")
