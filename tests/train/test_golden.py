"""The training step against the published one, draws given."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import training as training_lib
from gmem_jax.convert import rules
from gmem_jax.convert.names import dit
from gmem_jax.train import (
  state as train_state,
  step as train_step,
)
from tests.diffusion import common
from tests.models import networks

pytestmark = [
  pytest.mark.golden,
  pytest.mark.usefixtures("standard_promotion"),
]

# Relative; reached: 4e-7 in losses and norms, 3e-6 in gradients.
TOLERANCE = 1e-4
# Adam turns tiny gradients, sign included, into steps of the learning rate.
PARAM_ATOL = 2e-5


def draws_of(data, step):
  """What the published step drew; dropout is off there."""
  return train_step.Draws(
    x1=jnp.asarray(common.nhwc(data["x1"])),
    x0=jnp.asarray(common.nhwc(data["x0"][step])),
    t=jnp.asarray(data["t"][step]),
    snippet=bank_lib.normalise(jnp.asarray(data["c_raw"])),
    tokens=jnp.asarray(data["z_int8"].astype(np.float32) / 16),
    dropout_key=None,
  )


@pytest.fixture(scope="module")
def training(golden_dir):
  """The golden's numbers, its network, and ours after its steps."""
  data = common.load(golden_dir, "train_steps.npz")
  hyper = json.loads(str(data["hyper"]))
  golden = networks.load(golden_dir, "lightningdit_b_model")
  tx = train_state.make_optimizer(
    training_lib.OptimConfig(
      learning_rate=hyper["lr"],
      schedule="constant",
      warmup_steps=0,
      decay_steps=0,
      b1=hyper["b1"],
      b2=hyper["b2"],
      eps=hyper["eps"],
      weight_decay=float(hyper["weight_decay"]),
      clip_norm=hyper["max_grad_norm"],
    )
  )
  loss = common.loss_config(projection_weight=hyper["proj_weight"])
  update = jax.jit(
    train_step.make_update(
      golden.network, tx, loss, ema_decay=hyper["ema_decay"]
    )
  )
  state = train_state.at_start(golden.params, tx)
  metrics = []
  with jax.numpy_dtype_promotion("standard"):
    for step in range(hyper["steps"]):
      state, values = update(state, draws_of(data, step))
      metrics.append(jax.device_get(values))
  return data, golden, state, metrics


def to_torch(golden, tree):
  shapes = {name: value.shape for name, value in golden.state_dict.items()}
  return rules.to_torch(dit.table(golden.network), jax.device_get(tree), shapes)


def test_losses_and_gradient_norms(training):
  data, _, _, metrics = training
  for name, key in {
    "velocity": "loss_mse",
    "cosine": "loss_cos",
    "projection": "loss_proj",
    "loss": "loss_total",
    "grad_norm": "grad_norm_before_clip",
  }.items():
    ours = [m[f"train/{name}"] for m in metrics]
    assert len(ours) == len(data[key]) > 0
    np.testing.assert_allclose(ours, data[key], rtol=TOLERANCE, err_msg=name)


def test_the_published_steps_were_clipped(training):
  """Otherwise the comparison would say nothing of the clip."""
  data = training[0]
  largest = json.loads(str(data["hyper"]))["max_grad_norm"]
  assert (data["grad_norm_before_clip"] > largest).any()


@pytest.mark.parametrize("part", ["param", "ema"])
def test_parameters_and_average(training, part):
  data, golden, state, _ = training
  ours = to_torch(golden, {"param": state.params, "ema": state.ema}[part])
  compared = 0
  for key in data:
    if not key.startswith(f"{part}:"):
      continue
    name = key.removeprefix(f"{part}:")
    moved = np.abs(data[key] - golden.state_dict[name]).max()
    atol = PARAM_ATOL if part == "param" else 1e-2 * PARAM_ATOL
    np.testing.assert_allclose(
      ours[name], data[key], rtol=1e-6, atol=atol, err_msg=name
    )
    if part == "param":
      assert moved > 10 * atol, f"{name} hardly moved: it compares nothing"
    compared += 1
  assert compared > 0


def test_norms_of_all_parameters_and_their_change(training):
  data, golden, state, _ = training
  keys = json.loads(str(data["keys"]))
  params, ema = (to_torch(golden, t) for t in (state.params, state.ema))
  assert set(params) == {*keys, "pos_embed"}
  for i, name in enumerate(keys):
    change = params[name].astype(np.float64) - golden.state_dict[name]
    for ours, theirs, rtol in (
      (change, data["param_delta_norm_per_key"][i], 1e-3),
      (params[name], data["param_norm_per_key"][i], TOLERANCE),
      (ema[name], data["ema_norm_per_key"][i], TOLERANCE),
    ):
      norm = np.linalg.norm(ours.astype(np.float64).ravel())
      np.testing.assert_allclose(norm, theirs, rtol=rtol, err_msg=name)


def test_the_frozen_table_is_copied(training):
  """The published average of it drifts by rounding; ours is the table."""
  data, golden, state, _ = training
  drift = float(data["pos_embed_ema_change"])
  for tree in (state.params, state.ema):
    table = np.asarray(tree["pos_embed"])
    np.testing.assert_array_equal(table, golden.state_dict["pos_embed"])
  assert 0 <= drift < 1e-5


def test_gradients_of_the_first_step(training):
  data, golden, _, _ = training
  hyper = json.loads(str(data["hyper"]))
  keep = optax.GradientTransformation(
    lambda params: params, lambda grads, state, params: (grads, grads)
  )
  loss = common.loss_config(projection_weight=hyper["proj_weight"])
  update = train_step.make_update(golden.network, keep, loss, ema_decay=0.0)
  state = train_state.at_start(golden.params, keep)
  state, _ = jax.jit(update)(state, draws_of(data, 0))
  grads = to_torch(golden, state.opt_state)
  norms = dict(
    zip(json.loads(str(data["keys"])), data["grad0_norm_per_key"], strict=True)
  )
  for name, norm in norms.items():
    ours = np.linalg.norm(grads[name].astype(np.float64).ravel())
    np.testing.assert_allclose(ours, norm, rtol=1e-4, err_msg=name)
  compared = [key for key in data if key.startswith("grad0:")]
  assert compared
  for key in compared:
    name = key.removeprefix("grad0:")
    networks.assert_close(grads[name], data[key], key)
