"""One training step, as a pure function.

(state, batch, bank) -> (state, metrics): read the batch, draw t and noise, move
the latent to x_t, let the network predict the velocity from x_t, t and the
example's memory snippet, step the optimizer and the moving average.

Storage holds as few bytes as it can. They become float32 here, inside the
compiled step: the host neither decodes nor sends more than is stored.

Shapes: b batch, h w c latent, d snippet, n tokens of width z, k steps of a
dispatch, H W ch image.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, UInt8

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import losses
from gmem_jax.models import conditioning, retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.train import gradients, state as train_state

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, "..."]]


@flax.struct.dataclass
class Draws:
  """One step's data and random draws.

  Attributes:
    x1: Normalised latents.
    x0: Standard normal noise.
    t: Times in [0, 1].
    snippet: Unit memory snippets, or None for a network without memory.
    tokens: The image encoder's tokens for the projection loss, or None.
    dropout_key: Keys of the snippets' dropout, one per example; None for no
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
# (state, batch, bank, and for batches of pixels the feature encoder)
StepFn = Callable[..., tuple[train_state.TrainState, Metrics]]


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
  gather: Callable[[Any], Any] | None = None,
) -> StepFn:
  """Makes the training step.

  Args:
    network: The network, its activations constrained to the batch's sharding.
    tx: See `optimizer.make_optimizer`.
    loss_config: With a projection the step reads tokens, too.
    stats: Normalise the batch's latents.
    seed: With the step it addresses every random draw.
    ema_decay: See `state.update_ema`.
    accumulation: See `make_update`.
    retrieve: Looks up what cross-attention attends to; the bank then has unit
      rows.
    gather: See `make_update`.

  Returns:
    (state, batch, bank, encoder=None) -> (state, metrics). The batch holds what
    `fields` names; `encoder` turns pixels into the projection's tokens. Metrics
    are scalars under `train/`.

  Source: paper §3; the published training loop.
  """
  adaln = conditioning.uses_adaln(network.conditioning)
  project = loss_config.projection_weight > 0
  update = make_update(
    network,
    tx,
    loss_config,
    ema_decay=ema_decay,
    accumulation=accumulation,
    gather=gather,
  )

  def step_fn(state, batch, bank, encoder=None):
    step = state.step
    x1 = protocols.normalise_latents(
      latents(batch, seed=seed, step=step), stats
    )
    snippet = neighbours = None
    if network.conditioning != "none":
      snippet = snippets(batch, bank)
      if retrieve is not None:
        neighbours = retrieve(bank, snippet, batch["row"], step)
    draws = Draws(
      x1=x1,
      x0=jax.random.normal(rngs.key(seed, "train/noise", step), x1.shape),
      t=losses.sample_time(
        loss_config, rngs.key(seed, "train/time", step), x1.shape[0]
      ),
      # Pure cross-attention needs the snippet only to look up its neighbours.
      snippet=snippet if adaln else None,
      tokens=tokens(batch, encoder) if project else None,
      # One key per example: parts of an accumulated batch take theirs along.
      dropout_key=jax.random.split(
        rngs.key(seed, "train/dropout", step), x1.shape[0]
      ),
      neighbours=neighbours,
    )
    return update(state, draws)

  return step_fn


