"""What the tests of the flow share: complete configs and golden networks."""

import pathlib

import jax.numpy as jnp
import numpy as np

from gmem_jax.diffusion import guidance, losses, schedule

PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
FORMS = {
  "linear": "linear",
  "sigma": "sigma",
  "SBDM": "sbdm",
  "constant": "constant",
  "decreasing": "decreasing",
  "inccreasing-decreasing": "increasing_decreasing",
}
UNGUIDED = guidance.GuidanceConfig(
  scale=1.0, start=0.0, end=1.0, after_end="conditional"
)


def sampler_config(**changes) -> schedule.SamplerConfig:
  """The published SDE sampler, with changes."""
  settings = {
    "path": "linear",
    "prediction": "velocity",
    "method": "sde_heun",
    "steps": 50,
    "diffusion_form": "linear",
    "diffusion_norm": 1.0,
    "last_step": "mean",
    "last_step_size": 0.004,
    "timestep_shift": 0.0,
    "sample_eps": None,
    "step_control": "batch",
    "atol": 1e-6,
    "rtol": 1e-3,
    "guidance": UNGUIDED,
  }
  return schedule.SamplerConfig(**settings | changes)


def loss_config(**changes) -> losses.LossConfig:
  """The published loss, with changes."""
  settings = {
    "path": "linear",
    "prediction": "velocity",
    "weighting": "none",
    "time": "lognormal",
    "cosine": True,
    "projection_weight": 0.5,
    "train_eps": None,
  }
  return losses.LossConfig(**settings | changes)


def load(directory: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """All arrays of a golden file."""
  with np.load(directory / name, allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


def nhwc(array: np.ndarray) -> np.ndarray:
  """Moves the channels of [..., c, h, w] last."""
  return np.ascontiguousarray(np.moveaxis(array, -3, -1))


def relative_error(actual, expected) -> float:
  """Largest error, relative to the largest magnitude expected."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def mixing_network(w: np.ndarray, b: np.ndarray):
  """The analytic network of the sampler goldens, channels last."""
  w, b = jnp.asarray(w), jnp.asarray(b)

  def network(x, t):
    t = t.reshape((-1, 1, 1, 1)).astype(x.dtype)
    mixed = jnp.einsum("oc,bhwc->bhwo", w.astype(x.dtype), x)
    bias = b.astype(x.dtype).reshape(1, 1, 1, -1)
    return jnp.tanh(mixed) * (1 + t) + t * bias - x / 2

  return network
