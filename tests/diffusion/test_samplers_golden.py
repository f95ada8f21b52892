"""Samplers against trajectories of the published code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import likelihood, samplers, schedule
from tests.diffusion import common

pytestmark = pytest.mark.golden

# Of the maximum; reached: 2e-6.
TOLERANCE = 1e-4
# Solvers of torchdiffeq which are not offered here.
OTHER_SOLVERS = {"bosh3", "adaptive_heun", "dopri8", "explicit_adams"}


def _state(golden):
  network = common.mixing_network(golden["W"], golden["b"])
  return network, jnp.asarray(common.nhwc(golden["init"]))


def _sde_runs(golden):
  for key in golden:
    if "|" in key and not key.endswith("__nfe"):
      yield key


def _sde_config(golden, key):
  """The settings of a run, which its key tells and the file's readme."""
  readme = str(golden["readme"])
  size, norm, eps_norm, eps = (
    float(re.search(pattern + r" ?=? ?([\d.e-]+\d)", readme)[1])
    for pattern in (
      "last_step_size",
      "diffusion_norm",
      r"diffusion_norm [\d.]+, but",
      "sample_eps",
    )
  )
  model, method, form, last_step = key.split("|")
  *variant, path, prediction = model.split("_")
  with_eps = variant == ["eps01"]
  other_norm = with_eps and prediction != "velocity"
  return common.sampler_config(
    path=common.PATHS[path],
    prediction=prediction,
    method=f"sde_{method.lower()}",
    steps=int(golden["num_steps"]),
    diffusion_form=common.FORMS[form],
    diffusion_norm=eps_norm if other_norm else norm,
    last_step=last_step.lower(),
    last_step_size=size,
    sample_eps=eps if with_eps else None,
  )


def test_sde_trajectories(golden_dir):
  golden = common.load(golden_dir, "samplers_sde.npz")
  network, x0 = _state(golden)
  noise = jnp.asarray(common.nhwc(golden["noise"]))
  errors, sampled = {}, set()
  for key in _sde_runs(golden):
    config = _sde_config(golden, key)
    with jax.default_matmul_precision("highest"):
      states = samplers.trajectory(config, network, x0, lambda i: noise[i])
    expected = common.nhwc(golden[key])
    errors[key] = max(
      common.relative_error(states[i], expected[i])
      for i in range(len(expected))
    )
    if config.method not in sampled:
      sampled.add(config.method)
      last = samplers.sample(config, network, x0, lambda i: noise[i])
      np.testing.assert_array_equal(last, states[-1], err_msg=key)
  assert sampled == {"sde_euler", "sde_heun"}
  assert len(errors) > 10
  worst = max(errors, key=errors.get)
  assert errors[worst] < TOLERANCE, (worst, errors[worst])


def test_sde_calls_are_at_most_half_of_the_published_ones(golden_dir):
  golden = common.load(golden_dir, "samplers_sde.npz")
  runs = list(_sde_runs(golden))
  assert runs
  for key in runs:
    config = _sde_config(golden, key)
    calls, unconditional = schedule.num_calls(config)
    drifts = 2 if config.method == "sde_heun" else 1
    closing = {"mean": 2, "euler": 1, "tweedie": 1, "none": 0}
    published = 2 * drifts * (config.steps - 1) + closing[config.last_step]
    assert int(golden[f"{key}__nfe"]) == published, key
    assert unconditional == 0
    assert calls == drifts * (config.steps - 1) + (config.last_step != "none")


def test_sde_grid(golden_dir):
  golden = common.load(golden_dir, "samplers_sde.npz")
  expected = golden["time_grid_linear_heun"]
  config = common.sampler_config(
    steps=len(expected), last_step_size=1 - float(expected[-1])
  )
  np.testing.assert_allclose(schedule.grid(config), expected, atol=1e-7)


def _ode_config(method, steps, **changes):
  return common.sampler_config(method=f"ode_{method}", steps=steps, **changes)


def test_ode_grids(golden_dir):
  golden = common.load(golden_dir, "samplers_ode.npz")
  keys = [key for key in golden if key.startswith("grid|")]
  assert keys
  for key in keys:
    _, shift, steps = key.split("|")
    config = _ode_config(
      "euler",
      int(steps.removeprefix("n")),
      timestep_shift=float(shift.removeprefix("shift")),
    )
    np.testing.assert_allclose(schedule.grid(config), golden[key], atol=1e-6)


