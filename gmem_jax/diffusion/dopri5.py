"""The adaptive Runge-Kutta method of Dormand and Prince.

States are pytrees of arrays with a leading batch axis `b`.

Source: Hairer, Norsett and Wanner, "Solving ordinary differential equations
I": chapter II, II.4 (step size, first step) and II.5 (Dormand-Prince).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from gmem_jax.diffusion import schedule

# The last row of `a` equals `b`: the last slope is the first of the next step,
# so a step costs six calls, not seven.
DOPRI5 = schedule.Tableau(
  a=(
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
  ),
  b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
  c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
)
# Weights of the slopes in the error: the difference to a solution of order 4.
# That solution is Shampine's, as in torchdiffeq, not Dormand and Prince's: with
# theirs the solver would choose other steps than the published samples took.
_ERROR = (
  35 / 384 - 1951 / 21600,
  0.0,
  500 / 1113 - 22642 / 50085,
  125 / 192 - 451 / 720,
  -2187 / 6784 + 12231 / 42400,
  11 / 84 - 649 / 6300,
  -1 / 60,
)
# Step control of torchdiffeq: the exponent is 1 / _ORDER.
_ORDER = 5
_SAFETY = 0.9
_MIN_FACTOR = 0.2
_MAX_FACTOR = 10.0


class _Attempt(NamedTuple):
  """What a step of the adaptive solver starts from.

  Attributes:
    y, slope: The solution at t, and its derivative.
    t: Time since the start, of each sample.
    h: The step proposed next, of each sample.
    calls: Evaluations of the field so far.
  """

  y: PyTree[Array]
  slope: PyTree[Array]
  t: Float[Array, " b"]
  h: Float[Array, " b"]
  calls: Int[Array, ""]


def solve(
  field: schedule.Field,
  y: PyTree[Array],
  times: np.ndarray,
  *,
  atol: float,
  rtol: float,
  shared: bool,
) -> tuple[PyTree[Array], Int[Array, ""]]:
  """Integrates a field through given times with steps of its own choice.

  Args:
    field: Maps (state, times [b]) to the state's derivative.
    y: The state at `times[0]`; all arrays have one dtype.
    times: Ascending or descending.
    atol: Absolute tolerance of the error of a step.
    rtol: Relative tolerance; the root mean square over a sample (a batch, when
      shared) of error / (atol + rtol |y|) is kept below 1.
    shared: Whether the batch shares its step size. Without, every sample has
      its own time and step, and does not depend on the rest of its batch.

  Returns:
    The states at all `times`, stacked, and the number of calls of `field`. A
    sample is NaN once its step size vanishes or its derivative is not finite.
  """
  # Written here, though diffrax has the method. Steps land exactly on the
  # requested times: torchdiffeq oversteps and interpolates, and so asks a flow
  # on [0, 1] for times up to about 1.4. `shared` takes torchdiffeq's own steps,
  # with its error estimate and one step size for the batch. And diffrax would
  # add four dependencies (itself, equinox, lineax and optimistix).
  dtype = jax.tree.leaves(y)[0].dtype
  sign = float(np.sign(times[-1] - times[0]))
  start = float(times[0])

  def forward(y, s):
    slope = field(y, start + sign * s)
    return jax.tree.map(lambda k: sign * k, slope)

  def scaled(values, *states):
    """Root mean square of values / (atol + rtol max |states|)."""

    def leaf(value, *states):
      size = jnp.max(jnp.abs(jnp.stack(states)), axis=0)
      ratio = value / (atol + rtol * size)
      return jnp.sum(ratio**2, axis=tuple(range(1, value.ndim)))

    squares = jax.tree.leaves(jax.tree.map(leaf, values, *states))
    size = sum(value[0].size for value in jax.tree.leaves(values))
    mean = jnp.sum(jnp.stack(squares), axis=0) / size
    if shared:
      mean = jnp.broadcast_to(jnp.mean(mean), mean.shape)
    return jnp.sqrt(mean)

  def to_time(state, end):
    state = jax.lax.while_loop(
      lambda state: jnp.any(state.t < end),
      lambda state: _attempt(forward, scaled, state, end),
      state,
    )
    return state, state.y

  state = _first_attempt(forward, scaled, y)
  ends = jnp.asarray(np.abs(times[1:] - start), dtype)
  state, states = jax.lax.scan(to_time, state, ends)
  states = jax.tree.map(
    lambda first, rest: jnp.concatenate([first[None], rest]), y, states
  )
  return states, state.calls


def _first_attempt(forward, scaled, y) -> _Attempt:
  """Chooses the first step; Hairer et al., II.4, "starting step size"."""
  first = jax.tree.leaves(y)[0]
  t = jnp.zeros(first.shape[:1], first.dtype)
  slope = forward(y, t)
  d0, d1 = scaled(y, y), scaled(slope, y)
  tiny = (d0 < 1e-5) | (d1 < 1e-5)
  h0 = jnp.where(tiny, 1e-6, 0.01 * d0 / jnp.where(tiny, 1, d1))
  trial = forward(schedule.add_slopes(y, h0, (1.0,), (slope,)), h0)
  change = jax.tree.map(jnp.subtract, trial, slope)
  d2 = scaled(change, y) / h0
  largest = jnp.maximum(d1, d2)
  h1 = jnp.where(
    largest <= 1e-15,
    jnp.maximum(1e-6, 1e-3 * h0),
    (0.01 / jnp.maximum(largest, 1e-15)) ** (1 / _ORDER),
  )
  h = jnp.minimum(100 * h0, h1)
  return _Attempt(y, slope, t, h, jnp.asarray(2))


def _attempt(forward, scaled, state: _Attempt, end) -> _Attempt:
  """Tries one step of every sample before `end`; keeps those that pass."""
  y, t = state.y, state.t
  h = jnp.minimum(state.h, end - t)
  slopes = [state.slope]
  point = y
  for a, c in zip(DOPRI5.a[1:], DOPRI5.c[1:], strict=True):
    point = schedule.add_slopes(y, h, a, slopes)
    slopes.append(forward(point, t + c * h))

  zero = jax.tree.map(jnp.zeros_like, y)
  error = scaled(schedule.add_slopes(zero, h, _ERROR, slopes), y, point)
  passed = (error <= 1) & (t < end)
  # A step that passed does not shrink the next one.
  smallest = jnp.where(passed, 1.0, _MIN_FACTOR)
  factor = jnp.clip(_SAFETY * error ** (-1 / _ORDER), smallest, _MAX_FACTOR)
  # A NaN may come from one bad stage, so the step shrinks before we give up.
  proposed = h * jnp.where(jnp.isfinite(error), factor, _MIN_FACTOR)
  # A step cut short to land on `end` is no reason to forget the longer one.
  landed = passed & (h < state.h)
  proposed = jnp.where(landed, jnp.maximum(proposed, state.h), proposed)

  # Below the resolution of t no step can end the loop: give NaN, not a hang.
  stuck = (t < end) & ~(t + h > t)

  def keep(new, old):
    mask = passed.reshape((-1,) + (1,) * (old.ndim - 1))
    lost = stuck.reshape(mask.shape)
    return jnp.where(lost, jnp.nan, jnp.where(mask, new, old))

  # t + (end - t) may round to less than end, which would cost another step.
  reached = jnp.where(h < end - t, t + h, end)
  return _Attempt(
    jax.tree.map(keep, point, y),
    jax.tree.map(keep, slopes[-1], state.slope),
    jnp.where(stuck, end, jnp.where(passed, reached, t)),
    jnp.where(t < end, proposed, state.h),
    state.calls + len(slopes) - 1,
  )
