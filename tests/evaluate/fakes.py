"""A network small enough for tests, under the names of the real one."""

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.evaluate import features, frechet, networks
from gmem_jax.parallel import sharding

WIDTHS = {"pool": 12, "spatial": 5, "logits": 7}


def network(sha256="fake", preprocessing="adm", side=6):
  """Random features that are no linear map of the pixels."""
  rng = np.random.default_rng(0)
  params = {
    name: rng.normal(size=(side * side * 3, width)).astype(np.float32) / 8
    for name, width in WIDTHS.items()
  }

  def apply(params, pixels):
    if pixels.shape[1:3] != (side, side):
      raise ValueError(f"images are {pixels.shape[1:3]}, not {side}")
    flat = jnp.broadcast_to(pixels, (*pixels.shape[:-1], 3))
    flat = flat.reshape(len(pixels), -1).astype(jnp.float32) / 255
    highest = jax.lax.Precision.HIGHEST
    return {
      name: jnp.tanh(jnp.matmul(flat, kernel, precision=highest))
      for name, kernel in params.items()
    }

  info = {"name": "inception", "sha256": sha256, "preprocessing": preprocessing}
  return networks.FeatureNetwork("inception", info, dict(WIDTHS), params, apply)


def make_extractor(device_batch=8, devices=4, **changes):
  """The fake network on some devices."""
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=-1, fsdp=1, tensor=1), jax.devices()[:devices]
  )
  return features.Extractor([network(**changes)], mesh, device_batch)


def fit_gaussian(rows):
  """The Gaussian of features [n f]."""
  moments = frechet.Moments(rows.shape[1])
  moments.add(rows)
  return moments.gaussian()


def images(seed, n=200, side=6, draw=None):
  """Noise whose mean and contrast differ from image to image and by seed.

  With `draw`, other images of the seed's distribution.
  """
  rng = np.random.default_rng(seed if draw is None else (seed, draw))
  level = rng.uniform(40, 160 + 10 * seed, (n, 1, 1, 3))
  noise = rng.normal(size=(n, side, side, 3)) * rng.uniform(5, 40, (n, 1, 1, 1))
  return np.clip(level + noise, 0, 255).astype(np.uint8)
