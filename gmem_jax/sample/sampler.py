"""From noise to uint8 images; image i depends on (seed, i) alone.

Shapes: b images of a call, n images in all, h w c latent, H W pixels, d snippet
width, m bank rows.
"""

import dataclasses
import functools
from typing import Any, cast, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, UInt8

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import guidance, samplers, schedule
from gmem_jax.models import conditioning, retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding


@flax.struct.dataclass
class SampleWeights:
  """All arrays between noise and pixels.

  Attributes:
    params: The network's parameters.
    tokenizer: Decodes the latents; a pytree.
    stats: Undo the normalisation of the latents.
    bank: Unit rows to look neighbours up in, or None for a network without
      cross-attention.
  """

  params: Any
  tokenizer: Any
  stats: protocols.LatentStats
  bank: bank_lib.MemoryBank | None = None


class Flow(NamedTuple):
  """Arguments of `samplers.sample`.

  Attributes:
    network: (x, t) -> prediction, with the condition.
    increments: The normal draws of an SDE's step.
    pair: (x, t) -> predictions with the condition and without it.
  """

  network: guidance.Network
  increments: samplers.Noise
  pair: guidance.NetworkPair


def sampling_network(
  network: transformer.FlowTransformer, dtype: str
) -> transformer.FlowTransformer:
  """A network as it samples: with matmuls in `dtype`, however it is trained."""
  return network.clone(
    dtype=dtype,
    residual_dtype="float32",
    # The scales of 8-bit matmuls are those of a batch: with them, an image
    # would depend on those beside it.
    float8=False,
    # cuDNN's kernels take no float32.
    attention="auto" if dtype == "float32" else network.attention,
  )


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Makes images from weights and snippets; compiled once, at its first call.

  Compilers choose kernels by shape, and kernels differ in the last bit. So all
  calls have one shape, however many images are asked for, and are filled up.
  Within a kernel, rows at the edge of a block may be rounded otherwise. So an
  image has slot i modulo `device_batch` of its device, whatever is beside it.
  On a CPU, XLA also splits long sums by its number of threads: that of the
  cores, or of NPROC, and at least that of the (fake) devices.

  Attributes:
    network: With its projector or without; sampling does not run it.
    config: Method, steps and guidance.
    latent_shape: h, w, c.
    mesh: The devices; images are split over the axes of the batch.
    device_batch: Images of each device in one call.
    dtype: Of the network's matmuls, whatever it was trained in.
    precision: See `config.sections.SampleConfig`.
    retrieve: Looks up what a network with cross-attention attends to, in the
      weights' bank; None for other networks.
    first_release: Whether the network is of GMem's first release, which counts
      time from the data (t=0) and scales pixels by 127.5.
  """

  network: transformer.FlowTransformer
  config: schedule.SamplerConfig
  latent_shape: tuple[int, int, int]
  mesh: Mesh
  device_batch: int
  dtype: str = "float32"
  precision: str = "high"
  retrieve: retrieval.RetrieveFn | None = None
  first_release: bool = False

  def __call__(
    self,
    weights: SampleWeights,
    seed: int,
    numbers: np.ndarray,
    features: np.ndarray,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """Makes images; all arguments except the weights are on the host.

    Args:
      weights: On any device; `place` first saves the copy at each call.
      seed: Image i's noise depends on (seed, i) alone.
      numbers: [n] global numbers of the images, each once.
      features: [n d] snippets to make them from, of any length.
      rows: [n] bank rows that the features come from, `retrieval.OUTSIDE` for
        those that are not in the bank; by default none is.

    Returns:
      uint8 images [n H W channels].
    """
    if rows is None:
      rows = np.full(len(numbers), retrieval.OUTSIDE)
    where = NamedSharding(self.mesh, sharding.BATCH)
    # A no-op for weights that are placed already.
    weights, calls = self.place(weights), numbers // self.call_size
    root = rngs.root(seed)
    images: Any = None
    for call in np.unique(calls):
      members = np.flatnonzero(calls == call)
      slots = numbers[members] % self.call_size
      # Slots of images that are not asked for repeat one that is.
      part = np.full(self.call_size, members[-1])
      part[slots] = members
      pixels = self.jitted(
        weights,
        root,
        sharding.place(np.asarray(numbers[part], np.int32), where),
        sharding.place(np.asarray(features[part], np.float32), where),
        sharding.place(np.asarray(rows[part], np.int32), where),
      )
      made = jax.device_get(pixels)[slots]
      if images is None:
        images = np.empty((len(numbers), *made.shape[1:]), made.dtype)
      images[members] = made
    return images

  def place(self, weights: SampleWeights) -> SampleWeights:
    """Copies weights to all devices; the bank stays where it is."""
    bare: Any = dataclasses.replace(weights, bank=None)
    placed = sharding.place(bare, sharding.replicated(self.mesh))
    return dataclasses.replace(placed, bank=weights.bank)

  @property
  def call_size(self) -> int:
    """Images of one call, on all devices."""
    return self.device_batch * sharding.batch_ways(self.mesh)

  @functools.cached_property
  def jitted(self) -> Any:
    """(weights, root, numbers [b], features [b d], rows [b]) -> images, jitted.

    The root is `rngs.root` of the seed: one program serves all seeds. Numbers
    and rows are int32, the images uint8 [b H W channels], and b is `call_size`.
    """
    # Not left to the partitioner: each device runs the very program of a single
    # one, so an image does not depend on the number of devices.
    split = jax.shard_map(
      self._images,
      mesh=self.mesh,
      in_specs=(P(), P(), *(sharding.BATCH,) * 3),
      out_specs=sharding.BATCH,
      check_vma=False,
    )

    def run(weights, root, numbers, features, rows):
      neighbours = None
      if self.retrieve is not None:
        # Outside of the map, as the bank's rows may be split over the devices.
        unit = bank_lib.normalise(features)
        neighbours = self.retrieve(weights.bank, unit, rows)
      bare = dataclasses.replace(weights, bank=None)
      return split(bare, root, numbers, features, neighbours)

    return jax.jit(run, out_shardings=sharding.replicated(self.mesh))

  def _images(
    self,
    weights: SampleWeights,
    root: Key[Array, ""],
    numbers: Int[Array, " b"],
    features: Float[Array, "b d"],
    neighbours: conditioning.Neighbours | None,
  ) -> UInt8[Array, "b H W channels"]:
    """One device's images."""
    with jax.default_matmul_precision(self.precision):
      condition = self.condition(features, neighbours)
      x1 = self._integrate(weights.params, root, condition, numbers)
    return self.decode(weights, x1)

  def condition(
    self,
    features: Float[Array, "b d"],
    neighbours: conditioning.Neighbours | None,
  ) -> tuple[Array | None, conditioning.Neighbours | None]:
    """What the network is conditioned on: unit snippets, and neighbours."""
    snippet = None
    if conditioning.uses_adaln(self.network.conditioning):
      snippet = bank_lib.normalise(features)
    return snippet, neighbours

  def decode(
    self, weights: SampleWeights, x1: Float[Array, "b h w c"]
  ) -> UInt8[Array, "b H W channels"]:
    """Turns normalised latents into images."""
    latents = protocols.denormalise_latents(x1, weights.stats)
    pixels = weights.tokenizer.decode(latents)
    return protocols.to_uint8(pixels, 127.5 if self.first_release else 128.0)

  def _integrate(
    self,
    params: Any,
    root: Key[Array, ""],
    condition: Any,
    numbers: Int[Array, " b"],
  ) -> Float[Array, "b h w c"]:
    """Integrates from noise to normalised latents."""
    flow = self.flow(params, root, condition, numbers)
    noise = self.noise(root, numbers)
    return samplers.sample(
      self.config, flow.network, noise, flow.increments, flow.pair
    )

  def flow(
    self,
    params: Any,
    root: Key[Array, ""],
    condition: Any,
    numbers: Int[Array, " b"],
  ) -> "Flow":
    """What `samplers` integrates, for one device's images."""
    network = sampling_network(self.network, self.dtype)
    params = network.ready(params)

    def apply(x, t, condition):
      def bound(x, t):
        velocity = network.apply({"params": params}, x, t, *condition)
        return cast(jax.Array, velocity)

      turned = self.first_release
      return (samplers.turn_time(bound) if turned else bound)(x, t)

    def pair(x, t):
      # Guidance drops the whole memory: snippet, neighbours and their scores.
      null = jax.tree.map(jnp.zeros_like, condition)
      return guidance.pair(apply, x, t, condition, null)

    def increments(step):
      # By number and step: neither batch nor device count changes a draw.
      def one(number):
        key = rngs.key(root, "sample/kick", number, step)
        return jax.random.normal(key, self.latent_shape)

      return jax.vmap(one)(numbers)

    return Flow(lambda x, t: apply(x, t, condition), increments, pair)

  def noise(
    self, seed: int | Key[Array, ""], numbers: Int[Array, " b"]
  ) -> Float[Array, "b h w c"]:
    """The noise that each image begins with; for `seed` see `rngs.key`."""
    keys = rngs.keys(seed, "sample/noise", numbers)
    return jax.vmap(lambda k: jax.random.normal(k, self.latent_shape))(keys)
