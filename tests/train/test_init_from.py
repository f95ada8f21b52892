"""Starting from parameters of another conditioning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import samplers
from gmem_jax.files import hub, weights
from gmem_jax.parallel import sharding
from gmem_jax.sample import source as source_lib
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  directory as directory_lib,
  init_from,
  loop,
  setup,
)
from tests import tiny

CROSS = {"model__conditioning": "adaln+cross", "retrieval__neighbours": 3}


@pytest.fixture(scope="module")
def parts():
  config = tiny.make_config()
  mesh = sharding.make_mesh(config.mesh)
  dataset = dataset_lib.load(config)
  return mesh, dataset, setup.make_memory(config, dataset, mesh)


@pytest.fixture(scope="module")
def fresh(parts):
  """Config -> state at step 0; each network's is made once."""
  mesh, _, memory = parts

  @functools.cache
  def of_model(model):
    config = dataclasses.replace(tiny.make_config(), model=model)
    init = setup.make_init(config, memory)
    shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
    return jax.jit(init, out_shardings=shardings)()

  return lambda config: of_model(config.model)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), b)


def make_converted(path, config, memory, params, kind="lightning_dit"):
  network = setup.network(config, memory)
  model = {
    "family": kind,
    **{
      f.name: getattr(network, f.name)
      for f in dataclasses.fields(network)
      if f.name not in ("parent", "name", "cross_every", "place")
    },
    "grid": 4,
  }
  weights.save_converted(
    path,
    {"params": jax.device_get(params)},
    {
      "kind": kind,
      "title": "a network",
      "model": model,
      "weights": None,
      "step": None,
      "source": {"file": "x", "sha256": "0" * 64},
    },
  )
  return str(path)


@pytest.mark.slow
def test_a_run_gains_cross_attention(parts, fresh, tmp_path):
  mesh, dataset, memory = parts
  old = tiny.make_config()
  state = fresh(old)
  average = jax.tree.map(lambda a: a + 1, state.ema)
  state = state.replace(ema=average)
  with checkpoint.opened(tmp_path / "checkpoints", old.checkpoint) as kept:
    kept.save(8, state, {"train_seconds": 1.0})
  config = tiny.make_config(**CROSS, train__init_from=str(tmp_path))
  run = tiny.make_run(config, tmp_path / "new", mesh, dataset, memory, None)
  with checkpoint.opened(tmp_path / "empty", config.checkpoint) as kept:
    started, _ = loop.restore_or_init(run, kept)
  assert int(started.step) == 0
  for name, part in jax.device_get(average).items():
    equal(started.params[name], part)
    equal(started.ema[name], part)
  unchanged = fresh(config)
  equal(started.params["cross"], jax.device_get(unchanged.params["cross"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.sharding, b.sharding),
    started.params,
    unchanged.params,
  )


def test_converted_weights_gain_cross_attention(parts, fresh, tmp_path):
  mesh, _, memory = parts
  changes = {"model__family": "lightning_dit"}
  old = tiny.make_config(**changes)
  state = fresh(old)
  path = make_converted(tmp_path / "net", old, memory, state.params)
  config = tiny.make_config(**changes, **CROSS, train__init_from=path)
  started = init_from.start(config, fresh(config), mesh)
  for name, part in jax.device_get(state.params).items():
    equal(started.params[name], part)

  # Sampling from them as they are says how to continue.
  wrong = tiny.make_config(**changes, **CROSS, sample__network=path)
  with pytest.raises(ValueError, match=r"conditioning: 'adaln' there.*\n.*"
                     rf"--config\.train\.init_from={path}"):  # fmt: skip
    source_lib.load(wrong, tmp_path, mesh)


def test_an_address_of_the_hub_is_fetched(parts, fresh, tmp_path, monkeypatch):
  mesh, _, memory = parts
  config = tiny.make_config(model__family="lightning_dit")
  params = fresh(config).params
  path = make_converted(tmp_path / "net", config, memory, params)
  fetch, there = hub.local, {"hf://owner/net": path}
  monkeypatch.setattr(hub, "local", lambda path: fetch(there.get(path, path)))
  change = {"model__family": "lightning_dit"}
  config = tiny.make_config(**change, train__init_from="hf://owner/net")
  started = init_from.start(config, fresh(config), mesh)
  equal(started.params, jax.device_get(params))
  config = tiny.make_config(**change, train__init_from="hf://owner")
  with pytest.raises(ValueError, match=r"init_from='hf://owner': .*OWNER/NAME"):
    init_from.start(config, fresh(config), mesh)


def test_the_first_release_is_turned(parts, fresh, tmp_path):
  mesh, _, memory = parts
  config = tiny.make_config()
  network = setup.network(config, memory)
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: jnp.asarray(0.3 * random.standard_normal(a.shape), jnp.float32),
    jax.device_get(fresh(config).params),
  )
  x = jnp.asarray(random.standard_normal((3, 8, 8, 1)), jnp.float32)
  t = jnp.array([0.0, 0.3, 1.0])
  snippet = jnp.asarray(random.standard_normal((3, 768)), jnp.float32)

  apply = jax.jit(
    lambda params, x, t: network.apply({"params": params}, x, t, snippet)
  )

  def velocity(params):
    return lambda x, t: apply(params, x, t)

  expected = samplers.turn_time(velocity(params))(x, t)
  path = make_converted(tmp_path / "net", config, memory, params, "sit")
  config = tiny.make_config(train__init_from=path)
  started = init_from.start(config, fresh(config), mesh)
  found = velocity(jax.device_get(started.params))(x, t)
  scale = float(jnp.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=2e-5 * scale)


def test_projectors_beyond_the_first_are_left_out(caplog):
  shared = {"blocks": {"k": np.zeros(3)}, "projector": {"fc1": np.zeros(2)}}
  theirs = {
    **shared,
    "projector": {"fc1": np.ones(2)},
    "projector_1": {"fc1": np.ones(4)},
  }
  with caplog.at_level("INFO"):
    merged = init_from.merge(shared, theirs, "x")
  np.testing.assert_array_equal(merged["projector"]["fc1"], np.ones(2))
  assert merged.keys() == shared.keys()
  assert "left out: projector;" in caplog.text
  assert "the network begins as the same function" in caplog.text


def test_networks_that_differ_in_more_are_refused():
  ours = {"blocks": {"k": np.zeros((2, 3))}, "cross": {"q": np.zeros(3)}}
  theirs = {"blocks": {"k": np.zeros((4, 3))}, "label": np.zeros(2)}
  with pytest.raises(ValueError, match="x holds another network") as error:
    init_from.merge(ours, theirs, "x")
  assert r"blocks/k: (4, 3) there, (2, 3) now" in str(error.value)
  assert "label: unknown now" in str(error.value)
  assert "cross" not in str(error.value)


@pytest.mark.parametrize("made", [False, True])
def test_a_path_without_parameters_is_named(parts, fresh, tmp_path, made):
  mesh = parts[0]
  if made:
    (tmp_path / "checkpoints").mkdir()
  message = "there is no checkpoint yet" if made else "neither converted"
  config = tiny.make_config(train__init_from=str(tmp_path))
  with pytest.raises(ValueError, match=rf"train\.init_from=.*{message}"):
    init_from.start(config, fresh(config), mesh)


def test_a_workdir_of_another_conditioning_tells_how_to_continue(tmp_path):
  directory_lib.claim(tiny.make_config(), tmp_path)
  message = rf"model\.conditioning.*train\.init_from={tmp_path}"
  with pytest.raises(ValueError, match=message):
    directory_lib.check(tiny.make_config(**CROSS), tmp_path)
