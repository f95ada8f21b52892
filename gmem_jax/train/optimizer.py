"""The optimizer: clip by global norm, then AdamW (as published)."""

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

# Parameters that are kept in checkpoints but never trained.
FROZEN = re.compile(r"(^|/)pos_embed$")
# Added to the gradient's norm before the clip divides by it, as PyTorch does.
CLIP_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Settings of the optimizer.

  Attributes:
    learning_rate: Peak learning rate.
    schedule: "constant" (published), or "cosine" down to zero.
    warmup_steps: Steps of linear warm-up from zero; 0 for none.
    decay_steps: Step at which the cosine reaches zero; unused by "constant".
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
    for field in ("learning_rate", "eps", "clip_norm"):
      if not getattr(self, field) > 0:
        raise ValueError(f"optim.{field}={getattr(self, field)}: must be > 0")
    for field in ("b1", "b2"):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(
          f"optim.{field}={getattr(self, field)}: must lie in [0, 1)"
        )
    if self.warmup_steps < 0 or self.weight_decay < 0:
      raise ValueError(
        "optim.warmup_steps and optim.weight_decay must not be negative"
      )
    if self.schedule == "cosine" and self.decay_steps <= self.warmup_steps:
      raise ValueError(
        f"optim.decay_steps={self.decay_steps} must exceed"
        f" optim.warmup_steps={self.warmup_steps}"
      )


def learning_rate(config: OptimConfig) -> optax.Schedule:
  """The learning rate as a function of the step.

  Args:
    config: Settings of the optimizer.

  Returns:
    step -> learning rate.
  """
  if config.schedule == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, config.warmup_steps, config.decay_steps
    )
  if config.warmup_steps:
    return optax.warmup_constant_schedule(
      0.0, config.learning_rate, config.warmup_steps
    )
  return optax.constant_schedule(config.learning_rate)


def is_trained(params: Any) -> Any:
  """Marks the trained parameters.

  Args:
    params: A pytree of parameters.

  Returns:
    The same tree of booleans: False where the parameter is frozen.
  """

  def one(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return not FROZEN.search(name)

  return jax.tree_util.tree_map_with_path(one, params)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
  """Scales gradients by min(1, largest / (norm + 1e-6)).

  optax's own clip has no such term; near the threshold the two differ by 1e-6
  of the gradient.

  Args:
    largest: Largest global norm that passes unchanged.

  Source: the published training loop (PyTorch's clip_grad_norm_).
  """

  def update(updates, state, params=None):
    del params
    norm = optax.tree.norm(updates)
    factor = jnp.minimum(1.0, largest / (norm + CLIP_EPS))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """Builds the optimizer.

  Args:
    config: Settings of the optimizer.

  Returns:
    Clip by global norm, then AdamW. A frozen parameter's gradient is zero, so
    its update is too; only weight decay needs the mask.

  Source: the published training settings: AdamW 2e-4, betas 0.9 / 0.95,
    no decay, clip at 1.
  """
  return optax.chain(
    clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=is_trained,
    ),
  )
