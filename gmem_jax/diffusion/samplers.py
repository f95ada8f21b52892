"""Samplers: from noise (t=0) to data (t=1) along an ODE or an SDE.

The probability-flow ODE dx = v dt and, for every diffusion w(t) >= 0, the SDE

  dx = (v + w score) dt + sqrt(2 w) dW

carry the noise to the same densities. The velocity v and the score are two
readings of one network output (`paths.to_velocity`, `paths.to_score`), so a
drift costs one call.

The steps come from a static plan (`schedule`); those that agree in all but
their times run as one `lax.scan`, which without guidance is a single one.

Source: SiT, sections 2.3 and 2.4, and its appendix on samplers; GMem (arXiv
2412.08781), section 4.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gmem_jax.diffusion import dopri5, guidance, paths, schedule

# Maps a step's index, 0 to steps - 2, to its standard normal draw [b ...].
Noise = Callable[[Int[Array, ""]], Float[Array, "b ..."]]


def sample(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x0: Float[Array, "b ..."],
  noise: Noise | None = None,
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """Integrates noise to data.

  The state keeps the dtype of `x0`; times reach the network in that dtype.

  Args:
    config: How to integrate.
    network: Maps (x, t) to the prediction.
    x0: Standard normal.
    noise: The SDE's normal draw at each step, traceable; unused by ODEs.
    pair: Maps (x, t) to the conditional and the unconditional prediction (see
      `guidance.pair`); needed, and used, where guidance acts.

  Returns:
    Data, of the shape and dtype of `x0`.

  Raises:
    ValueError: An SDE has no `noise`, or guidance no `pair`.
  """
  return _solve(config, network, x0, noise, pair, keep=False)[0]


def trajectory(
  config: schedule.SamplerConfig,
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
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x1: Float[Array, "b ..."],
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """Integrates data back to its noise, by the steps of `sample` backwards.

  Returns:
    The noise from which `sample` returns to x1, up to the solver's error.

  Raises:
    ValueError: The method is an SDE, or guidance has no `pair`.
  """
  if config.is_sde:
    raise ValueError(
      f"config.sampler.method={config.method!r}: only an ODE can be inverted;"
      " choose one of the ode_* methods"
    )
  return _solve_ode(config, network, x1, pair, reverse=True)[0]


def _solve(config, network, x0, noise, pair, keep):
  """Returns the final state, and the kept states or None."""
  if not config.is_sde:
    return _solve_ode(config, network, x0, pair, keep=keep)
  if noise is None:
    raise ValueError(
      f"config.sampler.method={config.method!r}: needs noise; pass it, or"
      " choose one of the ode_* methods"
    )
  return _solve_sde(config, network, x0, noise, pair, keep)


def _solve_ode(config, network, x, pair, *, reverse=False, keep=False):
  """Integrates the ODE; the kept states begin with `x`."""
  if config.method == "ode_dopri5":
    return _solve_adaptive(config, network, x, pair, reverse, keep)

  def advance(tableau, branches, x, step):
    return take_step(config, network, x, (tableau, branches), step, pair=pair)

  steps = schedule.plan(config, reverse=reverse)
  last, states = scan_plan(steps, advance, x, keep=keep)
  return last, (jnp.concatenate([x[None], states]) if keep else None)


def _solve_adaptive(config, network, x, pair, reverse, keep):
  """Integrates the ODE with steps of the solver's choice."""
  grid = schedule.grid(config)[::-1] if reverse else schedule.grid(config)
  # A grid point ends a step, so the grid costs calls unless it is asked for.
  times = grid if keep else grid[[0, -1]]
  kept = [x[None]]
  for branch, part in schedule.segments(config, times):
    states, _ = dopri5.solve(
      velocity_field(config, _select(config, network, pair, branch)),
      x,
      part,
      atol=config.atol,
      rtol=config.rtol,
      shared=config.step_control == "batch",
    )
    x = states[-1]
    # A part may end where guidance does, between two points of the grid.
    on_grid = np.flatnonzero(np.isin(part[1:], times))
    kept.append(states[1 + on_grid])
  return x, (jnp.concatenate(kept) if keep else None)


def _select(config, network, pair, branch) -> guidance.Network:
  return guidance.select(config.guidance, branch, network, pair)


