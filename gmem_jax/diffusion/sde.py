"""The parts of the reverse SDE: drift, noise of a step, and last step.

  dx = (v + w score) dt + sqrt(2 w) dW

Source: SiT, sections 2.3 and 2.4, and its appendix on samplers.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gmem_jax.diffusion import guidance, ode, paths, schedule


def drift_field(
  config: schedule.SamplerConfig, network: guidance.Network
) -> ode.Field:
  """The drift v + w score of the SDE, from one network call."""
  path, prediction = config.path, config.prediction

  def field(x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    output = network(x, t).astype(x.dtype)
    v = paths.to_velocity(path, prediction, output, x, t)
    score = paths.to_score(path, prediction, output, x, t)
    w = paths.diffusion(path, config.diffusion_form, config.diffusion_norm, t)
    return v + paths.expand(w, score) * score

  return field


def kick(
  config: schedule.SamplerConfig,
  normal: Float[Array, "b ..."],
  t: Float[Array, ""],
  length: Float[Array, ""],
) -> Float[Array, "b ..."]:
  """The noise of a step, sqrt(2 w(t) length) times a standard normal draw."""
  t = jnp.broadcast_to(t, normal.shape[:1])
  w = paths.diffusion(
    config.path, config.diffusion_form, config.diffusion_norm, t
  )
  return paths.expand(jnp.sqrt(2 * w * length), normal) * normal


def last_step(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
  """Closes the SDE without noise, from the end of its grid.

  Args:
    config: names the step ("mean", "euler", "tweedie" or "none") and its size.
    network: maps (x, t) to the prediction; not called for "none".
    x: the state at the end of the grid.

  Returns:
    The result of the sampler.
  """
  if config.last_step == "none":
    return x
  path, prediction = config.path, config.prediction
  t = jnp.full(x.shape[:1], config.time_interval[1], x.dtype)
  if config.last_step == "mean":
    return x + config.last_step_size * drift_field(config, network)(x, t)
  output = network(x, t).astype(x.dtype)
  if config.last_step == "euler":
    v = paths.to_velocity(path, prediction, output, x, t)
    return x + config.last_step_size * v
  score = paths.to_score(path, prediction, output, x, t)
  at = paths.coefficients(path, t)
  x = x + paths.expand(at.sigma**2, score) * score
  return x / paths.expand(at.alpha, x)
