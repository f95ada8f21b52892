"""Samplers: from noise (t=0) to data (t=1) along an ODE or an SDE.

The probability-flow ODE dx = v dt and, for every diffusion w(t) >= 0, the SDE

  dx = (v + w score) dt + sqrt(2 w) dW

carry the noise to the same densities. The velocity v and the score are two
readings of one network output (`paths.to_velocity`, `paths.to_score`), so a
drift costs one call.

The steps come from a static plan (`schedule`); those that agree in all but
their times run as one `lax.scan`, which without guidance is a single one.

Source: SiT, sections 2.3 and 2.4; GMem (arXiv 2412.08781), section 4.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gmem_jax.diffusion import dopri5, guidance, ode, paths, schedule, sde

SamplerConfig = schedule.SamplerConfig
num_calls = schedule.num_calls

# Maps a step's index, 0 to steps - 2, to its standard normal draw [b ...].
Noise = Callable[[Int[Array, ""]], Float[Array, "b ..."]]


def sample(
  config: SamplerConfig,
  network: guidance.Network,
  x0: Float[Array, "b ..."],
  noise: Noise | None = None,
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """Integrates noise to data.

  The state keeps the dtype of `x0`; times reach the network in that dtype.

  Args:
    config: the sampler.
    network: maps (x, t) to the prediction.
    x0: standard normal noise.
    noise: the SDE's normal draw at each step, traceable; unused by ODEs.
    pair: maps (x, t) to the conditional and the unconditional prediction (see
      `guidance.pair`); needed, and used, where guidance acts.

  Returns:
    Data, of the shape and dtype of `x0`.

  Raises:
    ValueError: an SDE lacks `noise`, or guidance lacks `pair`.
  """
  return _solve(config, network, x0, noise, pair, keep=False)[0]


def trajectory(
  config: SamplerConfig,
  network: guidance.Network,
  x0: Float[Array, "b ..."],
  noise: Noise | None = None,
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "steps b ..."]:
  """Like `sample`, with every state on the way.

  Returns:
    For an ODE the states on the grid, beginning with `x0` ("ode_dopri5" ends a
    step at each point of the grid, which `sample` need not); for an SDE the
    states after each step, and after the last step.
  """
  _, states = _solve(config, network, x0, noise, pair, keep=True)
  assert states is not None
  return states


def invert(
  config: SamplerConfig,
  network: guidance.Network,
  x1: Float[Array, "b ..."],
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """Integrates data back to its noise, along the probability-flow ODE.

  Args:
    config: a sampler with an ODE method; the steps of `sample`, backwards.
    network: maps (x, t) to the prediction.
    x1: data.
    pair: see `sample`.

  Returns:
    The noise from which `sample` returns to x1, up to the solver's error.

  Raises:
    ValueError: the method is an SDE, or guidance lacks `pair`.
  """
  if config.is_sde:
    raise ValueError(
      f"sampler.method is {config.method!r}, but only an ODE can be inverted; "
      "choose one of the ode_* methods."
    )
  return solve_ode(config, network, x1, pair, reverse=True)[0]


def _solve(config, network, x0, noise, pair, keep):
  """Returns the final state, and the kept states or None."""
  if not config.is_sde:
    return solve_ode(config, network, x0, pair, keep=keep)
  if noise is None:
    raise ValueError(
      f"sampler.method {config.method!r} needs noise; pass it, or choose one "
      "of the ode_* methods."
    )
  return _solve_sde(config, network, x0, noise, pair, keep)


def solve_ode(
  config: SamplerConfig,
  network: guidance.Network,
  x: Float[Array, "b ..."],
  pair: guidance.NetworkPair | None = None,
  *,
  reverse: bool = False,
  keep: bool = False,
) -> tuple[Float[Array, "b ..."], Float[Array, "steps b ..."] | None]:
  """Integrates the probability-flow ODE between noise and data.

  Args:
    config: the sampler, of an ODE method.
    network: maps (x, t) to the prediction.
    x: noise; with `reverse`, data.
    pair: see `sample`.
    reverse: integrate from data to noise.
    keep: whether to return every state.

  Returns:
    The last state, and the states on the grid from `x` on (None unless kept).
  """
  if config.method == "ode_dopri5":
    return _solve_adaptive(config, network, x, pair, reverse, keep)

  def advance(tableau, branches, x, step):
    _, times, length = step
    fields = [
      velocity_field(
        config, guidance.select(config.guidance, branch, network, pair)
      )
      for branch in branches
    ]
    return ode.runge_kutta_step(tableau, fields, x, times, length)

  steps = schedule.plan(config, reverse=reverse)
  last, states = scan_plan(steps, advance, x, keep=keep)
  return last, (jnp.concatenate([x[None], states]) if keep else None)


def _solve_adaptive(config, network, x, pair, reverse, keep):
  """Integrates the ODE with steps of the solver's choice."""
  grid = schedule.grid(config)[::-1] if reverse else schedule.grid(config)
  times = grid if keep else grid[[0, -1]]
  kept = [x[None]]
  for branch, part in schedule.segments(config, times):
    chosen = guidance.select(config.guidance, branch, network, pair)
    states, _ = dopri5.solve(
      velocity_field(config, chosen),
      x,
      part,
      atol=config.atol,
      rtol=config.rtol,
      shared=config.step_control == "batch",
    )
    x = states[-1]
    # A part may end where guidance does, between two points of the grid.
    asked = np.flatnonzero(np.isin(part[1:], times))
    kept.append(states[1 + asked])
  return x, (jnp.concatenate(kept) if keep else None)