def velocity_field(
  config: schedule.SamplerConfig, network: guidance.Network
) -> schedule.Field:
  """The drift of the probability-flow ODE."""

  def field(x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    # A bfloat16 network must not round the state that it moves.
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
    steps: From `schedule.plan`.
    advance: Maps (tableau, branches, y, (index, stage times, length)) to the
      state after the step; the first two are static.
    y: The initial state, a pytree of arrays of one dtype.
    keep: Whether to return the state after each step.

  Returns:
    The last state, and the stacked states or None.
  """
  # A scan compiles the network once for all its steps; unrolled, XLA would
  # compile it anew for each of them.
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

    static = functools.partial(advance, *method)

    def body(y, step, advance=static):
      y = advance(y, step)
      return y, (y if keep else None)

    y, states = jax.lax.scan(body, y, scanned)
    kept.append(states)
  if not keep:
    return y, None
  return y, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)


def _solve_sde(config, network, x, noise, pair, keep):
  """Integrates the SDE and closes it with its last step."""

  def advance(tableau, branches, x, step):
    return take_step(config, network, x, (tableau, branches), step, noise, pair)

  x, states = scan_plan(schedule.plan(config), advance, x, keep=keep)
  x = close(config, network, x, pair)
  return x, (jnp.concatenate([states, x[None]]) if keep else None)


def take_step(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x: Float[Array, "b ..."],
  method: tuple[schedule.Tableau, tuple[guidance.Branch, ...]],
  step: tuple[Int[Array, ""], Float[Array, " s"], Float[Array, ""]],
  noise: Noise | None = None,
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """Takes one step of a plan; all of them, and `close`, are `sample`.

  Args:
    config: Of any method but "ode_dopri5", which has no plan.
    network: See `sample`.
    x: The state before the step.
    method: Tableau and branches of a `schedule.Step`; static.
    step: Its index in the plan, and its stage times and length.
    noise: See `sample`.
    pair: See `sample`.
  """
  tableau, branches = method
  index, times, length = step
  networks = [_select(config, network, pair, branch) for branch in branches]
  if not config.is_sde:
    fields = [velocity_field(config, each) for each in networks]
    return schedule.runge_kutta_step(tableau, fields, x, times, length)
  assert noise is not None
  increment = _noise_increment(
    config, noise(index).astype(x.dtype), times[0], length
  )
  fields = [_drift_field(config, each) for each in networks]
  # As published: Heun adds the noise first, so that both slopes of a step see
  # it; Euler-Maruyama adds it at the end.
  if config.method == "sde_heun":
    return schedule.runge_kutta_step(
      tableau, fields, x + increment, times, length
    )
  return (
    schedule.runge_kutta_step(tableau, fields, x, times, length) + increment
  )


def close(
  config: schedule.SamplerConfig,
  network: guidance.Network,
  x: Float[Array, "b ..."],
  pair: guidance.NetworkPair | None = None,
) -> Float[Array, "b ..."]:
  """What follows the steps of a plan: the last step of an SDE, else nothing."""
  if not config.is_sde:
    return x
  branch = guidance.branch_at(config.guidance, config.time_interval[1])
  return _last_step(config, _select(config, network, pair, branch), x)


def _drift_field(config, network) -> schedule.Field:
  """The drift v + w score of the SDE, from one network call."""
  path, prediction = config.path, config.prediction

  def field(x, t):
    t = jnp.broadcast_to(t, x.shape[:1])
    # The published code calls the network once for v and once for the score.
    output = network(x, t).astype(x.dtype)
    v = paths.to_velocity(path, prediction, output, x, t)
    score = paths.to_score(path, prediction, output, x, t)
    w = paths.diffusion(path, config.diffusion_form, config.diffusion_norm, t)
    return v + paths.expand(w, score) * score

  return field


def _noise_increment(config, normal, t, length):
  """The noise of a step, sqrt(2 w(t) length) times a standard normal draw."""
  t = jnp.broadcast_to(t, normal.shape[:1])
  w = paths.diffusion(
    config.path, config.diffusion_form, config.diffusion_norm, t
  )
  return paths.expand(jnp.sqrt(2 * w * length), normal) * normal


def _last_step(config, network, x):
  """Closes the SDE without noise, from the end of its grid."""
  # The score is infinite at t=1 on "linear" and "gvp", so the grid stops short
  # of it; noise added in the step that is left would stay in the image.
  if config.last_step == "none":
    return x
  path, prediction = config.path, config.prediction
  t = jnp.full(x.shape[:1], config.time_interval[1], x.dtype)
  if config.last_step == "mean":
    return x + config.last_step_size * _drift_field(config, network)(x, t)
  output = network(x, t).astype(x.dtype)
  if config.last_step == "euler":
    v = paths.to_velocity(path, prediction, output, x, t)
    return x + config.last_step_size * v
  score = paths.to_score(path, prediction, output, x, t)
  # Tweedie: the posterior mean of the data is (x + sigma^2 score) / alpha.
  at = paths.coefficients(path, t)
  x = x + paths.expand(at.sigma**2, score) * score
  return x / paths.expand(at.alpha, x)


def turn_time(network: guidance.Network) -> guidance.Network:
  """Turns a velocity network of GMem's first release, which was built on SiT.

  That release counts time the other way (t=1 noise, t=0 data), so its network
  predicts minus our velocity at 1 - t. Turned, its samplers are ours: its
  Euler is "ode_euler" and its Heun "ode_heun2_euler", with one point more than
  it counts steps; its Euler-Maruyama, from t=1 to 0.04 and a step without noise
  to 0 with w = 2t, is "sde_euler" with the diffusion "linear", the last step
  "mean" and its size 0.04. Its path "cosine" is "gvp".

  The release keeps the state in float64: enable x64 and pass float64 noise to
  do the same. With x64 off, as on TPU, float32 rounding moves the result by a
  few 1e-7 of the maximum.
  """

  def turned(x, t):
    output = network(x.astype(jnp.float32), (1 - t).astype(jnp.float32))
    return -output

  return turned
