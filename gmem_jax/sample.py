"""Weights and snippets to images; image i depends on (seed, i) alone.

Compilers choose kernels by shape, and kernels differ in the last bit. So the
sampler is compiled for one number of images on each device, whatever the
number that is asked for, and the last call is filled up. On a CPU, XLA also
splits long sums by its number of threads: that of the cores, or of NPROC, and
at least that of the (fake) devices.

Shapes: b images, h w c latent, d snippet width, m bank rows.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gmem_jax import rngs, sharding
from gmem_jax.bank import bank as bank_lib, select
from gmem_jax.diffusion import guidance, samplers, sit_release
from gmem_jax.encoders import protocols
from gmem_jax.models import transformer


@flax.struct.dataclass
class Weights:
  """All arrays between noise and bytes.

  Attributes:
    params: The network's parameters.
    tokenizer: Decodes the latents; a pytree.
    stats: Undo the normalisation of the latents.
  """

  params: Any
  tokenizer: Any
  stats: protocols.LatentStats


# (weights, image numbers [n], features [n d]) -> uint8 images [n H W ch], all
# but the weights on the host. Features are scaled to unit length.
SampleFn = Callable[[Weights, np.ndarray, np.ndarray], np.ndarray]


def compile_sampler(
  network: transformer.FlowTransformer,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  mesh: Mesh,
  *,
  seed: int,
  first_release: bool = False,
) -> Any:
  """Jits all from noise to bytes.

  Args:
    network: The network.
    sampler: The sampler.
    latent_shape: h, w, c.
    mesh: The devices; images are split over the axes of the batch.
    seed: Image i's noise depends on (seed, i) alone.
    first_release: See `make_sample_fn`.

  Returns:
    (weights, image numbers int32 [b], features [b d]) -> uint8 images
    [b H W ch], jitted; b is a multiple of the devices along the batch.
  """

  def some(weights, images, features):
    snippet = None
    if network.conditioning != "none":
      snippet = bank_lib.normalise(features)
    x0 = _noise(seed, images, latent_shape)
    x1 = _integrate(
      network, sampler, weights.params, snippet, x0, seed, images, first_release
    )
    latents = protocols.denormalise_latents(x1, weights.stats)
    pixels = weights.tokenizer.decode(latents)
    return protocols.to_uint8(pixels, 127.5 if first_release else 128.0)

  return jax.jit(
    jax.shard_map(
      some,
      mesh=mesh,
      in_specs=(P(), sharding.BATCH, sharding.BATCH),
      out_specs=sharding.BATCH,
      check_vma=False,
    ),
    out_shardings=sharding.replicated(mesh),
  )


def make_sample_fn(
  network: transformer.FlowTransformer,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  mesh: Mesh,
  *,
  seed: int,
  device_batch: int,
  first_release: bool = False,
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

  Returns:
    The function; it is compiled once.
  """
  compiled = compile_sampler(
    network, sampler, latent_shape, mesh, seed=seed, first_release=first_release
  )
  where = NamedSharding(mesh, sharding.BATCH)
  everywhere = sharding.replicated(mesh)
  together = device_batch * mesh.shape["data"] * mesh.shape["fsdp"]

  def sample(weights, images, features):
    done, weights = [], sharding.place(weights, everywhere)
    for start in range(0, len(images), together):
      part = np.arange(start, start + together).clip(max=len(images) - 1)
      pixels = compiled(
        weights,
        sharding.place(np.asarray(images[part], np.int32), where),
        sharding.place(np.asarray(features[part], np.float32), where),
      )
      done.append(jax.device_get(pixels)[: len(images) - start])
    return np.concatenate(done)

  return sample


def _noise(seed, images, latent_shape):
  """The noise that each image begins with."""
  keys = rngs.keys(seed, "sample/noise", images)
  return jax.vmap(lambda k: jax.random.normal(k, latent_shape))(keys)


def _integrate(
  network, sampler, params, snippet, x0, seed, images, first_release
):
  """From noise to normalised latents."""

  def apply(x, t, snippet):
    def bound(x, t):
      velocity = network.apply({"params": params}, x, t, snippet)
      return cast(jax.Array, velocity)

    return (sit_release.turn_time(bound) if first_release else bound)(x, t)

  def pair(x, t):
    return guidance.pair(apply, x, t, snippet, jnp.zeros_like(snippet))

  def kicks(step):
    def one(image):
      key = rngs.key(seed, "sample/kick", image, step)
      return jax.random.normal(key, x0.shape[1:])

    return jax.vmap(one)(images)

  return samplers.sample(
    sampler, lambda x, t: apply(x, t, snippet), x0, kicks, pair
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
