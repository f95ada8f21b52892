"""Weights and snippets to images; image i depends on (seed, i) alone.

Compilers choose kernels by shape, and kernels differ in the last bit. So the
sampler is compiled for one number of images on each device, whatever the
number that is asked for, and the last call is filled up. On a CPU, XLA also
splits long sums by its number of threads: that of the cores, or of NPROC, and
at least that of the (fake) devices.

Shapes: b images, h w c latent, d snippet width, m bank rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import guidance, samplers, sit_release
from gmem_jax.models import retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding


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


def compile_sampler(
  network: transformer.FlowTransformer,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  mesh: Mesh,
  *,
  seed: int,
  first_release: bool = False,
  retrieve: retrieval.RetrieveFn | None = None,
) -> Any:
  """Jits all from noise to bytes.

  Args:
    network: The network.
    sampler: The sampler.
    latent_shape: h, w, c.
    mesh: The devices; images are split over the axes of the batch.
    seed: Image i's noise depends on (seed, i) alone.
    first_release: See `make_sample_fn`.
    retrieve: Looks up what a network with cross-attention attends to.

  Returns:
    (weights, image numbers int32 [b], features [b d], bank rows int32 [b]) ->
    uint8 images [b H W ch], jitted; b is a multiple of the devices along the
    batch.
  """
  # The scales of 8-bit products are those of a batch: with them, an image would
  # depend on those beside it.
  network = network.clone(float8=False)

  def some(weights, images, features, neighbours):
    snippet = None
    if transformer.uses_adaln(network.conditioning):
      snippet = bank_lib.normalise(features)
    x0 = _noise(seed, images, latent_shape)
    x1 = _integrate(
      network,
      sampler,
      weights.params,
      (snippet, neighbours),
      x0,
      seed,
      images,
      first_release,
    )
    latents = protocols.denormalise_latents(x1, weights.stats)
    pixels = weights.tokenizer.decode(latents)
    return protocols.to_uint8(pixels, 127.5 if first_release else 128.0)

  split = jax.shard_map(
    some,
    mesh=mesh,
    in_specs=(P(), *(sharding.BATCH,) * 3),
    out_specs=sharding.BATCH,
    check_vma=False,
  )

  def run(weights, images, features, rows):
    neighbours = None
    if retrieve is not None:  # Here, as the bank's rows may be split.
      unit = bank_lib.normalise(features)
      neighbours = retrieve(weights.bank, unit, rows)
    bare = dataclasses.replace(weights, bank=None)
    return split(bare, images, features, neighbours)

  return jax.jit(run, out_shardings=sharding.replicated(mesh))


def place(weights: Weights, mesh: Mesh) -> Weights:
  """Puts weights on all devices; the bank stays where it is.

  Args:
    weights: The weights; the bank, if any, is on the mesh.
    mesh: The devices.
  """
  bare: Any = dataclasses.replace(weights, bank=None)
  placed = sharding.place(bare, sharding.replicated(mesh))
  return dataclasses.replace(placed, bank=weights.bank)


def make_sample_fn(
  network: transformer.FlowTransformer,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  mesh: Mesh,
  *,
  seed: int,
  device_batch: int,
  first_release: bool = False,
  retrieve: retrieval.RetrieveFn | None = None,
) -> SampleFn:
  """Makes the sampling function.

  Args:
    network: The network.
    sampler: The sampler.
    latent_shape: h, w, c.
    mesh: The devices; images are split over the axes of the batch.
    seed: Image i's noise depends on (seed, i) alone.
    device_batch: Images on each device in one call.
    first_release: The network is that of the first release, which counts time
      from the data (t=0), and so is the rounding of pixels.
    retrieve: Looks up what a network with cross-attention attends to, in the
      weights' bank.

  Returns:
    The function; it is compiled once.
  """
  compiled = compile_sampler(
    network,
    sampler,
    latent_shape,
    mesh,
    seed=seed,
    first_release=first_release,
    retrieve=retrieve,
  )
  where = NamedSharding(mesh, sharding.BATCH)
  together = device_batch * sharding.batch_ways(mesh)

  def sample(weights, images, features, rows=None):
    if rows is None:
      rows = np.full(len(images), retrieval.OUTSIDE)
    done, weights = [], place(weights, mesh)
    for start in range(0, len(images), together):
      part = np.arange(start, start + together).clip(max=len(images) - 1)
      pixels = compiled(
        weights,
        sharding.place(np.asarray(images[part], np.int32), where),
        sharding.place(np.asarray(features[part], np.float32), where),
        sharding.place(np.asarray(rows[part], np.int32), where),
      )
      done.append(jax.device_get(pixels)[: len(images) - start])
    return np.concatenate(done)

  return sample


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

  Source: the first release, see `bank.select_row`.
  """
  counts = jnp.asarray(frequencies.astype(np.int32))

  @jax.jit
  def one(image, counts):
    noise = _noise(seed, image[None], latent_shape)
    return bank_lib.select_row(noise, counts)[0]

  # One by one: a mean of several images may round otherwise.
  return lambda images: np.array(
    [int(one(jnp.int32(i), counts)) for i in images], np.int64
  )
