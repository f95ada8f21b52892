"""One training step, as a pure function.

(state, batch, bank) -> (state, metrics): draw t and noise, move the latent to
x_t, let the network predict the velocity from x_t, t and the example's memory
snippet, and step the optimizer and the moving average.

Shapes: b batch, h w c latent, d snippet, n tokens of width z, k steps of a
dispatch.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from gmem_jax import rngs
from gmem_jax.diffusion import losses
from gmem_jax.models import conditioning, retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.train import batch as batch_lib, state as train_state

Metrics = dict[str, Float[Array, "..."]]


@flax.struct.dataclass
class Draws:
  """One step's data and random draws.

  Attributes:
    x1: Normalised latents.
    x0: Standard normal noise.
    t: Times in [0, 1].
    snippet: Unit memory snippets, or None for a network without memory.
    tokens: The image encoder's tokens, for the projection loss, or None.
    dropout_key: Keys of the snippets' dropout, one an example; None for no
      dropout.
    neighbours: What the bank holds near the snippets, or None for a network
      without cross-attention.
  """

  x1: Float[Array, "b h w c"]
  x0: Float[Array, "b h w c"]
  t: Float[Array, " b"]
  snippet: Float[Array, "b d"] | None
  tokens: Float[Array, "b n z"] | None
  dropout_key: Key[Array, " b"] | None
  neighbours: conditioning.Neighbours | None = None


UpdateFn = Callable[
  [train_state.TrainState, Draws], tuple[train_state.TrainState, Metrics]
]
# (state, batch, bank, and for batches of pixels the frozen encoder)
StepFn = Callable[..., tuple[train_state.TrainState, Metrics]]


def make_update(
  network: transformer.FlowTransformer,
  tx: optax.GradientTransformation,
  loss_config: losses.LossConfig,
  *,
  ema_decay: float,
  accumulation: int = 1,
) -> UpdateFn:
  """Makes the part of the step that draws nothing.

  Args:
    network: The network.
    tx: The optimizer.
    loss_config: The loss.
    ema_decay: Decay of the moving average.
    accumulation: Parts of the batch whose gradients are averaged, one after the
      other; it divides the batch.

  Returns:
    (state, Draws) -> (state, metrics): gradients of the loss, optimizer, moving
    average. Metrics are scalars under `train/`.

  Source: paper §3; the published training loop.
  """
  project = loss_config.projection_weight > 0

  def loss_fn(params, draws):
    def predict(x_t, t):
      out = network.apply(
        {"params": params},
        x_t,
        t,
        draws.snippet,
        draws.neighbours,
        dropout_key=draws.dropout_key,
        project=project,
      )
      return cast(tuple[Array, Array | None], out if project else (out, None))

    return losses.flow_loss(
      loss_config, predict, draws.x1, draws.x0, draws.t, draws.tokens
    )

  grad_fn = accumulate(jax.value_and_grad(loss_fn, has_aux=True), accumulation)

  def update(state, draws):
    (loss, metrics), grads = grad_fn(state.params, draws)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "train/loss": loss,
      "train/grad_norm": optax.tree.norm(grads),
      **{f"train/{name}": value for name, value in metrics.items()},
    }
    state = train_state.TrainState(
      step=state.step + 1,
      params=params,
      ema=train_state.update_ema(state.ema, params, ema_decay),
      opt_state=opt_state,
    )
    return state, metrics

  return update


def accumulate(fn: Callable[..., Any], parts: int) -> Callable[..., Any]:
  """Lets a function see a batch in parts, and averages what it returns.

  Part j has the rows j, j + parts, … of the batch: where the batch is split
  over devices, each device keeps its own rows, and all work on every part.

  Args:
    fn: (params, batch) -> pytree of means over the batch.
    parts: Number of parts; it divides the batch.

  Returns:
    (params, batch) -> the same pytree, equal up to rounding.
  """
  if parts == 1:
    return fn

  def split(x):
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

  def accumulated(params, batch):
    leaves, structure = jax.tree.flatten(batch)

    def one(part):
      return fn(params, structure.unflatten(part))

    def add(total, part):
      return jax.tree.map(jnp.add, total, one(part)), None

    leaves = [split(x) for x in leaves]
    shapes = jax.eval_shape(one, [x[0] for x in leaves])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, leaves)
    return jax.tree.map(lambda x: x / parts, total)

  return accumulated


def make_train_step(
  network: transformer.FlowTransformer,
  tx: optax.GradientTransformation,
  loss_config: losses.LossConfig,
  stats: protocols.LatentStats,
  *,
  seed: int,
  ema_decay: float,
  accumulation: int = 1,
  retrieve: retrieval.RetrieveFn | None = None,
) -> StepFn:
  """Makes the training step.

  Args:
    network: The network.
    tx: The optimizer.
    loss_config: The loss.
    stats: Normalise the batch's latents.
    seed: Seed of the streams; with the step it addresses every random draw.
    ema_decay: Decay of the moving average.
    accumulation: See `make_update`.
    retrieve: Looks up what cross-attention attends to; the bank then has unit
      rows.

  Returns:
    (state, batch, bank, encoder=None) -> (state, metrics). The batch holds what
    `gmem_jax.train.batch` reads; of pixels, `encoder` makes the projection's
    tokens.
    Metrics are scalars under `train/`.

  Source: paper §3; the published training loop.
  """
  adaln = transformer.uses_adaln(network.conditioning)
  project = loss_config.projection_weight > 0
  update = make_update(
    network, tx, loss_config, ema_decay=ema_decay, accumulation=accumulation
  )

  def step_fn(state, batch, bank, encoder=None):
    step = state.step
    latents = batch_lib.latents(batch, seed=seed, step=step)
    x1 = protocols.normalise_latents(latents, stats)
    snippet = neighbours = None
    if network.conditioning != "none":
      snippet = batch_lib.snippets(batch, bank)
      if retrieve is not None:
        neighbours = retrieve(bank, snippet, batch["row"], step)
    draws = Draws(
      x1=x1,
      x0=jax.random.normal(rngs.key(seed, "train/noise", step), x1.shape),
      t=losses.sample_time(
        loss_config, rngs.key(seed, "train/time", step), x1.shape[0]
      ),
      snippet=snippet if adaln else None,
      tokens=batch_lib.tokens(batch, encoder) if project else None,
      dropout_key=jax.random.split(
        rngs.key(seed, "train/dropout", step), x1.shape[0]
      ),
      neighbours=neighbours,
    )
    return update(state, draws)

  return step_fn


def repeat(step_fn: StepFn) -> StepFn:
  """Makes one call take several steps.

  Args:
    step_fn: The step.

  Returns:
    The same function of batches with a leading axis [k, b, …]; its metrics
    have one value per step, [k].
  """

  def steps_fn(state, batches, bank, encoder=None):
    return jax.lax.scan(
      lambda s, batch: step_fn(s, batch, bank, encoder), state, batches
    )

  return steps_fn


def example_inputs(
  latent_shape: tuple[int, int, int],
  snippet_dim: int | None,
  kind: str = "adaln",
) -> tuple[Any, ...]:
  """Zeros of the shapes that a network is initialised with.

  Args:
    latent_shape: h, w, c.
    snippet_dim: Width of the snippet, or None without conditioning.
    kind: The network's conditioning.

  Returns:
    (x, t, snippet, neighbours) of one example.
  """
  snippet = neighbours = None
  if snippet_dim is not None and transformer.uses_adaln(kind):
    snippet = jnp.zeros((1, snippet_dim))
  if snippet_dim is not None and transformer.uses_cross(kind):
    neighbours = conditioning.Neighbours(
      jnp.zeros((1, 1, snippet_dim)), jnp.zeros((1, 1))
    )
  return jnp.zeros((1, *latent_shape)), jnp.zeros((1,)), snippet, neighbours
