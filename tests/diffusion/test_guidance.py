"""Guidance in an interval: what is computed, how often, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import guidance, samplers, schedule
from tests.diffusion import common

SHAPE = (3, 4, 4, 2)


def _guidance(**changes):
  settings = {
    "scale": 7.75,
    "start": 0.89,
    "end": 1.0,
    "after_end": "conditional",
  }
  return guidance.GuidanceConfig(**settings | changes)


def _network(x, t, c):
  t, c = (v.reshape(-1, 1, 1, 1) for v in (t, c))
  return jnp.tanh(x * (1 + t)) + c * (x + t) - x / 2


def _bound(calls=None):
  """The network with condition 0.3, and the pair with null condition 0."""

  def network(x, t, c):
    if calls is not None:
      jax.debug.callback(lambda n: calls.append(int(n)), x.shape[0])
    return _network(x, t, c)

  condition, null = jnp.full(SHAPE[:1], 0.3), jnp.zeros(SHAPE[:1])
  return (
    lambda x, t: network(x, t, condition),
    functools.partial(guidance.pair, network, condition=condition, null=null),
  )


def _at_run_time(config):
  """The reference: both branches at every call, chosen by a comparison."""
  _, pair = _bound()

  def evaluate(x, t):
    conditional, unconditional = pair(x, t)
    guided = unconditional + config.scale * (conditional - unconditional)
    column = t.reshape(-1, 1, 1, 1).astype(jnp.float32)
    late = conditional if config.after_end == "conditional" else unconditional
    output = jnp.where(column > np.float32(config.end), late, guided)
    return jnp.where(column < np.float32(config.start), conditional, output)

  return evaluate


def _inputs(steps):
  x0, *noise = jax.random.normal(jax.random.key(0), (steps, *SHAPE))
  return x0, jnp.stack(noise)


@pytest.mark.parametrize("method", ["sde_euler", "sde_heun", "ode_rk4"])
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"start": 0.0},
    {"start": 1.0},
    {"start": 0.3, "end": 0.6},
    {"start": 0.3, "end": 0.6, "after_end": "unconditional"},
    {"start": 0.0, "end": 0.0, "after_end": "unconditional"},
    {"scale": 0.0, "start": 0.5},
  ],
)
def test_static_branches_equal_comparisons_at_run_time(method, changes):
  interval = _guidance(**changes)
  config = common.sampler_config(method=method, steps=11, guidance=interval)
  unguided = common.sampler_config(method=method, steps=11)
  network, pair = _bound()
  x0, noise = _inputs(11)
  actual = samplers.sample(config, network, x0, lambda i: noise[i], pair)
  expected = samplers.sample(
    unguided, _at_run_time(interval), x0, lambda i: noise[i]
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("after_end", ["conditional", "unconditional"])
@pytest.mark.parametrize("step_control", ["image", "batch"])
@pytest.mark.parametrize("reverse", [False, True])
def test_adaptive_steps_stop_where_guidance_does(
  after_end, step_control, reverse
):
  # x' = c x: rate 1 with the condition and 0 without, so 3 if guided by 3. The
  # solver would take this in one step.
  settings = _guidance(scale=3.0, start=0.4, end=0.6, after_end=after_end)
  config = common.sampler_config(
    method="ode_dopri5", step_control=step_control, guidance=settings, rtol=1e-6
  )
  solve = samplers.invert if reverse else samplers.sample
  x = jnp.ones((2, 3))
  actual = solve(config, lambda x, t: x, x, pair=lambda x, t: (x, 0 * x))
  rate = 0.4 + 0.6 + (0.4 if after_end == "conditional" else 0.0)
  np.testing.assert_allclose(actual, np.exp(-rate if reverse else rate), 1e-4)


@pytest.mark.parametrize("steps", [5, 6])  # 0.5 is on the grid, or between.
def test_adaptive_trajectory_stays_on_the_grid(steps):
  config = common.sampler_config(
    method="ode_dopri5", steps=steps, guidance=_guidance(scale=3.0, start=0.5)
  )
  states = samplers.trajectory(
    config, lambda x, t: x, jnp.ones((1, 1)), pair=lambda x, t: (x, 0 * x)
  )
  t = np.linspace(0, 1, steps)
  exact = np.exp(np.minimum(t, 0.5) + 3 * np.maximum(t - 0.5, 0))
  np.testing.assert_allclose(states[:, 0, 0], exact, rtol=1e-3)


def _count(config):
  """Runs a sampler; returns (evaluations, of which in doubled batches)."""
  calls = []
  network, pair = _bound(calls)
  x0, noise = _inputs(config.steps)
  x1 = samplers.sample(config, network, x0, lambda i: noise[i], pair)
  jax.block_until_ready(x1)
  jax.effects_barrier()
  doubled = sum(n == 2 * SHAPE[0] for n in calls)
  assert doubled + sum(n == SHAPE[0] for n in calls) == len(calls)
  return len(calls), doubled


def test_published_sampler_costs_99_calls_and_111_with_guidance():
  assert _count(common.sampler_config()) == (99, 0)
  config = common.sampler_config(guidance=_guidance())
  assert _count(config) == (99, 12)
  assert schedule.num_calls(common.sampler_config()) == (99, 0)
  assert schedule.num_calls(config) == (99, 12)
  assert sum(schedule.num_calls(config)) == 111


@pytest.mark.parametrize(
  "method",
  [
    "sde_euler",
    "sde_heun",
    "ode_euler",
    "ode_midpoint",
    "ode_heun2",
    "ode_heun2_euler",
    "ode_heun3",
    "ode_rk4",
  ],
)
@pytest.mark.parametrize("last_step", ["mean", "none"])
def test_counted_calls_are_those_announced(method, last_step):
  config = common.sampler_config(
    method=method,
    steps=9,
    last_step=last_step,
    sample_eps=1e-2,
    guidance=_guidance(start=0.3, end=0.7, after_end="unconditional"),
  )
  assert _count(config) == schedule.num_calls(config)


def test_adaptive_calls_are_not_announced():
  assert schedule.num_calls(common.sampler_config(method="ode_dopri5")) is None


def test_adaptive_steps_double_the_batch_only_inside():
  config = common.sampler_config(
    method="ode_dopri5", guidance=_guidance(scale=1.5, start=0.9)
  )
  total, doubled = _count(config)
  assert 0 < doubled < total


def test_interval_is_compared_in_float32():
  interval = _guidance(start=0.89, end=0.9)
  below = np.nextafter(np.float32(0.89), np.float32(0))
  assert guidance.branch_at(interval, 0.89) is guidance.Branch.GUIDED
  assert guidance.branch_at(interval, 0.89 - 1e-9) is guidance.Branch.GUIDED
  assert guidance.branch_at(interval, 0.9 + 1e-9) is guidance.Branch.GUIDED
  assert (
    guidance.branch_at(interval, float(below)) is guidance.Branch.CONDITIONAL
  )


def test_pair_keeps_a_sample_with_its_conditions():
  x = jnp.arange(3.0).reshape(3, 1)
  condition = {"snippet": jnp.array([1.0, 2.0, 3.0])}
  null = {"snippet": jnp.zeros(3)}

  def network(x, t, c):
    return x + 10 * c["snippet"].reshape(-1, 1) + 100 * t.reshape(-1, 1)

  t = jnp.array([1.0, 2.0, 3.0])
  conditional, unconditional = guidance.pair(network, x, t, condition, null)
  np.testing.assert_array_equal(conditional[:, 0], [110, 221, 332])
  np.testing.assert_array_equal(unconditional[:, 0], [100, 201, 302])


def test_guidance_needs_the_pair():
  config = common.sampler_config(guidance=_guidance())
  network, _ = _bound()
  x0, noise = _inputs(config.steps)
  with pytest.raises(
    ValueError, match=r"config\.sampler\.guidance\.scale=7\.75"
  ):
    samplers.sample(config, network, x0, lambda i: noise[i])


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"scale": -1.0}, r"config\.sampler\.guidance\.scale=-1\.0"),
    ({"scale": float("inf")}, r"config\.sampler\.guidance\.scale=inf"),
    ({"start": 0.9, "end": 0.5}, r"config\.sampler\.guidance\.start=0\.9"),
    ({"start": -0.1}, r"config\.sampler\.guidance\.start=-0\.1"),
    ({"end": 1.5}, r"config\.sampler\.guidance\.end=1\.5"),
  ],
)
def test_bad_settings_name_their_key(changes, key):
  with pytest.raises(ValueError, match=key):
    _guidance(**changes)
