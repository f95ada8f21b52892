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
    batch: Images in one call, over all devices.
  """

  def __init__(
    self,
    networks: Sequence[networks_lib.FeatureNetwork],
    mesh: Mesh,
    device_batch: int,
  ):
    """Copies the weights to every device, which takes `device_batch` images."""
    self.networks = {network.name: network for network in networks}
    self.mesh = mesh
    self.batch = device_batch * sharding.batch_ways(mesh)
    everywhere = sharding.replicated(mesh)
    self._at = NamedSharding(mesh, sharding.BATCH)
    self._params = sharding.place([n.params for n in networks], everywhere)

    # Under shard_map each device runs the networks on its own images: nothing
    # is left to the partitioner, and the only collective is the last gather.
    @functools.partial(jax.jit, out_shardings=everywhere)
    @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=(sharding.P(), sharding.BATCH),
      out_specs=sharding.BATCH,
      check_vma=False,
    )
    def apply(all_params, pixels):
      features = {}
      for network, params in zip(networks, all_params, strict=True):
        features |= network.apply(params, pixels)
      return {name: x.astype(jnp.float32) for name, x in features.items()}

    self._apply = apply

  @property
  def widths(self) -> dict[str, int]:
    """Width of each feature."""
    networks = self.networks.values()
    return {name: x for n in networks for name, x in n.widths.items()}

  def info(self) -> dict[str, Any]:
    """What identifies the networks, by name; JSON."""
    return {name: n.info for name, n in self.networks.items()}

  def check(self, shape: tuple[int, int, int]) -> None:
    """Refuses images H, W, ch that a network cannot read; computes nothing.

    Raises:
      ValueError: With the reason.
    """
    pixels = jax.ShapeDtypeStruct((self.batch, *shape), jnp.uint8)
    jax.eval_shape(self._apply, self._params, pixels)

  def load(
    self, numbers: np.ndarray, source: sources.ImageSource
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads at most `batch` images; each host reads what its devices need.

    Returns (sorted image numbers [m], their pixels uint8 [m H W ch]).
    """
    padded = np.resize(numbers, self.batch)
    where = self._at.addressable_devices_indices_map((self.batch,))
    slices = [index[0] for index in where.values() if index]
    local = np.unique(np.concatenate([padded[s] for s in slices]))
    if source.collective:
      local = np.unique(padded)
    return local, source.read(local)

  def start(
    self, numbers: np.ndarray, local: np.ndarray, pixels: np.ndarray
  ) -> Callable[[], dict[str, np.ndarray]]:
    """Sends a batch to the devices without waiting for them.

    `local` and `pixels` are what `load` returned for these numbers.

    Returns:
      A function that waits for the features, name -> float32 [n f], which
      every host then has.
    """
    # Filled up with its own images: another shape would be compiled anew.
    padded = np.resize(numbers, self.batch)

    def rows(index):
      return pixels[np.searchsorted(local, padded[index[0]])]

    shape = (self.batch, *pixels.shape[1:])
    batch = jax.make_array_from_callback(shape, self._at, rows)
    features = self._apply(self._params, batch)
    if jax.default_backend() == "cpu":
      # Two programs at once may starve each other of threads.
      jax.block_until_ready(features)
    return lambda: {
      name: np.asarray(x)[: len(numbers)] for name, x in features.items()
    }
