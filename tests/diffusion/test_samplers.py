"""Properties of the samplers, in closed form, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import samplers
from tests.diffusion import common, gaussian

FORMS = ("linear", "sigma", "constant", "decreasing", "increasing_decreasing")
MEAN = np.array([0.5, -1.0], np.float32)
COVARIANCE = np.array([[0.8, 0.3], [0.3, 0.4]], np.float32)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score", "data"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_ode_transports_noise_to_gaussian_data(path, prediction):
  config = common.sampler_config(
    path=path,
    prediction=prediction,
    method="ode_heun2",
    steps=100,
    sample_eps=1e-3,
  )
  _check_moments(config)


@pytest.mark.parametrize(
  ("method", "form", "last_step"),
  [
    *(("sde_euler", form, "mean") for form in FORMS),
    *(("sde_heun", form, "mean") for form in FORMS),
    ("sde_heun", "linear", "euler"),
    ("sde_heun", "linear", "tweedie"),
    ("sde_euler", "linear", "none"),
  ],
)
def test_sde_moments(method, form, last_step):
  config = common.sampler_config(
    method=method, diffusion_form=form, last_step=last_step, steps=100
  )
  _check_moments(config)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score", "data"])
@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_sde_moments_of_every_path(path, prediction):
  config = common.sampler_config(
    path=path,
    prediction=prediction,
    method="sde_heun",
    diffusion_form="sbdm" if path == "vp" else "linear",
    sample_eps=1e-2,
    steps=100,
  )
  _check_moments(config)


def _check_moments(config):
  """Mean and covariance of the samples against those of the data."""
  exact = gaussian.network(config.path, config.prediction, MEAN, COVARIANCE)
  start, *rest = jax.random.split(jax.random.key(0), config.steps)
  keys = jnp.stack(rest)
  shape = (2, 5000, 2)

  @jax.jit
  def sample(x0):
    return samplers.sample(
      config, exact, x0, lambda i: jax.random.normal(keys[i], shape)
    )

  x1 = np.asarray(sample(jax.random.normal(start, shape))).reshape(-1, 2)
  np.testing.assert_allclose(x1.mean(0), MEAN, atol=0.04)
  np.testing.assert_allclose(np.cov(x1.T), COVARIANCE, atol=0.04)


@pytest.mark.parametrize("method", ["ode_rk4", "ode_dopri5"])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_inversion_returns_what_sampling_gave(method, shift):
  config = common.sampler_config(
    method=method, steps=33, timestep_shift=shift, rtol=1e-5
  )
  network = common.mixing_network(
    np.array([[0.5, -0.2], [0.3, 0.9]], np.float32),
    np.array([0.1, -0.4], np.float32),
  )
  x0 = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
  x1 = samplers.sample(config, network, x0)
  assert common.relative_error(x1, x0) > 0.1
  np.testing.assert_allclose(
    samplers.invert(config, network, x1), x0, atol=1e-4
  )
  x0 = samplers.invert(config, network, x1)
  np.testing.assert_allclose(
    samplers.sample(config, network, x0), x1, atol=1e-4
  )


@pytest.mark.parametrize("method", ["sde_heun", "sde_euler", "ode_rk4"])
def test_trajectory_ends_with_the_sample(method):
  config = common.sampler_config(method=method, steps=5)
  x0 = jnp.ones((2, 3))
  noise = jax.random.normal(jax.random.key(2), (4, 2, 3))
  states = samplers.trajectory(config, lambda x, t: -x, x0, lambda i: noise[i])
  assert states.shape == (5, 2, 3)
  last = samplers.sample(config, lambda x, t: -x, x0, lambda i: noise[i])
  np.testing.assert_array_equal(states[-1], last)


@pytest.mark.parametrize("method", ["sde_heun", "ode_heun3"])
def test_fixed_steps_are_one_scan(method):
  config = common.sampler_config(method=method)
  x0 = jnp.ones((2, 3))
  traced = []

  def network(x, t):
    traced.append(t)
    return -x

  jaxpr = jax.make_jaxpr(
    lambda x: samplers.sample(config, network, x, lambda i: x)
  )(x0)
  scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
  assert [scan.params["length"] for scan in scans] == [config.steps - 1]
  assert len(traced) == {"sde_heun": 3, "ode_heun3": 3}[method]


def test_state_keeps_its_dtype_for_a_bfloat16_network():
  config = common.sampler_config(steps=4)
  x0 = jnp.ones((2, 3))
  network = lambda x, t: (-x).astype(jnp.bfloat16)  # noqa: E731
  assert samplers.sample(config, network, x0, lambda i: x0).dtype == x0.dtype


def test_singular_settings_are_accepted_with_an_epsilon():
  for method, form, last_step in itertools.product(
    ("sde_euler", "sde_heun"), ("sbdm", "linear"), ("none", "mean")
  ):
    config = common.sampler_config(
      method=method,
      diffusion_form=form,
      last_step=last_step,
      sample_eps=1e-2,
      steps=6,
    )
    exact = gaussian.network("linear", "velocity", MEAN, COVARIANCE)
    states = samplers.trajectory(
      config, exact, jnp.ones((1, 3, 2)), lambda i: jnp.zeros((1, 3, 2))
    )
    assert jnp.all(jnp.isfinite(states))


def test_an_sde_needs_noise_and_cannot_be_inverted():
  config = common.sampler_config()
  x = jnp.ones((1, 3))
  with pytest.raises(ValueError, match="needs noise"):
    samplers.sample(config, lambda x, t: x, x)
  with pytest.raises(ValueError, match=r"config\.sampler\.method='sde_heun'"):
    samplers.invert(config, lambda x, t: x, x)