def make_update(
  network: transformer.FlowTransformer,
  tx: optax.GradientTransformation,
  loss_config: losses.LossConfig,
  *,
  ema_decay: float,
  accumulation: int = 1,
  gather: Callable[[Any], Any] | None = None,
) -> UpdateFn:
  """Makes the part of the step that draws nothing.

  It is apart so that tests can give it the draws of the published step.

  Args:
    network: See `make_train_step`, like `tx`, `loss_config` and `ema_decay`.
    tx: The optimizer.
    loss_config: The loss.
    ema_decay: Of the moving average.
    accumulation: Parts of the batch whose gradients are averaged one after the
      other; divides the batch.
    gather: Gives a device the parameters that it does not own, once for all
      parts; None leaves that to the network's blocks.

  Returns:
    (state, Draws) -> (state, metrics): gradients of the loss, optimizer, moving
    average. Metrics are scalars under `train/`.
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

  grad_fn = gradients.accumulate(
    jax.value_and_grad(loss_fn, has_aux=True), accumulation
  )
  if gather is not None:
    grad_fn = gradients.at_gathered(
      grad_fn, lambda params: network.ready(gather(network.cast(params)))
    )

  return make_descent(grad_fn, tx, ema_decay)


def make_descent(
  grad_fn: Callable[[Any, Any], Any],
  tx: optax.GradientTransformation,
  ema_decay: float,
) -> Callable[
  [train_state.TrainState, Any], tuple[train_state.TrainState, Metrics]
]:
  """Makes the part of a step that follows a gradient, whatever is trained.

  Args:
    grad_fn: (parameters, draws) -> ((loss, metrics), gradients).
    tx: See `optimizer.make_optimizer`.
    ema_decay: See `state.update_ema`.

  Returns:
    (state, draws) -> (state, metrics).
  """

  def update(state, draws):
    (loss, metrics), grads = grad_fn(state.params, draws)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "train/loss": loss,
      "train/grad_norm": optax.tree.norm(grads),  # before the clip
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


def repeat(step_fn: StepFn) -> StepFn:
  """Makes one call take several steps.

  This pays where a step takes only milliseconds: Python starts each call.

  Returns:
    The same function of batches with a leading axis [k, b, …]; its metrics
    have one value per step, [k].
  """

  def steps_fn(state, batches, bank, encoder=None):
    return jax.lax.scan(
      lambda s, batch: step_fn(s, batch, bank, encoder), state, batches
    )

  return steps_fn


def fields(
  available: Collection[str], *, conditioned: bool, project: bool
) -> tuple[str, ...]:
  """The fields of those available that the step reads; the rest stays on host.

  A `conditioned` network takes a snippet; a loss can `project`.
  """
  read = ["latent", "mean", "logvar", "row"]
  if conditioned:
    read += ["feature"]
  if project:
    read += ["tokens", "token_scales", "pixels", "mirrored"]
  return tuple(name for name in read if name in available)


def latents(batch: Batch, *, seed: int, step: Array) -> Float[Array, "b h w c"]:
  """Latents in float32, not normalised.

  The batch holds `latent`, or `mean` and `logvar` of the tokenizer's posterior,
  each [b h w c]; seed and step address the draw from it.
  """
  if "latent" in batch:
    return batch["latent"].astype(jnp.float32)
  # A new draw at every step; the published data set stores a single one.
  mean, logvar = (batch[n].astype(jnp.float32) for n in ("mean", "logvar"))
  noise = jax.random.normal(rngs.key(seed, "train/posterior", step), mean.shape)
  return mean + jnp.exp(logvar / 2) * noise


def snippets(batch: Batch, bank: bank_lib.MemoryBank) -> Float[Array, "b d"]:
  """The examples' memory snippets: unit vectors, float32.

  Args:
    batch: Holds `feature` [b d], the raw feature of the very view of the image
      (mirrored or not); or only `row` [b], the image's row of the bank.
    bank: Read by `row` alone; raw rows of any length.

  Source: the published data set, whose mirrored examples have features of
  their own; the bank holds those of the images as they are.
  """
  if "feature" in batch:
    return bank_lib.normalise(batch["feature"])
  return jnp.asarray(bank_lib.snippets(bank, batch["row"]))


def tokens(
  batch: Batch, encoder: protocols.FeatureEncoder | None
) -> Float[Array, "b n z"] | None:
  """Targets of the projection loss, float32; None if the batch has none.

  Args:
    batch: Holds `tokens` [b n z], if of int8 with `token_scales` [b n]; or
      `pixels` [b H W ch] and `mirrored` [b]; or neither.
    encoder: Makes tokens of pixels.

  Raises:
    ValueError: If the batch has pixels and there is no encoder.
  """
  if "tokens" in batch:
    targets = batch["tokens"].astype(jnp.float32)
    if "token_scales" in batch:
      targets = targets * batch["token_scales"][..., None]
    return targets
  if "pixels" not in batch:
    return None
  if encoder is None:
    raise ValueError("the batch holds pixels: the step needs the encoder")
  images = mirror(batch["pixels"], batch["mirrored"])
  return jax.lax.stop_gradient(encoder(protocols.to_float(images))[1])


def mirror(
  images: UInt8[Array, "b H W ch"], mirrored: Bool[Array, " b"]
) -> UInt8[Array, "b H W ch"]:
  """Mirrors the marked images left to right."""
  # Both views of stored pixels come from one copy, unlike stored tokens.
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
