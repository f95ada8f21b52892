"""Weights and snippets to images; image i depends on (seed, i) alone.

Compilers choose kernels by shape, and kernels differ in the last bit. So the
sampler is compiled for one number of images on each device, whatever the
number that is asked for, and the last call is filled up. On a CPU, XLA also
splits long sums by the size of its thread pool, which a process with more
(fake) devices has larger: between such processes the last bit may differ.

Shapes: b images, h w c latent, d snippet width, m bank rows.
"""

from collections.abc import Callable
from typing import Any, cast, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gmem_jax import retrieval, rngs, sharding
from gmem_jax.bank import bank as bank_lib, select
from gmem_jax.diffusion import guidance, samplers, sit_release
from gmem_jax.encoders import protocols
from gmem_jax.models import conditioning, transformer


@flax.struct.dataclass
class Weights:
  """All arrays between noise and bytes.

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


@runtime_checkable
class SampleFn(Protocol):
  """Makes images."""

  def __call__(
    self,
    weights: Weights,
    images: np.ndarray,
    features: np.ndarray,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """Makes images; all but the weights is on the host.

    Args:
      weights: What to make them with.
      images: Their numbers [n].
      features: What to make them of [n d]; scaled to unit length.
      rows: The bank rows [n] that the features are, `retrieval.OUTSIDE` for
        those that are none; None if all are none.

    Returns:
      uint8 images [n H W channels].
    """
    ...


def make_sample_fn(
  network: transformer.FlowTransformer,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  mesh: Mesh,
  *,
  seed: int,
  device_batch: int,
  first_release: bool = False,
  recall: retrieval.RetrievalConfig | None = None,
) -> SampleFn:
  """Makes the sampling function: one jit from noise to bytes.

  Args:
    network: The network.
    sampler: The sampler.
    latent_shape: h, w, c.
    mesh: The devices; images are split over the axes of the batch.
    seed: Image i's noise depends on (seed, i) alone.
    device_batch: Images on each device in one call.
    first_release: The network is that of the first release, which counts time
      from the data (t=0), and so is the rounding of pixels.
    recall: What a network with cross-attention attends to.

  Returns:
    The function; it is compiled once.
  """

  def some(weights, images, features, rows):
    condition = _condition(network, recall, weights.bank, features, rows)
    x0 = _noise(seed, images, latent_shape)
    x1 = _integrate(
      network,
      sampler,
      weights.params,
      condition,
      x0,
      seed,
      images,
      first_release,
    )
    latents = protocols.denormalise_latents(x1, weights.stats)
    pixels = weights.tokenizer.decode(latents)
    return protocols.to_uint8(pixels, 127.5 if first_release else 128.0)

  batch = sharding.BATCH
  compiled = jax.jit(
    jax.shard_map(
      some,
      mesh=mesh,
      in_specs=(P(), batch, batch, batch),
      out_specs=batch,
      check_vma=False,
    ),
    out_shardings=sharding.replicated(mesh),
  )
  where = NamedSharding(mesh, batch)
  together = device_batch * mesh.shape["data"] * mesh.shape["fsdp"]

  def sample(weights, images, features, rows=None):
    if rows is None:
      rows = np.full(len(images), retrieval.OUTSIDE)
    done = []
    for start in range(0, len(images), together):
      part = np.arange(start, start + together).clip(max=len(images) - 1)
      pixels = compiled(
        weights,
        jax.device_put(np.asarray(images[part], np.int32), where),
        jax.device_put(np.asarray(features[part], np.float32), where),
        jax.device_put(np.asarray(rows[part], np.int32), where),
      )
      done.append(jax.device_get(pixels)[: len(images) - start])
    return np.concatenate(done)

  return sample


def _condition(network, recall, bank, features, rows):
  """What the network is conditioned on: (snippet, neighbours), or Nones."""
  snippet = neighbours = None
  unit = bank_lib.normalise(features)
  if conditioning.uses_adaln(network.conditioning):
    snippet = unit
  if conditioning.uses_cross(network.conditioning):
    neighbours = retrieval.retrieve(recall, bank, unit, rows)
  return snippet, neighbours


def _noise(seed, images, latent_shape):
  """The noise that each image begins with."""
  keys = rngs.keys(seed, "sample/noise", images)
  return jax.vmap(lambda k: jax.random.normal(k, latent_shape))(keys)


def _integrate(
  network, sampler, params, condition, x0, seed, images, first_release
):
  """From noise to normalised latents."""

  def apply(x, t, condition):
    def bound(x, t):
      velocity = network.apply({"params": params}, x, t, *condition)
      return cast(jax.Array, velocity)

    return (sit_release.turn_time(bound) if first_release else bound)(x, t)

  def pair(x, t):
    null = jax.tree.map(jnp.zeros_like, condition)
    return guidance.pair(apply, x, t, condition, null)

  def kicks(step):
    def one(image):
      key = rngs.key(seed, "sample/kick", image, step)
      return jax.random.normal(key, x0.shape[1:])

    return jax.vmap(one)(images)

  return samplers.sample(
    sampler, lambda x, t: apply(x, t, condition), x0, kicks, pair
  )


def make_row_fn(
  seed: int, latent_shape: tuple[int, int, int], frequencies: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Makes the function by which images choose their rows from their noise.

  Args:
    seed: The sampling seed.
    latent_shape: h, w, c.
    frequencies: [m] how often each row occurred.

  Returns:
    Image numbers [n] -> rows [n].

  Source: the first release, see `bank.select`.
  """
  counts = jnp.asarray(frequencies.astype(np.int32))

  @jax.jit
  def one(image, counts):
    return select.select_row(_noise(seed, image[None], latent_shape), counts)[0]

  # One by one: a mean of several images may round otherwise.
  return lambda images: np.array(
    [int(one(jnp.int32(i), counts)) for i in images], np.int64
  )
