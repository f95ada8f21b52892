"""Shapes of what a run holds, where neither data nor devices are here."""

import dataclasses

import jax
import jax.numpy as jnp

from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.models import transformer
from gmem_jax.models.encoders import protocols, vae
from gmem_jax.train import setup

# Width of a feature and of a token, of both feature encoders.
FEATURE_WIDTH = 768


def memory(
  config: sections.Config,
  bank_rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None = None,
) -> setup.Memory:
  """A memory whose bank is shapes alone.

  Args:
    config: The run; decides how the bank is stored and placed.
    bank_rows: Rows of the bank.
    mesh: The devices.
    device_memory: Bytes of a device, which decide where the bank goes if
      `bank.placement` is "auto"; None if unknown.
  """
  side = config.encoder.image_size
  if config.encoder.tokenizer == "identity":
    shape = (side, side, 1 if config.data.source == "digits" else 3)
  else:
    network = vae.VARIANTS[config.encoder.tokenizer]
    side //= network.downsampling
    shape = (side, side, network.latent_channels)
  return setup.Memory(
    bank=_bank(config, bank_rows, mesh, device_memory),
    info=bank_lib.BankInfo(bank_rows, FEATURE_WIDTH, "", "", "", ""),
    stats=protocols.LatentStats(jnp.zeros(shape[2]), jnp.ones(shape[2])),
    latent_shape=shape,
    token_dim=FEATURE_WIDTH if config.loss.projection_weight else 0,
  )


def _bank(
  config: sections.Config,
  rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None,
) -> bank_lib.MemoryBank:
  """The shapes of a bank as `assemble` stores and places it."""
  vector = jax.ShapeDtypeStruct((rows,), jnp.float32)
  scaled = config.bank.storage == "int8"
  bank = bank_lib.MemoryBank(
    jax.ShapeDtypeStruct((rows, FEATURE_WIDTH), jnp.dtype(config.bank.storage)),
    scales=vector if scaled else None,
    residuals=vector if scaled else None,
  )
  where = bank_sharding.choose(bank, mesh, config.bank.placement, device_memory)
  # As of `bank_placement.place` and `assemble.lookup_bank`.
  multiple = 1 if where.is_fully_replicated else mesh.size
  if transformer.uses_cross(config.model.conditioning):
    multiple *= 8
  padding = -rows % multiple

  def padded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape = (rows + padding, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

  return dataclasses.replace(jax.tree.map(padded, bank), padding=padding)