def test_fixed_step_ode_trajectories(golden_dir):
  golden = common.load(golden_dir, "samplers_ode.npz")
  network, x0 = _state(golden)
  steps = int(golden["num_steps"])
  errors = {}
  for key in golden:
    if key.startswith("eps01_"):
      model, method = key.split("|")
      _, path, prediction = model.split("_")
      config = _ode_config(
        method,
        steps,
        path=common.PATHS[path],
        prediction=prediction,
        sample_eps=1e-2,
      )
    elif "|shift" in key and "__" not in key and not key.startswith("grid"):
      method, shift = key.split("|shift")
      if method == "dopri5" or method in OTHER_SOLVERS:
        continue
      config = _ode_config(method, steps, timestep_shift=float(shift))
      assert schedule.num_calls(config) == (int(golden[f"{key}__nfe"]), 0)
    else:
      continue
    with jax.default_matmul_precision("highest"):
      states = samplers.trajectory(config, network, x0)
    errors[key] = common.relative_error(states, common.nhwc(golden[key]))
  assert len(errors) > 5
  worst = max(errors, key=errors.get)
  assert errors[worst] < TOLERANCE, (worst, errors[worst])


@pytest.mark.parametrize("step_control", ["batch", "image"])
def test_dopri5(golden_dir, step_control):
  golden = common.load(golden_dir, "samplers_ode.npz")
  network, x0 = _state(golden)
  keys = [
    key for key in golden if key.startswith("dopri5|") and "__" not in key
  ]
  assert keys
  exact = common.nhwc(golden["exact"])
  for key in keys:
    config = _ode_config(
      "dopri5",
      int(golden["num_steps"]),
      timestep_shift=float(key.split("shift")[1]),
      step_control=step_control,
    )
    with jax.default_matmul_precision("highest"):
      states = samplers.trajectory(config, network, x0)
      last = samplers.sample(config, network, x0)
    published = common.relative_error(common.nhwc(golden[key])[-1], exact)
    for end in (states[-1], last):
      assert common.relative_error(end, exact) < max(1e-3, 2 * published)
    error = common.relative_error(states, common.nhwc(golden[key]))
    assert error < max(2e-3, 3 * published)


def test_dopri5_takes_the_published_steps(golden_dir):
  golden = common.load(golden_dir, "samplers_ode.npz")
  network, x0 = _state(golden)
  keys = [key for key in golden if key.endswith("__call_t")]
  assert keys
  for key in keys:
    times = []

    def counted(x, t, times=times):
      jax.debug.callback(lambda t: times.append(t), t[0], ordered=True)
      return network(x, t)

    config = _ode_config("dopri5", int(golden["num_steps"]))
    jax.block_until_ready(samplers.sample(config, counted, x0))
    jax.effects_barrier()
    # Two calls choose the first step, six make a step. The published solver
    # oversteps the end in its last step and interpolates.
    published = golden[key]
    within = 2 + (np.argmax(published > 1) - 2) // 6 * 6
    assert within > 2
    assert len(times) <= len(published)
    assert max(times) <= 1
    # A step follows from the estimated error, a difference that cancels: how
    # the network is compiled shows in its third figure.
    np.testing.assert_allclose(
      np.stack(times)[:within], published[:within], rtol=1e-2
    )


def test_log_likelihood(golden_dir):
  golden = common.load(golden_dir, "samplers_ode.npz")
  network, data = _state(golden)
  methods = {
    key.split("|")[1] for key in golden if key.startswith("likelihood|")
  }
  fixed = methods - {"dopri5"}
  assert fixed
  for method in sorted(fixed):
    probes = jnp.asarray(common.nhwc(golden[f"likelihood|{method}|eps"]))
    config = _ode_config(method, int(golden["num_steps"]))
    with jax.default_matmul_precision("highest"):
      x0, change = likelihood.integrate(
        config, network, data, lambda i, probes=probes: probes[i]
      )
      actual = likelihood.normal_log_density(x0) + change
    error = common.relative_error(actual, golden[f"likelihood|{method}|logp"])
    assert error < TOLERANCE, (method, error)
    end = common.nhwc(golden[f"likelihood|{method}|x"])
    assert common.relative_error(x0, end) < TOLERANCE, method
