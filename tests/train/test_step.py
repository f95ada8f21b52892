import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.commands import runs
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  gradients,
  run as run_lib,
  setup,
  state as train_state,
  step as train_step,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def dataset():
  return dataset_lib.load(tiny.make_config())


def make_run(config, dataset, devices, tmp_path):
  mesh = sharding.make_mesh(config.mesh, devices=devices)
  memory = setup.make_memory(config, dataset, mesh)
  return tiny.make_run(config, tmp_path, mesh, dataset, memory, None)


def fresh(run):
  init = setup.make_init(run.config, run.memory)
  shardings = sharding.state_shardings(jax.eval_shape(init), run.mesh)
  return jax.jit(init, out_shardings=shardings)(), shardings


def take_steps(run, dataset, dispatches):
  state, shardings = fresh(run)
  step_fn = run_lib.compile_step(run, shardings)
  rows = run.config.train.batch_size
  k = run.config.train.steps_per_dispatch
  where = sharding.batch_sharding(run.mesh, steps_axis=True)
  metrics = []
  for i in range(dispatches):
    index = np.arange(i * k * rows, (i + 1) * k * rows).reshape(k, rows)
    fields = dataset.train.records.fields
    batch = {name: fields[name][index] for name in ("latent", "row")}
    state, values = step_fn(
      state, sharding.to_global(batch, where), run.memory.bank
    )
    jax.block_until_ready(state)
    metrics.append(jax.device_get(values))
  losses = np.concatenate([m["train/loss"] for m in metrics])
  return state, losses


@pytest.mark.multidevice
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("scan", [True, False])
def test_gathering_once_a_step_trains_the_same(
  dataset, tmp_path, accumulation, scan
):
  changes = dict(
    model__family="lightning_dit",
    model__width=64,
    model__scan_layers=scan,
    mesh__data=2,
    mesh__fsdp=2,
    train__accumulation=accumulation,
  )
  runs = [
    make_run(
      tiny.make_config(**changes, mesh__gather=gather),
      dataset,
      jax.devices(),
      tmp_path,
    )
    for gather in ("layer", "step")
  ]
  (expected, losses), (state, ours) = (
    take_steps(run, dataset, 2) for run in runs
  )
  np.testing.assert_allclose(ours, losses, rtol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    jax.device_get(state.params),
    jax.device_get(expected.params),
  )
  # The state is split as before.
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, expected
  )


