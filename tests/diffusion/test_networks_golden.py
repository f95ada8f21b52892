"""Published samplers through the published networks."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.diffusion import guidance, samplers, schedule
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.sample import draw_rows
from tests.diffusion import common
from tests.models import networks

pytestmark = pytest.mark.golden

# Of the maximum; reached: 7e-7.
TOLERANCE = 1e-4
# Settings of the published configurations.
SCALE, START = 7.75, 0.89


def _guidance(on, **changes):
  settings = {
    "scale": SCALE if on else 1.0,
    "start": START,
    "end": 1.0,
    "after_end": "unconditional",
  }
  return guidance.GuidanceConfig(**settings | changes)


def _bound(golden, c):
  """The network, and the pair with the zero condition, bound to snippets."""

  def apply(x, t, c):
    return golden.network.apply({"params": golden.params}, x, t, c)

  return (
    lambda x, t: apply(x, t, c),
    functools.partial(
      guidance.pair, apply, condition=c, null=jnp.zeros_like(c)
    ),
  )


def test_single_guided_evaluations(golden_dir):
  compared = 0
  for name in networks.WEIGHTS:
    golden = networks.load(golden_dir, name)
    if "cfg_runs" not in golden.data:
      continue
    # The published function gets each sample twice and uses the first half.
    n = len(golden.data["cfg_x"]) // 2
    x = jnp.asarray(common.nhwc(golden.data["cfg_x"][:n]))
    network, pair = _bound(golden, jnp.asarray(golden.data["cfg_c"][:n]))
    with jax.default_matmul_precision("highest"):
      network, pair = jax.jit(network), jax.jit(pair)
      for run, settings in json.loads(str(golden.data["cfg_runs"])).items():
        config = _guidance(
          on=True,
          scale=settings["cfg_scale"],
          start=settings["start"] if settings["interval"] else 0.0,
          end=settings["end"] or 1.0,
        )
        branch = guidance.branch_at(config, settings["t"])
        chosen = guidance.select(config, branch, network, pair)
        output = chosen(x, jnp.full(n, settings["t"]))
        expected = common.nhwc(golden.data[f"cfg_out_{run}"])[:n]
        error = common.relative_error(output, expected)
        assert error < TOLERANCE, (name, run, error)
        compared += 1
  assert compared


def test_lightning_dit_runs(golden_dir):
  golden = networks.load(golden_dir, "lightningdit_a")
  runs = common.load(golden_dir, "samplers_lightningdit.npz")
  settings = json.loads(str(runs["sde_conf"]))
  published = json.loads(str(runs["nfe"]))
  x0 = jnp.asarray(common.nhwc(runs["z"]))
  network, pair = _bound(golden, jnp.asarray(runs["c"]))
  errors = {}
  for key in runs:
    if not key.endswith("_out"):
      continue
    run = key.removesuffix("_out")
    name, guided = run.rsplit("_", 1)
    config_guidance = _guidance(guided == "cfg")
    if name.startswith("sde"):
      config = common.sampler_config(
        method=f"sde_{settings['sampling_method'].lower()}",
        steps=int(name.removeprefix("sde")),
        diffusion_form=common.FORMS[settings["diffusion_form"]],
        diffusion_norm=float(settings["diffusion_norm"]),
        last_step=settings["last_step"].lower(),
        last_step_size=settings["last_step_size"],
        guidance=config_guidance,
      )
      noise = jnp.asarray(common.nhwc(runs[f"{run}_noise"]))
      draw = noise.__getitem__
      calls = published[run]
      half = calls["calls_with_guidance"] // 2
      assert schedule.num_calls(config) == (calls["distinct_inputs"], half)
    else:
      method, shift, steps = re.fullmatch(
        r"ode_(\w+)_shift([\d.]+)_(\d+)", name
      ).groups()
      config = common.sampler_config(
        method=f"ode_{method}",
        steps=int(steps),
        timestep_shift=float(shift),
        guidance=config_guidance,
      )
      draw = None
      if method != "dopri5":
        calls, _ = schedule.num_calls(config)
        assert calls == published[run]["model_calls"]
    with jax.default_matmul_precision("highest"):
      run_sampler = functools.partial(
        samplers.trajectory, config, network, noise=draw, pair=pair
      )
      states = jax.jit(run_sampler)(x0)
    error = common.relative_error(states[-1], common.nhwc(runs[key]))
    if f"{run}_traj" in runs:
      expected = common.nhwc(runs[f"{run}_traj"])
      error = max(error, common.relative_error(states, expected))
    adaptive = config.method == "ode_dopri5"
    assert error < (3 * config.rtol if adaptive else TOLERANCE), (run, error)
    errors[run] = error
  assert len(errors) > 3


# As `samplers.turn_time` says: the method, the path, and how many points the
# grid has more than the release counts.
SIT_RUNS = {
  "euler": ("ode_euler", "linear", 1),
  "heun": ("ode_heun2_euler", "linear", 1),
  "em_linear": ("sde_euler", "linear", 0),
  "em_cosine": ("sde_euler", "gvp", 0),
}


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("run", SIT_RUNS)
def test_sit_release_runs(golden_dir, run, x64):
  golden = networks.load(golden_dir, "sit_tiny")
  data = golden.data
  method, path, more = SIT_RUNS[run]
  config = common.sampler_config(
    method=method,
    path=path,
    steps=int(data["sampler_num_steps"]) + more,
    diffusion_form="linear",
    last_step="mean",
    last_step_size=0.04,
  )
  times, nfe = [], json.loads(str(data["nfe"]))
  condition = jnp.asarray(data["sampler_cond"])

  def network(x, t):
    jax.debug.callback(lambda t: times.append(t), t[0], ordered=True)
    return golden.network.apply({"params": golden.params}, x, t, condition)

  with jax.enable_x64(x64), jax.default_matmul_precision("highest"):
    dtype = jnp.float64 if x64 else jnp.float32
    x0 = jnp.asarray(common.nhwc(data["sampler_latents"]), dtype)
    noise = jnp.asarray(common.nhwc(data["em_noise"]), dtype)
    turned = samplers.turn_time(network)
    draw = noise.__getitem__
    x1 = jax.jit(lambda x: samplers.sample(config, turned, x, draw))(x0)
    jax.effects_barrier()
  assert x1.dtype == dtype
  error = common.relative_error(x1, common.nhwc(data[f"{run}_out"]))
  assert error < TOLERANCE
  assert schedule.num_calls(config) == (nfe[run], 0)
  np.testing.assert_allclose(times, data[f"{run}_model_t"], atol=1e-6)


def test_sit_release_chooses_snippets_from_noise(golden_dir):
  golden = networks.load(golden_dir, "sit_tiny")
  file = torch_file.load(golden_dir / "sit_tiny.pth")
  noise = jnp.asarray(common.nhwc(golden.data["sampler_latents"]))
  rows = draw_rows.select_row(noise, np.asarray(file["memoryfreq"]))
  np.testing.assert_array_equal(rows, golden.data["sampler_idx"])
  bank = np.asarray(file["memorybank"])[np.asarray(rows)]
  snippets = bank / np.linalg.norm(bank, axis=1, keepdims=True)
  np.testing.assert_allclose(snippets, golden.data["sampler_cond"], atol=1e-6)
