"""The optimizer: clip by global norm, then AdamW (as published)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gmem_jax.config import training

# Parameters that checkpoints hold but nothing trains: published files have the
# sin-cos position table among the parameters.
FROZEN = re.compile(r"(^|/)pos_embed$")
# Added to the gradient's norm before the clip divides by it, as PyTorch does.
CLIP_EPS = 1e-6


def learning_rate(config: training.OptimConfig) -> optax.Schedule:
  """The learning rate as a function of the step."""
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
  """Marks the trained parameters: a tree of booleans like `params`."""

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


def make_optimizer(
  config: training.OptimConfig,
) -> optax.GradientTransformation:
  """Chains the clip and AdamW.

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
      # Only decay needs the mask: the network stops the gradient of what is
      # frozen, so that Adam's update of it is zero.
      mask=is_trained,
    ),
  )
