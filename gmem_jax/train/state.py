"""The training state: parameters, their average, and the optimizer's state.

The optimizer clips by global norm, then applies AdamW, as published.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from gmem_jax import rngs
from gmem_jax.config import training
from gmem_jax.models import conditioning, transformer

# Parameters that checkpoints hold but nothing trains: published files have the
# sin-cos position table among the parameters.
FROZEN = re.compile(r"(^|/)pos_embed$")
# Added to the gradient's norm before the clip divides by it, as PyTorch does.
CLIP_EPS = 1e-6


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds.

  The leaves are arrays, or their shapes or shardings, hence `Any`.

  Attributes:
    step: Steps taken, int32; it alone addresses data, keys and schedule.
    params: The network's parameters.
    ema: Their exponential moving average, float32.
    opt_state: The optimizer's state.
  """

  step: Any
  params: Any
  ema: Any
  opt_state: Any


def make_init(
  network: transformer.FlowTransformer,
  latent_shape: tuple[int, int, int],
  tx: optax.GradientTransformation,
  seed: int,
) -> Callable[[], TrainState]:
  """Makes the function that creates the state at step 0.

  It is pure, so that `jax.eval_shape` gives the shapes and `jax.jit` with
  output shardings creates each shard on its own device.
  """
  return lambda: at_start(init_params(network, latent_shape, seed), tx)


def at_start(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """The state at step 0; the average begins at the parameters, as published."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # Copied, as the donated state must not hold one buffer twice.
    ema=jax.tree.map(jnp.copy, params),
    opt_state=tx.init(params),
  )


def init_params(
  network: transformer.FlowTransformer,
  latent_shape: tuple[int, int, int],
  seed: int,
) -> Any:
  """Draws a network's parameters."""
  snippet = neighbours = None
  # Linen creates the parameters of the inputs that it sees.
  if conditioning.uses_adaln(network.conditioning):
    snippet = jnp.zeros((1, network.snippet_dim))
  if conditioning.uses_cross(network.conditioning):
    neighbours = conditioning.Neighbours(
      jnp.zeros((1, 1, network.snippet_dim)), jnp.zeros((1, 1))
    )
  x, t = jnp.zeros((1, *latent_shape)), jnp.zeros((1,))
  key = rngs.key(seed, "init")
  return network.init(key, x, t, snippet, neighbours)["params"]


def update_ema(ema: Any, params: Any, decay: float) -> Any:
  """Moves the average: decay * ema + (1 - decay) * params, without warm-up."""

  # The published code averages frozen parameters too. In float32 an average of
  # equal numbers drifts by rounding: up to 1.6e-4 below the position table.
  def average(e, p, trained):
    return e * decay + p * (1 - decay) if trained else p

  return jax.tree.map(average, ema, params, is_trained(params))


def learning_rate(config: training.OptimConfig) -> optax.Schedule:
  """The learning rate as a function of the steps taken before.

  Raises:
    ValueError: If it is not said where a cosine ends.
  """
  if config.schedule == "cosine":
    if not config.decay_steps:
      raise ValueError(
        "config.optim.decay_steps=0: config.resolve puts config.train.steps in"
        " its place"
      )
    # A run that ends in its warm-up never gets to the cosine, which optax
    # nevertheless wants a step of.
    end = max(config.decay_steps, config.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, config.warmup_steps, end
    )
  if config.warmup_steps:
    return optax.warmup_constant_schedule(
      0.0, config.learning_rate, config.warmup_steps
    )
  return optax.constant_schedule(config.learning_rate)


def learning_rates(
  config: training.OptimConfig, steps: int
) -> Float[np.ndarray, " steps"]:
  """The learning rate of each of the first steps, on the host."""
  schedule = learning_rate(config)
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


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