def velocity_field(
  config: SamplerConfig, network: guidance.Network
) -> ode.Field:
  """The drift of the probability-flow ODE."""

  def field(x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    output = network(x, t).astype(x.dtype)
    return paths.to_velocity(config.path, config.prediction, output, x, t)

  return field


def scan_plan(
  steps: Sequence[schedule.Step],
  advance: Callable[..., Any],
  y: Any,
  *,
  keep: bool,
) -> tuple[Any, Any]:
  """Takes the steps of a plan, each run of like steps as one scan.

  Args:
    steps: the plan.
    advance: maps (tableau, branches, y, (index, stage times, length)) to the
      state after the step; the first two are static.
    y: the initial state, a pytree of arrays of one dtype.
    keep: whether to return the state after each step.

  Returns:
    The last state, and the stacked states or None.
  """
  dtype = jax.tree.leaves(y)[0].dtype
  kept = []
  indexed = enumerate(steps)
  for method, run in itertools.groupby(indexed, lambda s: s[1][:2]):
    index, alike = zip(*run, strict=True)
    scanned = (
      jnp.asarray(index),
      jnp.asarray([step.times for step in alike], dtype),
      jnp.asarray([step.length for step in alike], dtype),
    )
    body = functools.partial(
      _scan_body, functools.partial(advance, *method), keep
    )
    y, states = jax.lax.scan(body, y, scanned)
    kept.append(states)
  if not keep:
    return y, None
  return y, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)


def _scan_body(advance, keep, y, step):
  y = advance(y, step)
  return y, (y if keep else None)


def _solve_sde(config, network, x, noise, pair, keep):
  """Integrates the SDE and closes it with its last step."""

  def field(branch):
    return sde.drift_field(
      config, guidance.select(config.guidance, branch, network, pair)
    )

  def advance(tableau, branches, x, step):
    index, times, length = step
    kick = sde.kick(config, noise(index).astype(x.dtype), times[0], length)
    fields = [field(branch) for branch in branches]
    if config.method == "sde_heun":
      return ode.runge_kutta_step(tableau, fields, x + kick, times, length)
    return ode.runge_kutta_step(tableau, fields, x, times, length) + kick

  x, states = scan_plan(schedule.plan(config), advance, x, keep=keep)
  branch = guidance.branch_at(config.guidance, config.time_interval[1])
  closing = guidance.select(config.guidance, branch, network, pair)
  x = sde.last_step(config, closing, x)
  return x, (jnp.concatenate([states, x[None]]) if keep else None)