@pytest.mark.multidevice
def test_one_and_four_devices_agree_and_the_state_is_sharded(dataset, tmp_path):
  one = make_run(
    tiny.make_config(model__width=64), dataset, jax.devices()[:1], tmp_path
  )
  config = tiny.make_config(model__width=64, mesh__data=2, mesh__fsdp=2)
  four = make_run(config, dataset, jax.devices(), tmp_path)
  expected, expected_losses = take_steps(one, dataset, 6)
  state, losses = take_steps(four, dataset, 6)
  np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)

  for part in (state.params, state.ema, state.opt_state[1][0].mu):
    kernel = part["blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (2, 32, 192)
  sharded = [
    x.size
    for x in jax.tree.leaves(state.params)
    if any(name is not None for name in x.sharding.spec)
  ]
  assert sum(sharded) > 0.8 * sum(x.size for x in jax.tree.leaves(state.params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4),
    jax.device_get(state.params),
    jax.device_get(expected.params),
  )


@pytest.mark.multidevice
@pytest.mark.parametrize(
  "mesh", [pytest.param((1, 1, 4), marks=pytest.mark.slow), (1, 2, 2)]
)
def test_tensor_axis_agrees(dataset, tmp_path, mesh):
  one = make_run(tiny.make_config(), dataset, jax.devices()[:1], tmp_path)
  data, fsdp, tensor = mesh
  config = tiny.make_config(
    mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor
  )
  other = make_run(config, dataset, jax.devices(), tmp_path)
  _, expected = take_steps(one, dataset, 3)
  _, losses = take_steps(other, dataset, 3)
  np.testing.assert_allclose(losses, expected, rtol=2e-5)


def test_a_dispatch_of_steps_equals_single_steps(dataset, tmp_path):
  devices = jax.devices()[:1]
  many = make_run(
    tiny.make_config(train__steps_per_dispatch=4), dataset, devices, tmp_path
  )
  single = make_run(
    tiny.make_config(train__steps_per_dispatch=1), dataset, devices, tmp_path
  )
  a, losses_a = take_steps(many, dataset, 2)
  b, losses_b = take_steps(single, dataset, 8)
  assert int(a.step) == int(b.step) == 8
  np.testing.assert_allclose(losses_a, losses_b, rtol=1e-6)


def test_state_is_donated(dataset, tmp_path):
  run = make_run(tiny.make_config(), dataset, jax.devices()[:1], tmp_path)
  state, shardings = fresh(run)
  fields = dataset.train.records.fields
  batch = {n: fields[n][:32].reshape(2, 16, *fields[n].shape[1:])
           for n in ("latent", "row")}  # fmt: skip
  run_lib.compile_step(run, shardings)(state, batch, run.memory.bank)
  assert state.params["final"]["linear"]["kernel"].is_deleted()


def step_once(config, dataset, batch):
  """One step on one device; returns (old params, new state, metrics)."""
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.make_memory(config, dataset, mesh)
  step_fn = train_step.make_train_step(
    setup.network(config, memory),
    train_state.make_optimizer(config.optim),
    config.loss,
    memory.stats,
    seed=config.seed,
    ema_decay=config.train.ema_decay,
  )
  state = jax.jit(setup.make_init(config, memory))()
  new, metrics = jax.jit(step_fn)(state, batch, memory.bank)
  return state, new, metrics, memory


@pytest.fixture
def batch(dataset):
  fields = dataset.train.records.fields
  return {name: jnp.asarray(fields[name][:16]) for name in ("latent", "row")}


def test_first_loss_is_the_velocity_norm(dataset, batch):
  # The output layer starts at zero, so the loss is the mean of |x1 - x0|^2.
  _, new, metrics, memory = step_once(tiny.make_config(), dataset, batch)
  x1 = (batch["latent"] - memory.stats.mean[0]) / memory.stats.std[0]
  x0 = jax.random.normal(rngs.key(0, "train/noise", 0), x1.shape)
  np.testing.assert_allclose(
    metrics["train/loss"], jnp.mean((x1 - x0) ** 2), rtol=1e-5
  )
  assert int(new.step) == 1


def test_the_memory_is_what_conditions(dataset, batch):
  """Other rows change the loss with memory, and nothing without."""
  other = batch | {"row": batch["row"] + 100}
  for conditioning, differs in (("adaln", True), ("none", False)):
    config = tiny.make_config(
      model__family="lightning_dit", model__conditioning=conditioning
    )
    losses = [
      float(step_once(config, dataset, b)[2]["train/loss"])
      for b in (batch, other)
    ]
    assert (losses[0] != losses[1]) == differs


def test_frozen_table_does_not_move(dataset, batch):
  config = tiny.make_config(optim__weight_decay=0.1)
  state, new, _, _ = step_once(config, dataset, batch)
  np.testing.assert_array_equal(
    state.params["pos_embed"], new.params["pos_embed"]
  )
  np.testing.assert_array_equal(new.params["pos_embed"], new.ema["pos_embed"])


def test_each_step_draws_from_its_own_streams(dataset, batch):
  config = tiny.make_config(model__family="lightning_dit")
  state, _, _, memory = step_once(config, dataset, batch)
  network = setup.network(config, memory)
  step_fn = train_step.make_train_step(
    network,
    train_state.make_optimizer(config.optim),
    config.loss,
    memory.stats,
    seed=config.seed,
    ema_decay=0.9,
  )
  x1 = (batch["latent"] - memory.stats.mean[0]) / memory.stats.std[0]
  snippet = bank_lib.snippets(memory.bank, batch["row"])
  for step in (0, 5):
    state = state.replace(step=jnp.array(step, jnp.int32))
    _, metrics = jax.jit(step_fn)(state, batch, memory.bank)
    n = jax.random.normal(rngs.key(0, "train/time", step), (16,))
    t = jax.nn.sigmoid(n)[:, None, None, None]
    x0 = jax.random.normal(rngs.key(0, "train/noise", step), x1.shape)
    out = network.apply(
      {"params": state.params}, t * x1 + (1 - t) * x0, t.reshape(-1), snippet
    )
    expected = jnp.mean((out - (x1 - x0)) ** 2)
    np.testing.assert_allclose(metrics["train/loss"], expected, rtol=1e-5)


def test_dropout_is_on_while_training(dataset, batch):
  losses = [
    float(
      step_once(
        tiny.make_config(
          model__family="lightning_dit", model__snippet_dropout=rate
        ),
        dataset,
        batch,
      )[2]["train/loss"]
    )
    for rate in (0.0, 0.5)
  ]
  assert losses[0] != losses[1]


@pytest.mark.parametrize(
  "devices", [pytest.param(1, marks=pytest.mark.slow), 4]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(
  dataset, tmp_path, devices
):
  """Also with dropout: an example's draws do not depend on its part."""
  states, losses = [], []
  for accumulation in (1, 4):
    config = tiny.make_config(
      model__family="lightning_dit",
      model__snippet_dropout=0.4,
      mesh__data=devices,
      train__accumulation=accumulation,
    )
    run = make_run(config, dataset, jax.devices()[:devices], tmp_path)
    state, loss = take_steps(run, dataset, 3)
    states.append(jax.device_get(state.params))
    losses.append(loss)
  np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-4),
    states[1],
    states[0],
  )


