"""Log-likelihood of data under the probability-flow ODE.

Along dx = v(x, t) dt the density changes by d log p = -div v dt, so

  log p(x1) = log N(x0; 0, I) - integral_0^1 div v(x_t, t) dt,

with x0 the noise that x1 is integrated back to. The divergence is estimated
without bias by e^T (dv/dx) e for random signs e (Hutchinson). One draw serves
a whole trajectory: the estimate is then a smooth function of time, which an
adaptive solver can follow. (The published code draws anew in every call, and
its step control follows that noise through a hundred times as many calls.)

Source: Grathwohl et al., "FFJORD" (arXiv 1810.01367), section 3.1; Song et al.,
"Score-based generative modeling through stochastic differential equations",
appendix D.2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gmem_jax.diffusion import dopri5, guidance, samplers, schedule


def normal_log_density(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
  """Log density of N(0, I) at each sample, in nats, summed in float32."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squares = jnp.sum(x**2, axis=tuple(range(1, x.ndim)))
  return -(squares + x[0].size * math.log(2 * math.pi)) / 2


def log_likelihood(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x1: Float[Array, "b ..."],
  probe: Float[Array, "b ..."],
) -> tuple[Float[Array, " b"], Float[Array, "b ..."]]:
  """Estimates the log-likelihood of data.

  Args:
    config: A sampler with an ODE method and without guidance.
    network: Maps (x, t) to the prediction; differentiable in x, and
      independent from sample to sample.
    x1: Data.
    probe: Random signs (`jax.random.rademacher`), one draw per sample. The
      estimate is unbiased; average over draws to sharpen it.

  Returns:
    Nats per sample, and the noise to which the data were integrated.

  Raises:
    ValueError: The method is an SDE, or guidance is on.
  """
  # `network` alone is integrated: guidance would silently be ignored, and the
  # result the likelihood of another flow than the one sampled.
  if config.is_sde or config.guidance.on:
    raise ValueError(
      f"config.sampler.method={config.method!r},"
      f" config.sampler.guidance.scale={config.guidance.scale}: a likelihood"
      " needs one of the ode_* methods and a scale of 1"
    )
  change = jnp.zeros(x1.shape[:1], x1.dtype)
  if config.method == "ode_dopri5":
    states, _ = dopri5.solve(
      lambda y, t: _derivative(config, network, y, t, probe),
      (x1, change),
      schedule.grid(config)[[-1, 0]],
      atol=config.atol,
      rtol=config.rtol,
      shared=config.step_control == "batch",
    )
    x0, change = jax.tree.map(lambda state: state[-1], states)
  else:
    x0, change = integrate(config, network, x1, lambda _: probe)
  return normal_log_density(x0) + change, x0


def integrate(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x1: Float[Array, "b ..."],
  probe: Callable[[Int[Array, ""]], Float[Array, "b ..."]],
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
  """Integrates data to noise by fixed steps, and the divergence with it.

  `probe` maps the index of a network call to its random signs.

  Returns:
    The noise, and minus the integral of the divergence from noise to data.
  """

  def advance(tableau, branches, y, step):
    index, times, length = step
    first = index * len(branches)
    fields = [
      lambda y, t, i=i: _derivative(config, network, y, t, probe(first + i))
      for i in range(len(branches))
    ]
    return schedule.runge_kutta_step(tableau, fields, y, times, length)

  y = x1, jnp.zeros(x1.shape[:1], x1.dtype)
  steps = schedule.plan(config, reverse=True)
  return samplers.scan_plan(steps, advance, y, keep=False)[0]


def _derivative(config, network, y, t, probe):
  """Velocity, and divergence: time runs back, so it adds to the density."""
  x, _ = y
  field = samplers.velocity_field(config, network)
  # By a backward pass, as published; v is what its forward half computes.
  v, transpose = jax.vjp(lambda x: field(x, t), x)
  probe = probe.astype(x.dtype)
  (row,) = transpose(probe)
  return v, jnp.sum(row * probe, axis=tuple(range(1, x.ndim)))
