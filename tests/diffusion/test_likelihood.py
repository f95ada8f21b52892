"""Log-likelihoods against the closed form for correlated Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import guidance, likelihood
from tests.diffusion import common, gaussian

MEAN = np.array([0.5, -1.0, 0.2], np.float32)
COVARIANCE = np.array(
  [[0.8, 0.3, -0.1], [0.3, 0.4, 0.2], [-0.1, 0.2, 0.9]], np.float32
)


def _exact(x):
  centred = np.asarray(x).reshape(len(x), -1, 3) - MEAN
  inverse = np.linalg.inv(COVARIANCE)
  squares = np.einsum("bnc,cd,bnd->b", centred, inverse, centred)
  _, logdet = np.linalg.slogdet(2 * np.pi * COVARIANCE)
  return -(squares + centred.shape[1] * logdet) / 2


@pytest.mark.parametrize("method", ["ode_rk4", "ode_heun3", "ode_dopri5"])
@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_gaussian_is_exact_within_monte_carlo_error(path, method):
  config = common.sampler_config(
    path=path, method=method, steps=40, rtol=1e-4, step_control="image"
  )
  exact = gaussian.network(path, "velocity", MEAN, COVARIANCE)
  draws = 512
  data = jax.random.normal(jax.random.key(0), (2, 2, 3))
  x1 = jnp.repeat(data, draws, axis=0)
  probe = jax.random.rademacher(jax.random.key(1), x1.shape, x1.dtype)
  estimates, noise = jax.jit(
    lambda x, probe: likelihood.log_likelihood(config, exact, x, probe)
  )(x1, probe)
  estimates = np.asarray(estimates).reshape(2, draws)
  error = estimates.std(axis=1) / np.sqrt(draws)
  assert np.all(error > 0.005)  # The probes matter: J is not diagonal.
  assert np.all(np.abs(estimates.mean(axis=1) - _exact(data)) < 4 * error)
  np.testing.assert_allclose(noise[0], noise[draws - 1], atol=1e-2)


@pytest.mark.parametrize(
  "method", ["ode_rk4", pytest.param("ode_dopri5", marks=pytest.mark.slow)]
)
def test_diagonal_gaussian_needs_no_averaging(method):
  config = common.sampler_config(method=method, steps=60, rtol=1e-5)
  mean, covariance = np.zeros(3, np.float32), np.diag([0.5, 1.5, 0.25])
  covariance = covariance.astype(np.float32)
  exact = gaussian.network("linear", "velocity", mean, covariance)
  x1 = jax.random.normal(jax.random.key(2), (4, 2, 3)) * np.sqrt(0.5)
  actual, x0 = likelihood.log_likelihood(config, exact, x1, jnp.ones_like(x1))
  scale = np.sqrt(np.diag(covariance)).astype(np.float32).reshape(1, 1, 3)
  expected = likelihood.normal_log_density(x1 / scale)
  expected = expected - x1.shape[1] * np.log(scale).sum()
  np.testing.assert_allclose(actual, expected, rtol=1e-4)
  np.testing.assert_allclose(x0, x1 / scale, atol=1e-3)


def test_what_has_no_likelihood_is_refused():
  x = jnp.ones((1, 3))
  with pytest.raises(ValueError, match=r"config\.sampler\.method='sde_heun'"):
    likelihood.log_likelihood(common.sampler_config(), lambda x, t: x, x, x)
  guided = common.sampler_config(
    method="ode_euler",
    guidance=guidance.GuidanceConfig(
      scale=2.0, start=0.0, end=1.0, after_end="conditional"
    ),
  )
  with pytest.raises(
    ValueError, match=r"config\.sampler\.guidance\.scale=2\.0"
  ):
    likelihood.log_likelihood(guided, lambda x, t: x, x, x)