def test_accumulation_sees_every_example_once():
  def fn(params, batch):
    return params * jnp.mean(batch["x"]), jnp.mean(batch["x"] ** 2)

  batch = {"x": jnp.arange(12.0)}
  expected = fn(3.0, batch)
  for parts in (1, 2, 3, 12):
    found = gradients.accumulate(fn, parts)(3.0, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.multidevice
def test_accumulation_moves_no_rows_between_devices(dataset, tmp_path):
  config = tiny.make_config(mesh__data=4, train__accumulation=2)
  run = make_run(config, dataset, jax.devices(), tmp_path)
  shapes = jax.eval_shape(setup.make_init(config, run.memory))
  shardings = sharding.state_shardings(shapes, run.mesh)
  step_fn = run_lib.compile_step(run, shardings)
  fields = dataset.train.records.fields
  where = sharding.batch_sharding(run.mesh, steps_axis=True)
  batch = {
    name: jax.ShapeDtypeStruct(
      (2, 16, *fields[name].shape[1:]), fields[name].dtype, sharding=where
    )
    for name in ("latent", "row")
  }
  rows = run.memory.bank.rows
  program = jax.jit(
    lambda state, batch, rows: step_fn(state, batch, bank_lib.MemoryBank(rows))
  ).lower(sharding.abstract(shapes, shardings), batch, rows)
  text = program.compile().as_text()
  assert "all-reduce" in text
  assert "all-to-all" not in text
  assert "all-gather" not in text


@pytest.mark.multidevice
def test_init_puts_only_shards_on_a_device_and_any_mesh_gives_the_same(
  dataset, tmp_path
):
  one = make_run(
    tiny.make_config(model__width=64), dataset, jax.devices()[:1], tmp_path
  )
  config = tiny.make_config(model__width=64, mesh__fsdp=4)
  four = make_run(config, dataset, jax.devices(), tmp_path)
  init = setup.make_init(config, four.memory)
  shapes = jax.eval_shape(init)
  shardings = sharding.state_shardings(shapes, four.mesh)
  compiled = jax.jit(init, out_shardings=shardings).lower().compile()
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  memory = compiled.memory_analysis()
  assert memory.output_size_in_bytes < 0.45 * whole
  assert memory.temp_size_in_bytes < 0.25 * whole
  jax.tree.map(
    np.testing.assert_array_equal, compiled(), jax.device_get(fresh(one)[0])
  )


def test_mesh_and_accumulation_must_divide_the_batches():
  config = tiny.make_config(mesh__data=4, train__accumulation=8)
  with pytest.raises(ValueError, match=r"config\.train\.accumulation=8"):
    runs.make_mesh(config)
  config = tiny.make_config(train__batch_size=18, mesh__data=4)
  with pytest.raises(ValueError, match=r"config\.train\.batch_size=18"):
    runs.make_mesh(config)
