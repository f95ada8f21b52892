"""Training losses: published numbers, laws of time, and bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import losses, paths
from tests.diffusion import common

TOLERANCE = 1e-4


def _network(golden):
  """W x + t b, the affine network of the golden file."""
  w, b = jnp.asarray(golden["W"]), jnp.asarray(golden["b"])
  tokens = jnp.asarray(golden["z_tilde"])

  def network(x, t):
    t = t.reshape(-1, 1, 1, 1)
    mixed = jnp.einsum("oc,bhwc->bhwo", w, x)
    return mixed + t * b.reshape(1, 1, 1, -1), tokens

  return network


def _batch(golden):
  return (
    jnp.asarray(common.nhwc(golden["x1"])),
    jnp.asarray(common.nhwc(golden["x0"])),
    jnp.asarray(golden["t"]),
  )


@pytest.mark.golden
def test_published_numbers(golden_dir):
  golden = common.load(golden_dir, "transport_losses.npz")
  network = _network(golden)
  x1, x0, t = _batch(golden)
  errors = {}
  for key in golden:
    if not key.endswith("_loss") or key.endswith(("_cos_loss", "_proj_loss")):
      continue
    path, prediction, weighting = key.removesuffix("_loss").split("_")
    config = common.loss_config(
      path=common.PATHS[path],
      prediction=prediction,
      weighting=weighting.lower(),
      cosine=prediction == "velocity",
    )
    x = paths.interpolate(config.path, x1, x0, t)
    with jax.default_matmul_precision("highest"):
      output, projected = network(x, t)
      loss, metrics = losses.flow_loss(
        config, network, x1, x0, t, jnp.asarray(golden["z"])
      )
    stem = key.removesuffix("_loss")
    found = {
      key: losses.squared_error(config, output, x1, x0, t),
      f"{stem}_proj_loss": losses.projection_loss(
        projected, jnp.asarray(golden["z"])
      ),
    }
    total = np.mean(golden[key]) + 0.5 * golden[f"{stem}_proj_loss"]
    if config.cosine:
      target = paths.velocity(config.path, x1, x0, t)
      found[f"{stem}_cos_loss"] = losses.cosine_loss(output, target)
      total += np.mean(golden[f"{stem}_cos_loss"])
    for name, value in found.items():
      errors[name] = common.relative_error(value, golden[name])
    errors[f"{stem} total"] = common.relative_error(loss, total)
    np.testing.assert_allclose(
      metrics[prediction], np.mean(golden[key]), rtol=TOLERANCE
    )
    total_key = f"train_total_{path}_{prediction}"
    if total_key in golden:
      errors[total_key] = common.relative_error(loss, golden[total_key])
  assert len(errors) > 10
  worst = max(errors, key=errors.get)
  assert errors[worst] < TOLERANCE, (worst, errors[worst])


@pytest.mark.golden
def test_published_scores_and_drifts(golden_dir):
  golden = common.load(golden_dir, "transport_losses.npz")
  network = _network(golden)
  x1, x0, t = _batch(golden)
  errors = {}
  for key, expected in golden.items():
    path, _, rest = key.partition("_")
    if not key.endswith(("_score_fn", "_drift_fn")):
      continue
    prediction, kind = rest.split("_", 1)
    path = common.PATHS[path]
    x = paths.interpolate(path, x1, x0, t)
    with jax.default_matmul_precision("highest"):
      output, _ = network(x, t)
    read = paths.to_score if kind == "score_fn" else paths.to_velocity
    actual = read(path, prediction, output, x, t)
    errors[key] = common.relative_error(actual, common.nhwc(expected))
  assert errors
  worst = max(errors, key=errors.get)
  assert errors[worst] < TOLERANCE, (worst, errors[worst])


@pytest.mark.golden
def test_cosine_of_short_vectors(golden_dir):
  golden = common.load(golden_dir, "transport_losses.npz")
  v, u = (
    jnp.asarray(common.nhwc(golden[key]))
    for key in ("cos_eps_pred", "cos_eps_ut")
  )
  actual = losses.cosine_loss(v, u)
  assert common.relative_error(actual, golden["cos_eps_out"]) < TOLERANCE


@pytest.mark.golden
def test_lognormal_time(golden_dir, monkeypatch):
  golden = common.load(golden_dir, "transport_losses.npz")
  normals = jnp.asarray(golden["lognorm_normals"], jnp.float32)
  monkeypatch.setattr(jax.random, "normal", lambda key, shape: normals)
  t = losses.sample_time(
    common.loss_config(), jax.random.key(0), normals.shape[0]
  )
  np.testing.assert_allclose(t, golden["lognorm_t"], rtol=1e-6)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score", "data"])
def test_times_stay_inside_the_interval(path, prediction):
  config = common.loss_config(
    path=path, prediction=prediction, cosine=False, time="uniform"
  )
  t = losses.sample_time(config, jax.random.key(1), 10_000)
  eps = paths.default_train_eps(path, prediction)
  t0, t1 = paths.interval(path, prediction, eps=eps)
  assert t.dtype == jnp.float32
  assert t0 <= jnp.min(t) < t0 + 0.01
  assert t1 - 0.01 < jnp.max(t) <= t1
  np.testing.assert_allclose(jnp.mean(t), (t0 + t1) / 2, atol=0.02)


def test_lognormal_times_prefer_the_middle():
  t = losses.sample_time(common.loss_config(), jax.random.key(2), 10_000)
  # The logistic function of a standard normal: 38 % lie in (0.38, 0.62).
  share = jnp.mean((t > 0.3775) & (t < 0.6225))
  np.testing.assert_allclose(share, 0.383, atol=0.02)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_weighted_error_of_the_data_is_that_of_the_velocity(path):
  x1, x0, output = jax.random.normal(jax.random.key(6), (3, 5, 4, 4, 2))
  t = jnp.linspace(0.05, 0.9, 5)
  config = common.loss_config(
    path=path, prediction="data", weighting="velocity", cosine=False
  )
  ours = losses.squared_error(config, output, x1, x0, t)
  x = paths.interpolate(path, x1, x0, t)
  v = paths.to_velocity(path, "data", output, x, t)
  velocity = common.loss_config(path=path, prediction="velocity")
  expected = losses.squared_error(velocity, v, x1, x0, t)
  np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_projection_is_minus_one_for_aligned_tokens():
  tokens = jax.random.normal(jax.random.key(3), (2, 5, 7))
  np.testing.assert_allclose(
    losses.projection_loss(3 * tokens, tokens), -1, rtol=1e-6
  )


def test_loss_is_float32_for_a_bfloat16_network():
  x1, x0 = jax.random.normal(jax.random.key(4), (2, 3, 4, 4, 2))
  config = common.loss_config(projection_weight=0.0)

  def network(x, t):
    return x.astype(jnp.bfloat16), None

  t = jnp.array([0.2, 0.5, 0.8])
  loss, metrics = losses.flow_loss(config, network, x1, x0, t)
  assert loss.dtype == jnp.float32
  assert set(metrics) == {"velocity", "cosine"}
  np.testing.assert_allclose(loss, sum(metrics.values()), rtol=1e-6)


def test_gradient_is_finite_for_a_network_that_outputs_zero():
  x1, x0 = jax.random.normal(jax.random.key(5), (2, 2, 4, 4, 2))
  t = jnp.array([0.3, 0.6])
  tokens = jnp.ones((2, 5, 7))

  def loss(scale):
    network = lambda x, t: (scale * x, scale * tokens)  # noqa: E731
    return losses.flow_loss(common.loss_config(), network, x1, x0, t, tokens)[0]

  assert jnp.isfinite(jax.grad(loss)(0.0))


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"weighting": "likelihood"}, r"config\.loss\.weighting='likelihood'"),
    (
      {"prediction": "data", "weighting": "likelihood", "cosine": False},
      r"weighting='likelihood': must be 'none' or 'velocity'",
    ),
    ({"prediction": "noise"}, r"config\.loss\.cosine=True"),
    ({"projection_weight": -1.0}, r"config\.loss\.projection_weight=-1\.0"),
    ({"projection_weight": float("nan")}, r"\.loss\.projection_weight=nan"),
    ({"train_eps": 0.5}, r"config\.loss\.train_eps=0\.5"),
    ({"train_eps": 0.0}, r"config\.loss\.train_eps=0\.0"),
  ],
)
def test_bad_settings_name_their_key(changes, key):
  with pytest.raises(ValueError, match=key):
    common.loss_config(**changes)


@pytest.mark.parametrize(
  ("projected", "tokens", "reason"),
  [(True, False, "encoder tokens"), (False, True, "projects no tokens")],
)
def test_projection_needs_both_sides(projected, tokens, reason):
  x = jnp.ones((1, 2, 2, 1))
  some = jnp.ones((1, 4, 3))
  with pytest.raises(ValueError, match=reason):
    losses.flow_loss(
      common.loss_config(),
      lambda x, t: (x, some if projected else None),
      x,
      x,
      jnp.array([0.5]),
      some if tokens else None,
    )
