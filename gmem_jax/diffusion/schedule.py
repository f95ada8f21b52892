"""The steps of a sampler: its settings, time grid, methods, cost.

A fixed-step sampler is a list of steps, each with its method, its stage times
and the guidance branch of each stage, all known before anything is traced.

A fixed step takes one vector field per stage, because guidance makes the field
depend on the stage. The methods and their names are torchdiffeq's.

Source: SiT, section 3 and appendix B; GMem (arXiv 2412.08781), section 4.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from gmem_jax.diffusion import guidance, paths

# Maps (state, times) to the state's derivative.
Field = Callable[[Any, Any], Any]


class Tableau(NamedTuple):
  """Butcher tableau of an explicit method.

  Attributes:
    a: For each stage, the weights of the slopes before it.
    b: Weights of all slopes in the step.
    c: Times of the stages, as fractions of the step.
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
# Kutta's 3/8 rule, not the classical one: it is what torchdiffeq calls rk4.
RK4 = Tableau(
  a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
  b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
  c=(0.0, 1 / 3, 2 / 3, 1.0),
)

Method = Literal[
  "sde_euler",
  "sde_heun",
  "ode_euler",
  "ode_midpoint",
  "ode_heun2",
  "ode_heun2_euler",
  "ode_heun3",
  "ode_rk4",
  "ode_dopri5",
]

