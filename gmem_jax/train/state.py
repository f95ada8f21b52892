"""The training state: everything that a step changes."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gmem_jax import rngs
from gmem_jax.models import conditioning, transformer
from gmem_jax.train import optimizer as optimizer_lib


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
  if transformer.uses_adaln(network.conditioning):
    snippet = jnp.zeros((1, network.snippet_dim))
  if transformer.uses_cross(network.conditioning):
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

  return jax.tree.map(average, ema, params, optimizer_lib.is_trained(params))
