"""A sampler that calls the network as often as the published one.

Written by us after its description, to count what the calls cost: the drift of
the SDE asks for the velocity and for the score in two calls of the network on
the same input; guidance doubles the batch of every call, whether it acts or
not, and integrates the second half too. Everything else is ours: one compiled
loop, the same noise, the same decoder, so that the images are the same.

Shapes: b images, z [2b …] the doubled state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.diffusion import paths, schedule

# (x [2b …], t [2b], snippet [2b d]) -> velocity [2b …].
Apply = Callable[[Any, Any, Any], Any]


def check(config: schedule.SamplerConfig) -> None:
  """Refuses samplers whose published calls are not written here.

  Raises:
    ValueError: Naming the key.
  """
  known = config.method == "ode_euler" or (
    config.method == "sde_heun" and config.last_step == "mean"
  )
  if not known or config.prediction != "velocity":
    raise ValueError(
      f"config.sampler.method={config.method!r}: the reference's calls are"
      " known for 'sde_heun' with last_step='mean', and for 'ode_euler', of"
      " velocity networks"
    )


def num_calls(config: schedule.SamplerConfig) -> int:
  """Forward passes for an image; a guided call is two."""
  calls = schedule.num_calls(config)
  assert calls is not None, "an adaptive sampler"
  per_drift = 2 if config.is_sde else 1
  return calls[0] * per_drift * (2 if config.guidance.on else 1)


def sample(
  config: schedule.SamplerConfig,
  apply: Apply,
  x0: jax.Array,
  noise_increments: Callable[[Any], jax.Array],
  snippet: jax.Array,
  zero: jax.Array,
) -> jax.Array:
  """Noise to data.

  Args:
    config: An SDE sampler with Heun's method and the last step "mean", or
      "ode_euler", of velocity networks; as published.
    apply: The network.
    x0: Noise [b …].
    noise_increments: Step -> standard normal [b …].
    snippet: [b d].
    zero: 0, which the compiler must not know: else it would see that two calls
      of the network are one.

  Returns:
    Data [b …], that of `samplers.sample` up to rounding.

  Raises:
    ValueError: For other samplers.
  """
  check(config)
  guided = config.guidance.on
  network = (
    _guided(config, apply, snippet) if guided else _plain(apply, snippet)
  )
  # The published code doubles the batch from the first step on, and integrates
  # both halves, though guidance acts on a part of the interval only.
  z = jnp.concatenate([x0, x0]) if guided else x0
  drift = _drift(config, network, zero)
  grid = schedule.grid(config)

  def noise(step):
    one = noise_increments(step)
    return jnp.concatenate([one, one]) if guided else one

  def body(z, step):
    index, now, after = step
    h = after - now
    if not config.is_sde:
      return z + h * drift(z, now), None
    w = _diffusion(config, z, now)
    z = z + jnp.sqrt(2 * w * h) * noise(index)
    first = drift(z, now)
    second = drift(z + h * first, after)
    return z + h * (first + second) / 2, None

  steps = jnp.arange(len(grid) - 1)
  times = [jnp.asarray(t, x0.dtype) for t in (grid[:-1], grid[1:])]
  z, _ = jax.lax.scan(body, z, (steps, *times))
  if config.is_sde:
    end = jnp.asarray(np.float32(grid[-1]), x0.dtype)
    z = z + config.last_step_size * drift(z, end)
  return z[: len(x0)]


def _plain(apply, snippet):
  return lambda z, t: apply(z, jnp.full(z.shape[:1], t), snippet)


def _guided(config, apply, snippet):
  """The network with guidance, as published: always of the doubled batch."""
  both = jnp.concatenate([snippet, jnp.zeros_like(snippet)])
  settings = config.guidance

  def network(z, t):
    half = z[: len(z) // 2]
    x = jnp.concatenate([half, half])
    conditional, unconditional = jnp.split(
      apply(x, jnp.full(z.shape[:1], t), both), 2
    )
    guided = unconditional + settings.scale * (conditional - unconditional)
    after = dict(conditional=conditional, unconditional=unconditional)
    late = after[settings.after_end]
    out = jnp.where(t <= np.float32(settings.end), guided, late)
    out = jnp.where(t < np.float32(settings.start), conditional, out)
    return jnp.concatenate([out, out])

  return network


def _drift(config, network, zero):
  """Drift of the ODE or SDE; of the SDE, from two calls on one input."""

  def drift(z, t):
    v = network(z, t)
    if not config.is_sde:
      return v
    # The same input as before, in a way that XLA cannot see: it would merge the
    # two calls, whose cost is the subject.
    output = network(z + zero * v, t)
    times = jnp.full(z.shape[:1], t)
    score = paths.to_score(config.path, config.prediction, output, z, times)
    return v + _diffusion(config, z, t) * score

  return drift


def _diffusion(config, z, t):
  w = paths.diffusion(
    config.path,
    config.diffusion_form,
    config.diffusion_norm,
    jnp.full(z.shape[:1], t),
  )
  return paths.expand(w, z)
