"""Explicit Runge-Kutta methods: fixed steps, and adaptive Dormand-Prince.

States are pytrees of arrays with a leading batch axis. Fixed steps take one
vector field per stage, because guidance makes the field depend on the stage.

Source: Hairer, Norsett and Wanner, "Solving ordinary differential equations
I", chapter II. The methods and their names are those of torchdiffeq.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, PyTree

# Maps (state, times) to the state's derivative.
Field = Callable[[Any, Any], Any]


class Tableau(NamedTuple):
  """Butcher tableau of an explicit method.

  Attributes:
    a: for each stage, the weights of the slopes before it.
    b: weights of all slopes in the step.
    c: times of the stages, as fractions of the step.
  """

  a: tuple[tuple[float, ...], ...]
  b: tuple[float, ...]
  c: tuple[float, ...]


EULER = Tableau(a=((),), b=(1.0,), c=(0.0,))
MIDPOINT = Tableau(a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2))
HEUN2 = Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0))
HEUN3 = Tableau(
  a=((), (1 / 3,), (0.0, 2 / 3)),
  b=(1 / 4, 0.0, 3 / 4),
  c=(0.0, 1 / 3, 2 / 3),
)
# Kutta's 3/8 rule, which torchdiffeq calls rk4.
RK4 = Tableau(
  a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
  b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
  c=(0.0, 1 / 3, 2 / 3, 1.0),
)


def advance(
  y: PyTree[Array],
  h: Float[Array, "*b"],
  weights: Sequence[float],
  slopes: Sequence[PyTree[Array]],
) -> PyTree[Array]:
  """Returns y + h sum_i weights_i slopes_i.

  Args:
    y: the state; every leaf has a leading batch axis.
    h: the length of the step, one for all or one per sample.
    weights: one per slope.
    slopes: of the structure of `y`.
  """
  used = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
  if not used:
    return y
  weights, slopes = zip(*used, strict=True)

  def leaf(value, *derivatives):
    length = h if not h.ndim else h.reshape((-1,) + (1,) * (value.ndim - 1))
    total = sum(w * k for w, k in zip(weights, derivatives, strict=True))
    return value + length * total

  return jax.tree.map(leaf, y, *slopes)


def runge_kutta_step(
  tableau: Tableau,
  fields: Sequence[Field],
  y: PyTree[Array],
  times: Sequence[Float[Array, ""]] | Float[Array, " s"],
  h: Float[Array, ""],
) -> PyTree[Array]:
  """One step of an explicit method.

  Args:
    tableau: the method.
    fields: the vector field of each stage.
    y: the state.
    times: the time of each stage.
    h: length of the step; negative to integrate back in time.

  Returns:
    The state after the step.
  """
  slopes = []
  for stage, field in enumerate(fields):
    point = advance(y, h, tableau.a[stage], slopes)
    slopes.append(field(point, times[stage]))
  return advance(y, h, tableau.b, slopes)
