"""Features of images, on all devices.

Shapes: n images, H W ch pixels, f feature width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gmem_jax.evaluate import networks as networks_lib, sources
from gmem_jax.parallel import sharding


class Extractor:
  """Some networks, compiled for one number of images on each device.

  Attributes:
    networks: The networks by name.
    mesh: The devices.
    batch: Images in one call, over all devices.
  """

  def __init__(
    self,
    networks: Sequence[networks_lib.Network],
    mesh: Mesh,
    device_batch: int,
  ):
    """Puts the weights on every device.

    Args:
      networks: The networks.
      mesh: The devices; a batch is split over its axes for it.
      device_batch: Images in one call on each device.
    """
    self.networks = {network.name: network for network in networks}
    self.mesh = mesh
    self.batch = device_batch * sharding.batch_ways(mesh)
    everywhere = sharding.replicated(mesh)
    self._at = NamedSharding(mesh, sharding.BATCH)
    self._params = sharding.place([n.params for n in networks], everywhere)

    @functools.partial(jax.jit, out_shardings=everywhere)
    @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=(sharding.P(), sharding.BATCH),
      out_specs=sharding.BATCH,
      check_vma=False,
    )
    def apply(params, pixels):
      found = {}
      for network, own in zip(networks, params, strict=True):
        found |= network.apply(own, pixels)
      return {name: x.astype(jnp.float32) for name, x in found.items()}

    self._apply = apply

  @property
  def widths(self) -> dict[str, int]:
    """Width of each feature."""
    found = {}
    for network in self.networks.values():
      found |= network.widths
    return found

  def info(self) -> dict[str, Any]:
    """What identifies the networks, by name; JSON."""
    return {name: n.info for name, n in self.networks.items()}

  def check(self, shape: tuple[int, int, int]) -> None:
    """Refuses images that a network cannot read, before anything is computed.

    Args:
      shape: H, W, ch.

    Raises:
      ValueError: With the reason.
    """
    pixels = jax.ShapeDtypeStruct((self.batch, *shape), jnp.uint8)
    jax.eval_shape(self._apply, self._params, pixels)

  def load(
    self, numbers: np.ndarray, source: sources.Source
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch, each host what its own devices need of it.

    Args:
      numbers: Numbers of at most `batch` images.
      source: The images.

    Returns:
      (sorted image numbers [m], their pixels uint8 [m H W ch]).
    """
    filled = np.resize(numbers, self.batch)
    where = self._at.addressable_devices_indices_map((self.batch,))
    slices = [index[0] for index in where.values() if index]
    own = np.unique(np.concatenate([filled[s] for s in slices]))
    if source.collective:
      own = np.unique(filled)
    return own, source.read(own)

  def start(
    self, numbers: np.ndarray, own: np.ndarray, pixels: np.ndarray
  ) -> Callable[[], dict[str, np.ndarray]]:
    """Sends a batch to the devices without waiting for them.

    Args:
      numbers: Numbers of at most `batch` images.
      own: What `load` gave for them.
      pixels: The same.

    Returns:
      A function that waits for the features, name -> float32 [n f], which are
      then on every host.
    """
    filled = np.resize(numbers, self.batch)

    def rows(index):
      return pixels[np.searchsorted(own, filled[index[0]])]

    shape = (self.batch, *pixels.shape[1:])
    batch = jax.make_array_from_callback(shape, self._at, rows)
    found = self._apply(self._params, batch)
    if jax.default_backend() == "cpu":
      # Two programs at once may starve each other of threads.
      jax.block_until_ready(found)
    return lambda: {
      name: np.asarray(value)[: len(numbers)] for name, value in found.items()
    }
