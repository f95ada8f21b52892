"""The config's sections of training."""

import dataclasses
from typing import Literal

from gmem_jax.config import checks


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    steps: Steps of the whole run.
    batch_size: Examples in a step, over all devices.
    accumulation: Parts that a step processes one after the other; saves memory
      for activations, and the step is the same.
    steps_per_dispatch: Steps in one call of the compiled function; a few help
      if a step takes milliseconds.
    ema_decay: Decay of the parameters' moving average per step.
    log_every: Steps between log lines.
    init_from: Source of a new run's parameters: converted weights, or the
      directory of a run (its moving average), even of another conditioning; ""
      to initialise them at random.
    allow_changes: Whether a run that continues may do so with another `optim`,
      batch size or `ema_decay`; its optimizer's state is kept.
  """

  steps: int
  batch_size: int
  accumulation: int
  steps_per_dispatch: int
  ema_decay: float
  log_every: int
  init_from: checks.FilePath
  allow_changes: bool

  def __post_init__(self):
    checks.positive(
      "train",
      self,
      *("steps", "batch_size", "accumulation", "steps_per_dispatch"),
      "log_every",
    )
    checks.fraction("train", self, "ema_decay")
    # The loop sees the state only between dispatches.
    k = self.steps_per_dispatch
    if self.log_every % k or self.steps % k:
      raise ValueError(
        f"config.train.log_every={self.log_every} and config.train.steps="
        f"{self.steps} must be multiples of config.train.steps_per_dispatch={k}"
      )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Settings of the optimizer.

  Attributes:
    learning_rate: Peak learning rate.
    schedule: "constant" (published), or "cosine" down to zero.
    warmup_steps: Steps of linear warm-up from zero; 0 for none.
    decay_steps: Step at which the cosine reaches zero; 0 for the end of the
      run, `train.steps`, which `config.resolve` puts in its place. Unused by
      "constant".
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
    weight_decay: Decoupled weight decay; frozen parameters are left out.
    clip_norm: Largest global norm of the gradient.
  """

  learning_rate: float
  schedule: Literal["constant", "cosine"]
  warmup_steps: int
  decay_steps: int
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip_norm: float

  def __post_init__(self):
    for key in ("learning_rate", "eps", "clip_norm"):
      value = getattr(self, key)
      if not value > 0:
        raise ValueError(f"config.optim.{key}={value}: must be positive")
    # A decay of 1 would never forget its start at zero.
    checks.fraction("optim", self, "b1", "b2")
    checks.not_negative("optim", self, "warmup_steps", "decay_steps")
    checks.not_negative("optim", self, "weight_decay")


@dataclasses.dataclass(frozen=True)
class PriorConfig:
  """The prior that `--mode=prior` trains on the rows of the bank.

  It is optimised as `optim` says, but at its own rate: after a warm-up of a
  twentieth of the steps, a cosine down to zero. The lines of its log are as far
  apart as `train.log_every` says, its checkpoints as `checkpoint` does.

  Attributes:
    width: Of the residual stream.
    depth: Number of residual blocks.
    steps: Training steps.
    batch_size: Rows in a step, over all devices.
    learning_rate: Peak learning rate.
    ema_decay: Decay of the parameters' moving average, which it samples with.
    group_dropout: Share of the rows that are trained on without their group.
    points: Points of the time grid when it samples: Heun's method makes
      2 (points - 1) network calls.
    guidance: Scale of the guidance by the group; 1 is none.
  """

  width: int = 256
  depth: int = 4
  steps: int = 2000
  batch_size: int = 128
  learning_rate: float = 1e-3
  ema_decay: float = 0.995
  group_dropout: float = 0.1
  points: int = 33
  guidance: float = 1.0

  def __post_init__(self):
    checks.positive("prior", self, "width", "depth", "steps", "batch_size")
    checks.fraction("prior", self, "ema_decay", "group_dropout")
    checks.not_negative("prior", self, "guidance")
    if not self.learning_rate > 0:
      raise ValueError(
        f"config.prior.learning_rate={self.learning_rate}: must be positive"
      )
    if self.points < 2:
      raise ValueError(
        f"config.prior.points={self.points}: must be at least 2, the ends of a"
        " time grid"
      )
    # What is never seen without its group cannot be told what it would be.
    if self.guidance != 1 and not self.group_dropout:
      raise ValueError(
        f"config.prior.guidance={self.guidance}: must be 1 with"
        " config.prior.group_dropout=0"
      )


# Of recipes and runs from before there was a prior.
PRIOR = PriorConfig()


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Where metrics go besides metrics.jsonl and TensorBoard.

  Attributes:
    wandb: Project on Weights & Biases (the extra `wandb`), which gets metrics
      and pictures; "" for none. The environment's WANDB_MODE=offline keeps them
      in the run's directory.
    profile: "FIRST:LAST": the steps after FIRST, until LAST, are traced to
      WORKDIR/profile for TensorBoard and XProf (--profile); "" for none.
  """

  wandb: str
  profile: str

  def __post_init__(self):
    parts = self.profile.split(":") if self.profile else ["0", "1"]
    if (
      len(parts) != 2
      or not all(part.isdecimal() for part in parts)
      or int(parts[0]) >= int(parts[1])
    ):
      raise ValueError(
        f"config.log.profile={self.profile!r}: FIRST:LAST is expected, such as"
        " 100:110"
      )

  @property
  def profiled(self) -> tuple[int, int] | None:
    """FIRST and LAST of `profile`."""
    if not self.profile:
      return None
    first, last = map(int, self.profile.split(":"))
    return first, last


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are written and which are kept.

  Attributes:
    every: Steps between checkpoints; the last step always has one.
    keep_latest: How many of the newest are kept.
    keep_every: Checkpoints at multiples of this step are kept for ever; 0 for
      none.
  """

  every: int
  keep_latest: int
  keep_every: int

  def __post_init__(self):
    checks.positive("checkpoint", self, "every", "keep_latest")
    checks.not_negative("checkpoint", self, "keep_every")
