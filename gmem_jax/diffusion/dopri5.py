"""The adaptive method of Dormand and Prince, order 5 with an error of order 4.

Every sample carries its own time and step, so a sample's result does not
depend on what else is in its batch; `shared` makes the batch share one step
size, as torchdiffeq does. Steps end exactly at the requested times: the field
is never evaluated beyond them (torchdiffeq oversteps and interpolates, which
for a flow on [0, 1] means times up to about 1.4).

Source: Hairer, Norsett and Wanner, "Solving ordinary differential equations
I", sections II.4 (step size, initial step) and II.5 (tableau).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from gmem_jax.diffusion import ode

ORDER = 5
SAFETY = 0.9
MIN_FACTOR = 0.2
MAX_FACTOR = 10.0

# The last row of `a` equals `b`: the last slope is the first of the next step.
TABLEAU = ode.Tableau(
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
# Weights of the slopes in the difference to Shampine's solution of order 4,
# whose error estimate torchdiffeq uses.
ERROR = (
  35 / 384 - 1951 / 21600,
  0.0,
  500 / 1113 - 22642 / 50085,
  125 / 192 - 451 / 720,
  -2187 / 6784 + 12231 / 42400,
  11 / 84 - 649 / 6300,
  -1 / 60,
)


class _State(NamedTuple):
  """What an attempted step starts from.

  Attributes:
    y: the solution at t.
    slope: its derivative there.
    t: time since the start, of each sample.
    h: the step proposed next, of each sample.
    calls: evaluations of the field so far.
  """

  y: PyTree[Array]
  slope: PyTree[Array]
  t: Float[Array, " b"]
  h: Float[Array, " b"]
  calls: Int[Array, ""]


def solve(
  field: ode.Field,
  y: PyTree[Array],
  times: np.ndarray,
  *,
  atol: float,
  rtol: float,
  shared: bool,
) -> tuple[PyTree[Array], Int[Array, ""]]:
  """Integrates a field through given times.

  Args:
    field: maps (state, times [b]) to the state's derivative.
    y: the state at `times[0]`: arrays with a leading axis b, of one dtype.
    times: monotone, ascending or descending.
    atol: absolute tolerance of the error of a step.
    rtol: relative tolerance; the root mean square over a sample (a batch, when
      shared) of error / (atol + rtol |y|) is kept below 1.
    shared: whether the batch shares its step size.

  Returns:
    The states at all `times`, stacked; and the number of calls of `field`. A
    sample whose step size vanishes, or whose derivative is not finite,
    becomes NaN.
  """
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

  state = _initial(forward, scaled, y)
  ends = jnp.asarray(np.abs(times[1:] - start), dtype)
  state, states = jax.lax.scan(to_time, state, ends)
  states = jax.tree.map(
    lambda first, rest: jnp.concatenate([first[None], rest]), y, states
  )
  return states, state.calls


def _initial(forward, scaled, y) -> _State:
  """Chooses the first step; Hairer et al., II.4, "starting step size"."""
  first = jax.tree.leaves(y)[0]
  t = jnp.zeros(first.shape[:1], first.dtype)
  slope = forward(y, t)
  d0, d1 = scaled(y, y), scaled(slope, y)
  tiny = (d0 < 1e-5) | (d1 < 1e-5)
  h0 = jnp.where(tiny, 1e-6, 0.01 * d0 / jnp.where(tiny, 1, d1))
  trial = forward(ode.advance(y, h0, (1.0,), (slope,)), h0)
  change = jax.tree.map(jnp.subtract, trial, slope)
  d2 = scaled(change, y) / h0
  largest = jnp.maximum(d1, d2)
  h1 = jnp.where(
    largest <= 1e-15,
    jnp.maximum(1e-6, 1e-3 * h0),
    (0.01 / jnp.maximum(largest, 1e-15)) ** (1 / ORDER),
  )
  h = jnp.minimum(100 * h0, h1)
  return _State(y, slope, t, h, jnp.asarray(2))


def _attempt(forward, scaled, state: _State, end) -> _State:
  """Tries one step of every sample before `end`; keeps those that pass."""
  y, t = state.y, state.t
  h = jnp.minimum(state.h, end - t)
  slopes = [state.slope]
  point = y
  for a, c in zip(TABLEAU.a[1:], TABLEAU.c[1:], strict=True):
    point = ode.advance(y, h, a, slopes)
    slopes.append(forward(point, t + c * h))

  zero = jax.tree.map(jnp.zeros_like, y)
  error = scaled(ode.advance(zero, h, ERROR, slopes), y, point)
  passed = (error <= 1) & (t < end)
  # A step that passed does not shrink the next one; NaN shrinks.
  smallest = jnp.where(passed, 1.0, MIN_FACTOR)
  factor = jnp.clip(SAFETY * error ** (-1 / ORDER), smallest, MAX_FACTOR)
  proposed = h * jnp.where(jnp.isfinite(error), factor, MIN_FACTOR)
  # Landing on `end` says nothing against the longer step proposed before.
  landed = passed & (h < state.h)
  proposed = jnp.where(landed, jnp.maximum(proposed, state.h), proposed)

  stuck = (t < end) & ~(t + h > t)

  def keep(new, old):
    mask = passed.reshape((-1,) + (1,) * (old.ndim - 1))
    lost = stuck.reshape(mask.shape)
    return jnp.where(lost, jnp.nan, jnp.where(mask, new, old))

  reached = jnp.where(h < end - t, t + h, end)
  return _State(
    jax.tree.map(keep, point, y),
    jax.tree.map(keep, slopes[-1], state.slope),
    jnp.where(stuck, end, jnp.where(passed, reached, t)),
    jnp.where(t < end, proposed, state.h),
    state.calls + len(slopes) - 1,
  )
