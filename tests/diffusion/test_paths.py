"""Paths and conversions: published numbers, and the algebra between them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import paths
from tests.diffusion import common

PATHS = ("linear", "gvp", "vp")
TOLERANCE = 1e-4
SCALARS = ("alpha", "d_alpha", "sigma", "d_sigma")


def _coefficient(golden, path, name, t):
  at = paths.coefficients(path, t)
  if name in SCALARS:
    return getattr(at, name)
  if name == "d_alpha_alpha_ratio":
    return at.d_alpha / at.alpha
  if name == "drift_var":
    return paths.drift_variance(path, t)
  x, v, x0, x1 = (
    jnp.asarray(common.nhwc(golden[key])) for key in ("x", "v", "x0", "x1")
  )
  return {
    "drift_mean": lambda: paths.drift_mean(path, x, t),
    "score_from_velocity": lambda: paths.score_from_velocity(path, v, x, t),
    "velocity_from_score": lambda: paths.velocity_from_score(path, v, x, t),
    "xt": lambda: paths.interpolate(path, x1, x0, t),
    "ut": lambda: paths.velocity(path, x1, x0, t),
  }[name]()


@pytest.mark.golden
def test_published_numbers(golden_dir):
  golden = common.load(golden_dir, "transport_path.npz")
  t = jnp.asarray(golden["t"])
  errors = {}
  for key, expected in golden.items():
    name, _, quantity = key.partition("_")
    # We read a velocity as a score, never as noise.
    if name not in common.PATHS or quantity == "noise_from_velocity":
      continue
    if quantity.startswith("diffusion_"):
      form, _, norm = quantity.removeprefix("diffusion_").rpartition("_norm")
      actual = paths.diffusion(
        common.PATHS[name], common.FORMS[form], float(norm), t
      )
    else:
      actual = _coefficient(golden, common.PATHS[name], quantity, t)
    if expected.ndim > 1:
      expected = common.nhwc(expected)
    for time, value, reference in zip(
      golden["t"], actual, expected, strict=True
    ):
      largest = np.max(np.abs(reference))
      # At a singular end the published code has inf or NaN, or about 1e7
      # where float32 has 4e-8 for cos(pi/2).
      if not largest < 1e6:
        assert time in (0, 1), (key, time)
        continue
      error = np.max(np.abs(np.asarray(value) - reference))
      errors[key, float(time)] = error / max(largest, 1e-3)
      assert errors[key, float(time)] < _tolerance(name, time), (key, time)
  assert len(errors) > 100


def _tolerance(path, time):
  """Relative tolerance, looser where the published numbers have lost digits.

  Near the data of the variance-preserving path, sigma^2 = 1 - alpha^2 is small,
  and the published code takes that difference in float32.
  """
  if path != "VP":
    return TOLERANCE
  sigma = paths.coefficients("vp", jnp.array([time])).sigma[0]
  return TOLERANCE + float(jnp.finfo(jnp.float32).eps / sigma**2)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_those_of_the_coefficients(path):
  t = jnp.linspace(0.05, 0.95, 10)
  at = paths.coefficients(path, t)
  ones = jnp.ones_like(t)
  _, slopes = jax.jvp(lambda t: paths.coefficients(path, t), (t,), (ones,))
  np.testing.assert_allclose(at.d_alpha, slopes.alpha, rtol=1e-5)
  np.testing.assert_allclose(at.d_sigma, slopes.sigma, rtol=1e-4)
  np.testing.assert_allclose(
    at.sigma_d_sigma, at.sigma * slopes.sigma, rtol=1e-4
  )


@pytest.mark.parametrize("path", PATHS)
def test_a_path_joins_noise_to_data(path):
  at = paths.coefficients(path, jnp.array([0.0, 1.0]))
  # The variance-preserving path keeps exp(-5) of the data at t=0.
  np.testing.assert_allclose(at.alpha, [0, 1], atol=0.01)
  np.testing.assert_allclose(at.sigma, [1, 0], atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_predictions_determine_each_other(path):
  x1, x0 = jax.random.normal(jax.random.key(0), (2, 9, 4, 4, 3))
  t = jnp.linspace(0.1, 0.9, 9)
  x = paths.interpolate(path, x1, x0, t)
  v = paths.velocity(path, x1, x0, t)
  score = -x0 / paths.expand(paths.coefficients(path, t).sigma, x0)
  outputs = {"velocity": v, "noise": x0, "score": score, "data": x1}
  for prediction, output in outputs.items():
    np.testing.assert_allclose(
      paths.to_velocity(path, prediction, output, x, t), v, atol=2e-3
    )
    np.testing.assert_allclose(
      paths.to_score(path, prediction, output, x, t), score, atol=2e-3
    )


def test_a_data_network_is_singular_at_the_data_alone():
  assert paths.interval("linear", "data", eps=0.05) == (0.0, 0.95)
  sde = paths.interval("gvp", "data", eps=0.05, sde=True, last_step_size=0.04)
  assert sde == (0.0, 0.96)
  x1, x = jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 3))
  v = paths.to_velocity("linear", "data", x1, x, jnp.zeros(1))
  np.testing.assert_allclose(v, x1 - x, rtol=1e-6)


@pytest.mark.golden
def test_published_table(golden_dir):
  table = json.loads((golden_dir / "transport_check_interval.json").read_text())
  compared = repaired = 0
  for values in table["rows"]:
    row = dict(zip(table["columns"], values, strict=True))
    path = common.PATHS[row["path"]]
    eps = row["sample_eps"] if row["eval"] else row["train_eps"]
    undefined = eps is None
    if undefined:
      eps = paths.default_sample_eps(path, row["prediction"])
    t0, t1 = paths.interval(
      path,
      row["prediction"],
      eps=float(eps),
      sde=row["sde"],
      diffusion_form=common.FORMS[row["diffusion_form"]],
      last_step_size=row["last_step_size"],
    )
    expected = row["result"]
    if isinstance(expected, list) and None not in expected:
      if row["reverse"]:
        t0, t1 = 1 - t0, 1 - t1
      assert (t0, t1) == pytest.approx(tuple(expected), abs=1e-12), row
      compared += 1
    else:
      # The published code forgot to give this epsilon a value.
      assert undefined, row
      assert (t0, t1) != (0, 1)
      assert 0 <= t0 < t1 < 1, row
      repaired += 1
  assert compared
  assert repaired


@pytest.mark.golden
def test_default_epsilons(golden_dir):
  table = json.loads((golden_dir / "transport_check_interval.json").read_text())
  rows = [
    dict(zip(table["columns"], row, strict=True)) for row in table["rows"]
  ]
  unset = [row for row in rows if row["arg_train_eps"] is None]
  assert unset
  for row in unset:
    path = common.PATHS[row["path"]]
    assert row["train_eps"] == paths.default_train_eps(path, row["prediction"])


def test_a_given_epsilon_counts():
  # The published code replaces it by 0 here.
  assert paths.interval(
    "linear", "velocity", eps=0.01, sde=True, diffusion_form="sbdm"
  ) == (0.01, 0.99)


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"steps": 1}, r"config\.sampler\.steps=1:"),
    ({"timestep_shift": -0.3}, r"config\.sampler\.timestep_shift=-0\.3:"),
    ({"sample_eps": 0.0}, r"config\.sampler\.sample_eps=0\.0:"),
    ({"sample_eps": 0.7}, r"config\.sampler\.sample_eps=0\.7:"),
    ({"rtol": -1.0}, r"config\.sampler\.rtol=-1\.0:"),
    ({"rtol": 0.0, "atol": 0.0}, r"config\.sampler\.atol=0\.0,"),
    ({"diffusion_norm": -1.0}, r"config\.sampler\.diffusion_norm=-1\.0:"),
    ({"last_step_size": 0.0}, r"config\.sampler\.last_step_size=0\.0:"),
    ({"last_step_size": 1.0}, r"config\.sampler\.last_step_size=1\.0:"),
    ({"diffusion_form": "sbdm"}, r"set config\.sampler\.sample_eps > 0"),
    ({"last_step": "none"}, r"config\.sampler\.last_step='none':"),
    (
      {"prediction": "noise", "sample_eps": 0.4, "last_step_size": 0.8},
      r"config\.sampler\.last_step_size=0\.8:",
    ),
  ],
)
def test_bad_settings_name_their_key(changes, key):
  with pytest.raises(ValueError, match=key):
    common.sampler_config(**changes)
