"""Where a memory bank lives: whole on every device, or its rows split.

A row reads the same bit for bit either way. Split rows are padded with zeros to
divide evenly; reading some costs one all-reduce of what was read.
"""

import dataclasses
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gmem_jax.bank import bank as bank_lib, sharded_lookup
from gmem_jax.config import networks
from gmem_jax.parallel import sharding

# Rows are split over all devices, whatever the axes mean to the network: no
# arithmetic is done on rows that would favour one axis.
ROWS = P(sharding.AXES)

# "auto" splits a bank that takes more than this share of a device's memory:
# the rest is for parameters, optimizer state and activations.
SHARE = 1 / 8


def choose(
  bank: bank_lib.Bank,
  mesh: Mesh,
  placement: networks.Placement,
  limit: int | None,
) -> NamedSharding:
  """Decides where a bank's arrays go.

  Args:
    bank: The bank, or its shapes.
    mesh: Devices, which may be of a machine that is not here.
    placement: As configured. A low-rank bank is small, and never split.
    limit: Bytes that arrays may take on a device; None if unknown.

  Returns:
    One sharding for all arrays.
  """
  split = placement == "sharded"
  if placement == "auto":
    leaves = jax.tree.leaves(bank)
    nbytes = sum(x.size * x.dtype.itemsize for x in leaves)
    split = limit is not None and nbytes > SHARE * limit
  if isinstance(bank, bank_lib.LowRankBank) or mesh.size == 1 or not split:
    return sharding.replicated(mesh)
  return NamedSharding(mesh, ROWS)


def memory_limit(device: Any) -> int | None:
  """Bytes that arrays may take on a device; None if it does not say."""
  # CPU devices do not. They share the host's memory, so that splitting a bank
  # over them would save nothing.
  return (device.memory_stats() or {}).get("bytes_limit")


def place(
  bank: bank_lib.Bank, mesh: Mesh, placement: networks.Placement
) -> Any:
  """Puts a bank on the devices of a mesh.

  Args:
    bank: The bank, on the host (of every process) or on one device.
    mesh: Devices of this and perhaps other processes.
    placement: As configured.

  Returns:
    The bank, of the same class; padded if its rows are split.
  """
  bank = bank_lib.on_host(bank)
  where = choose(bank, mesh, placement, memory_limit(mesh.local_devices[0]))
  if isinstance(bank, bank_lib.LowRankBank) or not len(where.spec):
    return sharding.place(bank, where)
  padding = -bank.size % mesh.size

  def split(x: np.ndarray) -> jax.Array:
    last = x.shape[0]

    # Each device's piece is padded alone: padding the whole would copy a bank
    # of gigabytes for at most one row a device.
    def piece(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(last + padding)
      rows = x[start:stop]
      zeros = np.zeros((stop - start - len(rows), *x.shape[1:]), x.dtype)
      return np.concatenate([rows, zeros]) if len(zeros) else rows

    shape = (last + padding, *x.shape[1:])
    return jax.make_array_from_callback(shape, where, piece)

  return dataclasses.replace(jax.tree.map(split, bank), padding=padding)


def lookup_placement(
  bank: bank_lib.MemoryBank,
) -> sharded_lookup.Placement | None:
  """What `lookup.nearest` must know of a bank on devices.

  Returns:
    None for a bank on a single device.
  """
  where = bank.sharding
  if not isinstance(where, NamedSharding) or where.mesh.size == 1:
    return None
  rows = sharding.AXES if len(where.spec) else ()
  return sharded_lookup.Placement(cast(Mesh, where.mesh), rows=rows)


def read_rows(bank: bank_lib.Bank, rows: np.ndarray) -> np.ndarray:
  """Reads features from a bank anywhere to the host of every process.

  Args:
    bank: If it is on devices, all processes call this.
    rows: [n] row numbers in [0, m).

  Returns:
    float32 [n, d].
  """
  where = getattr(jax.tree.leaves(bank)[0], "sharding", None)
  if not isinstance(where, NamedSharding):
    return np.asarray(bank_lib.features(bank, rows))
  # A host reads an array only if its own devices hold all of it.
  everywhere = NamedSharding(where.mesh, P())
  read = jax.jit(bank_lib.features, out_shardings=everywhere)
  return np.asarray(read(bank, jax.device_put(rows, everywhere)))


def to_save(bank: bank_lib.Bank) -> bank_lib.Bank:
  """A bank as it is kept on disk: without padding.

  Returns:
    The bank itself, or if it is padded, a copy on the host of every process.
  """
  if isinstance(bank, bank_lib.LowRankBank) or not bank.padding:
    return bank
  # A process reads what its own devices hold; rows of others come over first.
  if not bank.rows.is_fully_addressable:
    bank = jax.tree.map(
      lambda x: multihost_utils.process_allgather(x, tiled=True), bank
    )
  return bank_lib.on_host(bank)
