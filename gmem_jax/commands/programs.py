"""The training step and the sampler of a config, on shapes alone.

Neither data nor weights are needed, nor the machine: `--mode=compile` and the
benches compile what these give.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gmem_jax import rngs
from gmem_jax.aot import examine
from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.models import conditioning
from gmem_jax.models.encoders import patch_pca, protocols, vae
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib, source as source_lib
from gmem_jax.train import run as run_lib, setup

# Width of a feature and of a token, of both feature encoders.
FEATURE_WIDTH = 768


def training(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The training step, on shapes.

  The bytes of a device, if known, decide where the bank goes if
  `bank.placement` is "auto".

  Raises:
    ValueError: If the batch or its parts do not divide over the mesh.
  """
  size, k = config.train.batch_size, config.train.steps_per_dispatch
  setup.check_batch(config, mesh)
  memory = memory_shapes(config, bank_rows, mesh, device_memory)
  shapes = jax.eval_shape(setup.make_init(config, memory))
  shardings = sharding.state_shardings(shapes, mesh)
  state = sharding.abstract(shapes, shardings)
  batch = _batch(config, memory, mesh)
  step = run_lib.jit_step(
    config,
    setup.network(config, memory),
    memory.stats,
    mesh,
    shardings,
    memory.bank,
    setup.make_retrieve(config, memory.bank),
  )
  searched = conditioning.uses_cross(config.model.conditioning)
  steps = "training step" if k == 1 else f"{k} training steps"
  return examine.Program(
    f"{steps}, batch {size}",
    step,
    # No encoder: the batch has latents, not pixels.
    (state, batch, memory.bank, None),
    {
      "parameters": state.params,
      "moving average": state.ema,
      "optimizer": state.opt_state,
      "batch": batch,
      "searched bank" if searched else "bank": memory.bank,
    },
  )


def _batch(
  config: sections.Config, memory: setup.RunMemory, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The fields of a dispatch's batch."""
  where = sharding.batch_sharding(mesh, steps_axis=True)
  leading = (config.train.steps_per_dispatch, config.train.batch_size)

  def field(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=where)

  batch = {
    "latent": field(jnp.float32, *memory.latent_shape),
    "row": field(jnp.int32),
  }
  if memory.token_dim:
    side = memory.latent_shape[0] // config.model.patch
    batch["tokens"] = field(jnp.float32, side**2, memory.token_dim)
  return batch


def sampling(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The sampler, from noise to uint8 images, on shapes; see `training`."""
  memory = memory_shapes(config, bank_rows, mesh, device_memory)
  # The projector is left out: only training uses it.
  memory = dataclasses.replace(memory, token_dim=0)
  sampler = source_lib.make_sampler(config, memory, mesh)
  weights = jax.eval_shape(
    lambda: sampler_lib.SampleWeights(
      params=setup.make_init(config, memory)().params,
      tokenizer=load_encoders.decoder(
        _tokenizer(config), config.sample.decode_dtype
      ),
      stats=memory.stats,
    )
  )
  everywhere = sharding.replicated(mesh)
  weights = sharding.abstract(
    weights, jax.tree.map(lambda _: everywhere, weights)
  )
  weights = dataclasses.replace(weights, bank=memory.unit)
  count, batch = sampler.call_size, sharding.batch_sharding(mesh)
  numbers = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=batch)
  features = jax.ShapeDtypeStruct(
    (count, FEATURE_WIDTH), jnp.float32, sharding=batch
  )
  root = sharding.abstract(jax.eval_shape(lambda: rngs.root(0)), everywhere)
  parts = {"parameters": weights.params, "tokenizer": weights.tokenizer}
  if memory.unit is not None:
    parts["searched bank"] = memory.unit
  return examine.Program(
    f"sampler, {count} images",
    sampler.jitted,
    (weights, root, numbers, features, numbers),
    parts,
  )


def memory_shapes(
  config: sections.Config,
  bank_rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None = None,
) -> setup.RunMemory:
  """A run's memory whose bank is shapes alone; see `training`."""
  side = config.encoder.image_size
  if config.encoder.tokenizer == "identity":
    shape = (side, side, _channels(config))
  elif config.encoder.tokenizer == "patch_pca":
    side //= config.encoder.tokenizer_patch
    shape = (side, side, config.encoder.tokenizer_channels)
  else:
    network = vae.VARIANTS[config.encoder.tokenizer]
    side //= network.downsampling
    shape = (side, side, network.latent_channels)
  bank = _bank_shapes(config, bank_rows, mesh, device_memory)
  return setup.RunMemory(
    bank=bank,
    info=bank_lib.BankInfo(bank_rows, FEATURE_WIDTH, "", "", "", ""),
    stats=protocols.LatentStats(jnp.zeros(shape[2]), jnp.ones(shape[2])),
    latent_shape=shape,
    token_dim=FEATURE_WIDTH if config.loss.projection_weight else 0,
    unit=bank if conditioning.uses_cross(config.model.conditioning) else None,
  )


def _bank_shapes(
  config: sections.Config,
  rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None,
) -> bank_lib.MemoryBank:
  """The shapes of a bank as a run stores and places it."""
  vector = jax.ShapeDtypeStruct((rows,), jnp.float32)
  scaled = config.bank.storage == "int8"
  bank = bank_lib.MemoryBank(
    jax.ShapeDtypeStruct((rows, FEATURE_WIDTH), jnp.dtype(config.bank.storage)),
    scales=vector if scaled else None,
    residuals=vector if scaled else None,
  )
  where = bank_sharding.choose(bank, mesh, config.bank.placement, device_memory)
  # The same padding as of `bank.sharding.place` and `setup.lookup_bank`, which
  # need arrays.
  multiple = 1 if where.is_fully_replicated else mesh.size
  if conditioning.uses_cross(config.model.conditioning):
    multiple *= 8
  padding = -rows % multiple

  def padded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape = (rows + padding, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

  return dataclasses.replace(jax.tree.map(padded, bank), padding=padding)


def _channels(config: sections.Config) -> int:
  """Channels of the images; digits are grey."""
  return 1 if config.data.source == "digits" else 3


def _tokenizer(config: sections.Config) -> protocols.Tokenizer:
  """The tokenizer, with fresh weights: only their shapes are used."""
  name, side = config.encoder.tokenizer, config.encoder.image_size
  if name == "identity":
    return protocols.IdentityTokenizer()
  if name == "patch_pca":
    patch = config.encoder.tokenizer_patch
    mean = jnp.zeros(patch**2 * _channels(config))
    basis = jnp.zeros((len(mean), config.encoder.tokenizer_channels))
    return patch_pca.PatchPCATokenizer(name, patch, mean, basis)
  network = vae.VARIANTS[name]
  images = jnp.zeros((1, side, side, 3))
  variables = network.init(rngs.key(config.seed, "init"), images)
  return vae.VAETokenizer(
    name=name, network=network, params=variables["params"]
  )
