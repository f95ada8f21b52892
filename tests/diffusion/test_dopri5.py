"""Runge-Kutta methods: their order, and what the adaptive one promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import samplers
from tests.diffusion import common

ORDERS = {
  "ode_euler": 1,
  "ode_midpoint": 2,
  "ode_heun2": 2,
  "ode_heun2_euler": 2,
  "ode_heun3": 3,
  "ode_rk4": 4,
}


def _growth(x, t):
  return (jnp.exp(-t) + t**2).reshape(-1, 1) * x


# What x' = (exp(-t) + t^2) x makes of 1.
GROWN = np.exp(1 - np.exp(-1) + 1 / 3)


@pytest.mark.parametrize("method", ORDERS)
def test_order_of_convergence(method):
  with jax.enable_x64(True):
    x0 = jnp.ones((1, 1), jnp.float64)
    errors = []
    for intervals in (64, 128):
      config = common.sampler_config(method=method, steps=intervals + 1)
      x1 = samplers.sample(config, _growth, x0)
      errors.append(abs(float(x1[0, 0]) - GROWN))
  order = np.log2(errors[0] / errors[1])
  assert abs(order - ORDERS[method]) < 0.1, order


def test_dopri5_keeps_its_tolerance():
  with jax.enable_x64(True):
    for rtol in (1e-3, 1e-6, 1e-9):
      config = common.sampler_config(method="ode_dopri5", rtol=rtol, atol=rtol)
      x1 = samplers.sample(config, _growth, jnp.ones((1, 1), jnp.float64))
      assert abs(float(x1[0, 0]) - GROWN) < 10 * rtol


def test_dopri5_gives_up_on_a_field_that_is_not_finite():
  def network(x, t):
    return jnp.where((t > 0.5).reshape(-1, 1), jnp.nan, 1.0) * x

  config = common.sampler_config(method="ode_dopri5")
  assert jnp.all(jnp.isnan(samplers.sample(config, network, jnp.ones((2, 3)))))


@pytest.mark.parametrize("step_control", ["image", "batch"])
def test_dopri5_per_image_does_not_depend_on_the_batch(step_control):
  # The second sample needs much smaller steps than the first.
  rate = jnp.array([1.0, 60.0])

  def network(x, t):
    return jnp.sin(rate[: len(x)] * t).reshape(-1, 1) * x

  config = common.sampler_config(method="ode_dopri5", step_control=step_control)
  x0 = jnp.ones((2, 3))
  together = samplers.sample(config, network, x0)
  alone = samplers.sample(config, network, x0[:1])
  same = np.array_equal(together[:1], alone)
  assert same == (step_control == "image")
