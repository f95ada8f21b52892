import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmem_jax.config import training
from gmem_jax.train import state as train_state

pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = training.OptimConfig(
  learning_rate=2e-4,
  schedule="constant",
  warmup_steps=0,
  decay_steps=0,
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.0,
  clip_norm=1.0,
)


def replace(**changes):
  return dataclasses.replace(CONFIG, **changes)


def test_step_is_clipped_adamw():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(3, 4)).astype(np.float32)
  params = {"kernel": jnp.asarray(w)}
  tx = train_state.make_optimizer(replace(weight_decay=0.1))
  state = tx.init(params)
  m = v = np.zeros_like(w)
  for i in range(1, 4):
    g = 10 * rng.normal(size=w.shape).astype(np.float32)
    updates, state = tx.update({"kernel": jnp.asarray(g)}, state, params)
    params = optax.apply_updates(params, updates)
    g = g / np.linalg.norm(g)
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
    step = (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.95**i)) + 1e-8)
    w = w - 2e-4 * (step + 0.1 * w)
    np.testing.assert_allclose(params["kernel"], w, rtol=0, atol=1e-6)


def test_small_gradients_are_not_clipped():
  tx = train_state.make_optimizer(CONFIG)
  params = {"kernel": jnp.zeros((2,))}
  small = {"kernel": jnp.array([0.3, -0.4])}
  chained, _ = tx.update(small, tx.init(params), params)
  bare = optax.adamw(2e-4, b1=0.9, b2=0.95, weight_decay=0.0)
  expected, _ = bare.update(small, bare.init(params), params)
  np.testing.assert_array_equal(chained["kernel"], expected["kernel"])


def test_frozen_parameters_do_not_decay():
  params = {"pos_embed": jnp.ones((2,)), "kernel": jnp.ones((2,))}
  tx = train_state.make_optimizer(replace(weight_decay=0.5))
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_array_equal(updates["pos_embed"], np.zeros(2))
  assert (updates["kernel"] < 0).all()


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, {0: 2e-4, 1000: 2e-4}),
    ({"warmup_steps": 10}, {0: 0.0, 5: 1e-4, 10: 2e-4, 99: 2e-4}),
    (
      {"schedule": "cosine", "warmup_steps": 10, "decay_steps": 110},
      {0: 0.0, 10: 2e-4, 60: 1e-4, 110: 0.0},
    ),
    # All of the run is warm-up.
    (
      {"schedule": "cosine", "warmup_steps": 10, "decay_steps": 8},
      {0: 0.0, 5: 1e-4, 10: 2e-4},
    ),
  ],
)
def test_schedule(changes, expected):
  schedule = train_state.learning_rate(replace(**changes))
  for step, value in expected.items():
    assert float(schedule(step)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"learning_rate": 0.0}, "optim.learning_rate"),
    ({"clip_norm": -1.0}, "optim.clip_norm"),
    ({"b2": 1.0}, "optim.b2"),
    ({"decay_steps": -1}, "optim.decay_steps"),
    ({"weight_decay": -0.1}, "optim.weight_decay"),
  ],
)
def test_wrong_settings_name_the_key(changes, key):
  with pytest.raises(ValueError, match=key):
    replace(**changes)


def test_a_cosine_without_an_end_has_no_rate():
  with pytest.raises(ValueError, match=r"optim\.decay_steps=0"):
    train_state.learning_rate(replace(schedule="cosine"))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_of_all_steps(schedule):
  config = replace(schedule=schedule, decay_steps=4)
  rates = train_state.learning_rates(config, 4)
  one = train_state.learning_rate(config)
  np.testing.assert_allclose(rates, [one(i) for i in range(4)], rtol=1e-6)
