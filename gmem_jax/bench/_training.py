"""Our training step on random data, and its stages alone."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmem_jax import rngs
from gmem_jax.aot import flops
from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.bench import _products
from gmem_jax.commands import programs
from gmem_jax.config import sections
from gmem_jax.diffusion import losses
from gmem_jax.models import transformer
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  setup,
  state as train_state,
  step as train_step,
)

# Rows of the bank. A step reads as many as its batch has, so a small bank costs
# the same time and saves memory.
_BANK_ROWS = 10_000


@dataclasses.dataclass
class Work:
  """A training run without a loop.

  Attributes:
    config: The run.
    network: Its network.
    state: Its state; every step donates it.
    batch: A dispatch's batch.
    bank: Unit rows.
    compiled: The compiled step.
    flops: Of a dispatch, nothing computed twice.
    products: Of a dispatch; see `_products.collect`.
  """

  config: sections.Config
  network: transformer.FlowTransformer
  state: train_state.TrainState
  batch: dict[str, jax.Array]
  bank: bank_lib.MemoryBank
  compiled: Any
  flops: float
  products: dict[_products.Product, int]

  def step(self) -> Any:
    """One dispatch; returns its metrics."""
    self.state, metrics = self.compiled(self.state, self.batch, self.bank, None)
    return metrics

  @property
  def memory(self) -> int:
    """Most bytes on the device, by the compiler's analysis."""
    found = self.compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes
    return held + found.temp_size_in_bytes - found.alias_size_in_bytes


def make(config: sections.Config) -> Work:
  """Compiles the product's own step for the first device, with random data."""
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), jax.devices()[:1])
  # The very program of --mode=compile and of training, not a copy of it.
  program = programs.training(config, mesh, _BANK_ROWS)
  memory = programs.memory_shapes(config, _BANK_ROWS, mesh)
  network = setup.network(config, memory)
  _, shapes, bank_shapes, _ = program.arguments
  rows = jax.random.normal(rngs.key(1, "init"), bank_shapes.rows.shape)
  bank = bank_lib.MemoryBank(bank_lib.normalise(rows))
  init = setup.make_init(config, memory)
  shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
  # Traced without remat: what is computed twice counts once, as in every model
  # FLOPs utilisation that is published.
  plain = dataclasses.replace(config.model, remat="none")
  once = programs.training(
    dataclasses.replace(config, model=plain), mesh, _BANK_ROWS
  )
  traced = once.jitted.trace(*once.arguments).jaxpr
  return Work(
    config=config,
    network=network.clone(constrain=sharding.place_batch(mesh)),
    state=jax.jit(init, out_shardings=shardings)(),
    batch={name: _random(name, shape) for name, shape in shapes.items()},
    bank=bank_sharding.place(bank, mesh, "replicated"),
    compiled=program.jitted.lower(*program.arguments).compile(),
    flops=flops.count(traced),
    products=_products.collect(traced),
  )


def _random(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
  """A field of a batch."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if name == "row":
    x = random.integers(0, _BANK_ROWS, shape.shape).astype(shape.dtype)
  else:
    x = random.standard_normal(shape.shape, np.float32).astype(shape.dtype)
  return jax.device_put(x, shape.sharding)


def draws(work: Work) -> train_step.Draws:
  """Draws of one step, without dropout."""
  first = {name: x[0] for name, x in work.batch.items()}
  x1 = first["latent"]
  noise = jax.random.normal(rngs.key(3, "init"), x1.shape)
  t = jax.random.uniform(rngs.key(4, "init"), x1.shape[:1])
  snippet = cast(jax.Array, bank_lib.snippets(work.bank, first["row"]))
  return train_step.Draws(x1, noise, t, snippet, first.get("tokens"), None)


def make_stages(
  work: Work, drawn: train_step.Draws
) -> dict[str, Callable[[], Any]]:
  """Parts of a step, each compiled alone, on the run's present state.

  Returns:
    "forward": () -> loss; "gradient": () -> (loss, gradients); "update": () ->
    (parameters, optimizer, average), from zero gradients.
  """
  config, network = work.config, work.network
  project = config.loss.projection_weight > 0
  tx = train_state.make_optimizer(config.optim)

  def loss_fn(params, drawn):
    def predict(x, t):
      out = network.apply(
        {"params": params}, x, t, drawn.snippet, project=project
      )
      return cast(tuple[Any, Any], out if project else (out, None))

    return losses.flow_loss(
      config.loss, predict, drawn.x1, drawn.x0, drawn.t, drawn.tokens
    )[0]

  def update(state, grads):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = config.train.ema_decay
    return params, opt_state, train_state.update_ema(state.ema, params, decay)

  forward = jax.jit(loss_fn)
  gradient = jax.jit(jax.value_and_grad(loss_fn))
  updated = jax.jit(update)
  # The update's time does not depend on the gradients' values.
  grads = jax.tree.map(jnp.zeros_like, work.state.params)
  return {
    "forward": lambda: forward(work.state.params, drawn),
    "gradient": lambda: gradient(work.state.params, drawn),
    "update": lambda: updated(work.state, grads),
  }
