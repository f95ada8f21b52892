"""Where a memory bank lies: whole on every device, or its rows split.

A row is the same bit for bit either way. Split rows are zeros-padded so that
they divide evenly; reading them costs one all-reduce of what was read.
"""

import dataclasses
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gmem_jax.bank import bank as bank_lib, sharded_lookup as placement_lib
from gmem_jax.config import networks
from gmem_jax.parallel import sharding

# Rows go to all devices, whatever the axes mean to the network.
ROWS = P(sharding.AXES)

# "auto" splits a bank that takes more than this share of a device's memory:
# the rest is for parameters, optimizer and activations.
SHARE = 1 / 8


def bank_sharding(
  bank: bank_lib.Bank, mesh: Mesh, placement: networks.Placement
) -> NamedSharding:
  """Decides where a bank's arrays go on the devices of this process.

  Args:
    bank: The bank, anywhere.
    mesh: The devices.
    placement: As configured. A low-rank bank is small, and never split.

  Returns:
    The sharding of all of its arrays.
  """
  return choose(bank, mesh, placement, memory_limit(mesh.local_devices[0]))


def choose(
  bank: bank_lib.Bank,
  mesh: Mesh,
  placement: networks.Placement,
  limit: int | None,
) -> NamedSharding:
  """Decides where a bank's arrays go.

  Args:
    bank: The bank, or its shapes.
    mesh: The devices, which need not be here.
    placement: As configured. A low-rank bank is small, and never split.
    limit: Bytes that arrays may take on a device; None if that is unknown.

  Returns:
    The sharding of all of its arrays.
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
  """Bytes that arrays may take on a device.

  Args:
    device: The device.

  Returns:
    None where it does not tell, as CPUs: there, what one device holds is no
    less than what all hold.
  """
  return (device.memory_stats() or {}).get("bytes_limit")


def place(
  bank: bank_lib.Bank, mesh: Mesh, placement: networks.Placement
) -> Any:
  """Puts a bank on the devices of a mesh.

  Args:
    bank: The bank, on the host (in every process) or on one device.
    mesh: The devices.
    placement: As configured.

  Returns:
    The bank, of the same class; padded if its rows are split.
  """
  bank = bank_lib.on_host(bank)
  where = bank_sharding(bank, mesh, placement)
  if isinstance(bank, bank_lib.LowRankBank) or not len(where.spec):
    return sharding.place(bank, where)
  padding = -bank.size % mesh.size

  def pad(x: np.ndarray) -> jax.Array:
    last = x.shape[0]

    def piece(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(last + padding)
      rows = x[start:stop]
      zeros = np.zeros((stop - start - len(rows), *x.shape[1:]), x.dtype)
      return np.concatenate([rows, zeros]) if len(zeros) else rows

    shape = (last + padding, *x.shape[1:])
    return jax.make_array_from_callback(shape, where, piece)

  return dataclasses.replace(jax.tree.map(pad, bank), padding=padding)


def sharding_of(bank: bank_lib.Bank) -> jax.sharding.Sharding:
  """Where a bank's arrays are: one sharding for all of them.

  Args:
    bank: The bank, on devices.
  """
  return jax.tree.leaves(bank)[0].sharding


def lookup_placement(bank: bank_lib.Bank) -> placement_lib.Placement | None:
  """Where a lookup in a bank finds its rows.

  Args:
    bank: The bank, on devices.

  Returns:
    For `lookup.nearest`; None for a bank on a single device.
  """
  where = sharding_of(bank)
  if not isinstance(where, NamedSharding) or where.mesh.size == 1:
    return None
  rows = sharding.AXES if len(where.spec) else ()
  return placement_lib.Placement(cast(Mesh, where.mesh), rows=rows)


def read_rows(bank: bank_lib.Bank, rows: np.ndarray) -> np.ndarray:
  """Features of some rows on the host, of every process.

  Args:
    bank: The bank, on devices or on the host.
    rows: [n] row numbers in [0, m).

  Returns:
    float32 [n, d].
  """
  where = getattr(jax.tree.leaves(bank)[0], "sharding", None)
  if not isinstance(where, NamedSharding):
    return np.asarray(bank_lib.features(bank, rows))
  everywhere = NamedSharding(where.mesh, P())
  read = jax.jit(bank_lib.features, out_shardings=everywhere)
  return np.asarray(read(bank, jax.device_put(rows, everywhere)))


def to_save(bank: bank_lib.Bank) -> bank_lib.Bank:
  """A bank as it is kept on disk: without padding.

  Args:
    bank: The bank, on devices or on the host.

  Returns:
    The bank itself, or if it is padded, a copy on the host of every process.
  """
  if isinstance(bank, bank_lib.LowRankBank) or not bank.padding:
    return bank
  if not bank.rows.is_fully_addressable:
    bank = jax.tree.map(
      lambda x: multihost_utils.process_allgather(x, tiled=True), bank
    )
  return bank_lib.on_host(bank)
