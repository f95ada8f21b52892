"""The training state: everything that a step changes."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gmem_jax.train import optimizer as optimizer_lib


@flax.struct.dataclass
class TrainState:
  """What a checkpoint holds.

  Its leaves are arrays, or their shapes or shardings, hence untyped.

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
  init_params: Callable[[], Any], tx: optax.GradientTransformation
) -> Callable[[], TrainState]:
  """Makes the function that creates the state at step 0.

  It is pure, so that `jax.eval_shape` gives the shapes and `jax.jit` with
  output shardings creates each shard on its own device.

  Args:
    init_params: () -> parameters.
    tx: The optimizer.

  Returns:
    () -> TrainState, the average starting as a copy of the parameters.
  """

  def init() -> TrainState:
    params = init_params()
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      ema=jax.tree.map(jnp.copy, params),
      opt_state=tx.init(params),
    )

  return init


def update_ema(ema: Any, params: Any, decay: float) -> Any:
  """Moves the average towards the parameters.

  Frozen parameters are copied: averaging equal float32 numbers drifts by
  rounding, and the published averages show it.

  Args:
    ema: The average.
    params: The parameters after this step.
    decay: Weight of the old average, in [0, 1).

  Returns:
    decay * ema + (1 - decay) * params.
  """
  return jax.tree.map(
    lambda e, p, trained: e * decay + p * (1 - decay) if trained else p,
    ema,
    params,
    optimizer_lib.is_trained(params),
  )
