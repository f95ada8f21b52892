"""The static half of a sampler: its settings, time grid, steps and cost.

A fixed-step sampler is a list of steps, each with its method, its stage times
and the guidance branch of each stage, all known before anything is traced.

Source: SiT, section 3 and appendix B; GMem (arXiv 2412.08781), section 4.
"""

import dataclasses
import itertools
from typing import Literal, NamedTuple

import numpy as np

from gmem_jax.diffusion import guidance, interval, ode, paths

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
  "sde_euler": ode.EULER,
  "sde_heun": ode.HEUN2,
  "ode_euler": ode.EULER,
  "ode_midpoint": ode.MIDPOINT,
  "ode_heun2": ode.HEUN2,
  "ode_heun2_euler": ode.HEUN2,
  "ode_heun3": ode.HEUN3,
  "ode_rk4": ode.RK4,
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How images are integrated from noise.

  Attributes:
    path: the path that the network was trained on.
    prediction: what the network predicts.
    method: "sde_*" or "ode_*" and the solver. "ode_heun2_euler" is Heun with a
      last step of Euler; "ode_dopri5" is adaptive.
    steps: points of the time grid; one fewer steps join them.
    diffusion_form: w(t) of the SDE; see `paths.diffusion`.
    diffusion_norm: factor of w(t).
    last_step: how the SDE closes, without noise, from 1 - last_step_size:
      "mean" by its drift, "euler" by the velocity, "tweedie" by the posterior
      mean of the data, "none" not at all.
    last_step_size: time left to the last step (SDE; unused with "none").
    timestep_shift: s > 0 moves the ODE's grid to s t / (1 + (s-1) t), finer
      near the noise for s < 1; 0 leaves it even.
    sample_eps: distance of the grid from the path's singular ends where it
      would touch one (see `interval`), or None for 0 (velocity on "linear" and
      "gvp") or 1e-3 (the rest).
    step_control: "ode_dopri5" chooses its steps for each "image", so that an
      image does not depend on the others, or for the "batch", as published.
    atol: absolute tolerance of "ode_dopri5".
    rtol: relative tolerance of "ode_dopri5".
    guidance: classifier-free guidance.
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
        f"sampler.steps is {self.steps}; a grid has at least 2 points."
      )
    if not 0 <= self.timestep_shift < float("inf"):
      raise ValueError(
        f"sampler.timestep_shift is {self.timestep_shift}; it must be finite "
        "and at least 0 (0 is no shift)."
      )
    if self.sample_eps is not None and not 0 < self.sample_eps < 0.5:
      raise ValueError(
        f"sampler.sample_eps is {self.sample_eps}; it must lie in (0, 0.5), "
        "or be None for the default of the path."
      )
    if self.atol < 0 or self.rtol < 0 or not self.atol + self.rtol > 0:
      raise ValueError(
        f"sampler.atol is {self.atol} and sampler.rtol {self.rtol}; both must "
        "be at least 0 and one of them positive."
      )
    if self.is_sde:
      self._check_sde()

  def _check_sde(self):
    if not 0 <= self.diffusion_norm < float("inf"):
      raise ValueError(
        f"sampler.diffusion_norm is {self.diffusion_norm}; it must be finite "
        "and at least 0."
      )
    if self.last_step != "none" and not 0 < self.last_step_size < 1:
      raise ValueError(
        f"sampler.last_step_size is {self.last_step_size}; it must lie in "
        f"(0, 1) with sampler.last_step {self.last_step!r}."
      )
    t0, t1 = self.time_interval
    if self.diffusion_form == "sbdm" and self.path != "vp" and t0 == 0:
      raise ValueError(
        "sampler.diffusion_form 'sbdm' is infinite at t=0 on sampler.path "
        f"{self.path!r}; set sampler.sample_eps > 0 (1e-3, say)."
      )
    if self.method == "sde_heun" and self.last_step == "none" and t1 == 1:
      raise ValueError(
        "sampler.method 'sde_heun' with sampler.last_step 'none' evaluates "
        "the score at t=1, where it is infinite; choose a last_step of "
        "'mean', 'euler' or 'tweedie', or set sampler.sample_eps > 0."
      )
    if not t0 < t1:
      raise ValueError(
        f"sampler.last_step_size {self.last_step_size} and sampler.sample_eps "
        f"{self.sample_eps} leave no time between {t0} and {t1}."
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
      eps = interval.default_sample_eps(self.path, self.prediction)
    size = 0.0 if self.last_step == "none" else self.last_step_size
    return interval.interval(
      self.path,
      self.prediction,
      eps=eps,
      sde=self.is_sde,
      diffusion_form=self.diffusion_form,
      last_step_size=size,
    )


class Step(NamedTuple):
  """One step of a plan; everything in it is static."""

  tableau: ode.Tableau
  branches: tuple[guidance.Branch, ...]
  times: tuple[float, ...]
  length: float


def grid(config: SamplerConfig) -> np.ndarray:
  """The time grid [steps], float64, ascending from noise to data."""
  t = np.linspace(*config.time_interval, config.steps)
  if config.is_sde or not config.timestep_shift:
    return t
  s = config.timestep_shift
  return s * t / (1 + (s - 1) * t)


def plan(config: SamplerConfig, *, reverse: bool = False) -> list[Step]:
  """The steps of a fixed-step sampler, without the SDE's last step.

  Args:
    config: the sampler; any method but "ode_dopri5".
    reverse: from data to noise.

  Returns:
    `config.steps - 1` steps.
  """
  t = grid(config)[::-1] if reverse else grid(config)
  steps = []
  for index, (now, after) in enumerate(itertools.pairwise(t)):
    tableau = _TABLEAUX[config.method]
    if config.method == "ode_heun2_euler" and index == config.steps - 2:
      tableau = ode.EULER
    # The end of the step is a grid point: do not recompute it.
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

  A solver that chooses its steps could leap over the whole guided interval, as
  none of its stages need fall inside.

  Args:
    config: gives the interval of the guidance.
    times: monotone, at least two.

  Returns:
    The branch and the times of each part. A part begins where the one before
    ended, at the end of the guidance or its start, and no other times than
    these are added.
  """
  low, high = sorted((times[0], times[-1]))
  settings = config.guidance
  ends = {settings.start, settings.end} if settings.on else set()
  cuts = [low, *sorted(t for t in ends if low < t < high), high]
  parts = []
  for start, stop in itertools.pairwise(cuts):
    branch = guidance.branch_at(settings, float((start + stop) / 2))
    within = times[(times > start) & (times < stop)]
    parts.append((branch, np.array([start, *np.sort(within), stop])))
  if times[0] < times[-1]:
    return parts
  return [(branch, part[::-1]) for branch, part in reversed(parts)]


def num_calls(config: SamplerConfig) -> tuple[int, int] | None:
  """Network evaluations per image: with the condition, and without it.

  A guided evaluation counts once in each. Returns None for "ode_dopri5",
  whose number depends on the data.
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