_TABLEAUX = {
  "sde_euler": EULER,
  "sde_heun": HEUN2,
  "ode_euler": EULER,
  "ode_midpoint": MIDPOINT,
  "ode_heun2": HEUN2,
  "ode_heun2_euler": HEUN2,
  "ode_heun3": HEUN3,
  "ode_rk4": RK4,
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How images are integrated from noise.

  Attributes:
    path, prediction: Those that the network was trained with.
    method: "sde_*" or "ode_*" and the solver. "ode_heun2_euler" is Heun with a
      last step of Euler; "ode_dopri5" is adaptive.
    steps: Points of the time grid, joined by steps - 1 steps.
    diffusion_form: w(t) of the SDE; see `paths.diffusion`.
    diffusion_norm: Factor of w(t).
    last_step: How the SDE ends, without noise, from 1 - last_step_size: "mean"
      by its drift, "euler" by the velocity, "tweedie" by the posterior mean of
      the data, "none" not at all.
    last_step_size: Time left to the last step (SDE; unused with "none").
    timestep_shift: s > 0 moves the ODE's grid to s t / (1 + (s-1) t), finer
      near the noise for s < 1; 0 leaves it even.
    sample_eps: Distance of the grid from the path's singular ends where it
      would touch one (see `paths.interval`); None: 0 for velocity on "linear"
      and "gvp", 1e-3 for the rest.
    step_control: "ode_dopri5" chooses its steps for each "image", so that an
      image does not depend on the others, or for the "batch", as published.
    atol, rtol: Tolerances of "ode_dopri5", absolute and relative.
  """

  path: paths.Path
  prediction: paths.Prediction
  method: Method
  steps: int
  diffusion_form: paths.DiffusionForm
  diffusion_norm: float
  last_step: Literal["mean", "euler", "tweedie", "none"]
  last_step_size: float
  timestep_shift: float
  sample_eps: float | None
  step_control: Literal["image", "batch"]
  atol: float
  rtol: float
  guidance: guidance.GuidanceConfig

  def __post_init__(self):
    if self.steps < 2:
      raise ValueError(
        f"config.sampler.steps={self.steps}: must be at least 2, the ends of a"
        " time grid"
      )
    if not 0 <= self.timestep_shift < float("inf"):
      raise ValueError(
        f"config.sampler.timestep_shift={self.timestep_shift}: must be finite"
        " and at least 0 (no shift)"
      )
    if self.sample_eps is not None and not 0 < self.sample_eps < 0.5:
      raise ValueError(
        f"config.sampler.sample_eps={self.sample_eps}: must be in (0, 0.5), or"
        " None for the default of the path"
      )
    if self.atol < 0 or self.rtol < 0 or not self.atol + self.rtol > 0:
      raise ValueError(
        f"config.sampler.atol={self.atol}, config.sampler.rtol={self.rtol}:"
        " must be at least 0, and one of them positive"
      )
    if self.is_sde:
      self._check_sde()

  def _check_sde(self):
    if not 0 <= self.diffusion_norm < float("inf"):
      raise ValueError(
        f"config.sampler.diffusion_norm={self.diffusion_norm}: must be finite"
        " and at least 0"
      )
    if self.last_step != "none" and not 0 < self.last_step_size < 1:
      raise ValueError(
        f"config.sampler.last_step_size={self.last_step_size}: must be in"
        f" (0, 1) with config.sampler.last_step={self.last_step!r}"
      )
    t0, t1 = self.time_interval
    if self.diffusion_form == "sbdm" and self.path != "vp" and t0 == 0:
      raise ValueError(
        "config.sampler.diffusion_form='sbdm': infinite at t=0 on"
        f" config.sampler.path={self.path!r}; set config.sampler.sample_eps > 0"
        " (1e-3, say)"
      )
    if self.method == "sde_heun" and self.last_step == "none" and t1 == 1:
      raise ValueError(
        "config.sampler.last_step='none': config.sampler.method='sde_heun'"
        " would evaluate the score at t=1, where it is infinite; choose 'mean',"
        " 'euler' or 'tweedie', or set config.sampler.sample_eps > 0"
      )
    if not t0 < t1:
      raise ValueError(
        f"config.sampler.last_step_size={self.last_step_size}: leaves no time"
        f" between {t0} and {t1} with config.sampler.sample_eps="
        f"{self.sample_eps}"
      )

  @property
  def is_sde(self) -> bool:
    """Whether the method integrates the SDE."""
    return self.method.startswith("sde_")

  @property
  def time_interval(self) -> tuple[float, float]:
    """First and last time of the grid."""
    eps = self.sample_eps
    if eps is None:
      eps = paths.default_sample_eps(self.path, self.prediction)
    size = 0.0 if self.last_step == "none" else self.last_step_size
    return paths.interval(
      self.path,
      self.prediction,
      eps=eps,
      sde=self.is_sde,
      diffusion_form=self.diffusion_form,
      last_step_size=size,
    )


class Step(NamedTuple):
  """One step of a plan: method, branch and time of each stage, signed length.

  Everything in it is static.
  """

  tableau: Tableau
  branches: tuple[guidance.Branch, ...]
  times: tuple[float, ...]
  length: float


def grid(config: SamplerConfig) -> np.ndarray:
  """The time grid [steps], float64, ascending from noise to data."""
  t = np.linspace(*config.time_interval, config.steps)
  # The published SDE sampler has no shift, so the key is read by ODEs alone.
  if config.is_sde or not config.timestep_shift:
    return t
  s = config.timestep_shift
  return s * t / (1 + (s - 1) * t)


def plan(config: SamplerConfig, *, reverse: bool = False) -> list[Step]:
  """The `steps - 1` steps of a fixed-step sampler, without the SDE's last step.

  `reverse`: from data to noise.
  """
  t = grid(config)[::-1] if reverse else grid(config)
  steps = []
  for index, (now, after) in enumerate(itertools.pairwise(t)):
    tableau = _TABLEAUX[config.method]
    # The first release's Heun leaves out the correction of its last step.
    if config.method == "ode_heun2_euler" and index == config.steps - 2:
      tableau = EULER
    # now + (after - now) can miss `after` by a rounding, and the guidance
    # interval is compared with the grid's own points.
    times = tuple(
      float(after if c == 1 else now + c * (after - now)) for c in tableau.c
    )
    branches = tuple(guidance.branch_at(config.guidance, u) for u in times)
    steps.append(Step(tableau, branches, times, float(after - now)))
  return steps


def segments(
  config: SamplerConfig, times: np.ndarray
) -> list[tuple[guidance.Branch, np.ndarray]]:
  """Cuts an adaptive integration where guidance begins and ends.

  Returns:
    The branch and the times of each part. A part begins where the one before
    ended; to the (monotone) times only the ends of the guidance are added.
  """
  # Uncut, a solver that chooses its steps could leap over the whole guided
  # interval, as none of its stages need fall inside.
  low, high = sorted((times[0], times[-1]))
  settings = config.guidance
  ends = {settings.start, settings.end} if settings.on else set()
  cuts = [low, *sorted(t for t in ends if low < t < high), high]
  parts = []
  for start, stop in itertools.pairwise(cuts):
    # An end belongs to two parts; the middle says which branch a part has.
    branch = guidance.branch_at(settings, float((start + stop) / 2))
    within = times[(times > start) & (times < stop)]
    parts.append((branch, np.array([start, *np.sort(within), stop])))
  if times[0] < times[-1]:
    return parts
  return [(branch, part[::-1]) for branch, part in reversed(parts)]


def num_calls(config: SamplerConfig) -> tuple[int, int] | None:
  """Network calls per image (NFE): with the condition, and without it.

  A guided evaluation counts once in each. None for "ode_dopri5", whose number
  depends on the data.
  """
  if config.method == "ode_dopri5":
    return None
  branches = [branch for step in plan(config) for branch in step.branches]
  if config.is_sde and config.last_step != "none":
    branches.append(
      guidance.branch_at(config.guidance, config.time_interval[1])
    )
  conditional = len(branches)
  unconditional = sum(b != guidance.Branch.CONDITIONAL for b in branches)
  return conditional, unconditional


def add_slopes(
  y: PyTree[Array],
  h: Float[Array, "*b"],
  weights: Sequence[float],
  slopes: Sequence[PyTree[Array]],
) -> PyTree[Array]:
  """Returns y + h sum_i weights_i slopes_i; `h` is one number or one each."""
  # XLA would keep 0 * slope, which is NaN where the slope is infinite.
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
  """The state after one step; each of the s stages has its field and time.

  A negative length `h` integrates back in time.
  """
  slopes = []
  for stage, field in enumerate(fields):
    point = add_slopes(y, h, tableau.a[stage], slopes)
    slopes.append(field(point, times[stage]))
  return add_slopes(y, h, tableau.b, slopes)
