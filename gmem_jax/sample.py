"""Checkpoint and bank to images; image i depends on (seed, i) alone."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmem_jax import checkpoint, metrics, rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import samplers
from gmem_jax.encoders import protocols
from gmem_jax.models import transformer

# (parameters, bank, image numbers [b], rows [b]) -> uint8 images [b H W ch].
SampleFn = Callable[[Any, bank_lib.MemoryBank, Any, Any], jax.Array]


def make_sample_fn(
  network: transformer.FlowTransformer,
  tokenizer: protocols.Tokenizer,
  stats: protocols.LatentStats,
  sampler: samplers.SamplerConfig,
  latent_shape: tuple[int, int, int],
  *,
  seed: int,
) -> SampleFn:
  """Makes the sampling function: one jit from noise to bytes.

  Args:
    network: The network.
    tokenizer: Decodes the latents.
    stats: Undo the normalisation of the latents.
    sampler: The sampler.
    latent_shape: h, w, c.
    seed: Image i's noise depends on (seed, i) alone.

  Returns:
    The function; compiled once for each batch size.
  """

  @jax.jit
  def sample(params, bank, images, rows):
    keys = rngs.keys(seed, "sample/noise", images)
    x0 = jax.vmap(lambda k: jax.random.normal(k, latent_shape))(keys)
    conditioned = network.conditioning != "none"
    snippet = bank_lib.snippets(bank, rows) if conditioned else None

    def predict(x, t):
      velocity = network.apply({"params": params}, x, t, snippet)
      return cast(jax.Array, velocity)

    x1 = samplers.sample(sampler, predict, x0)
    latents = protocols.denormalise_latents(x1, stats)
    return protocols.to_uint8(tokenizer.decode(latents))

  return sample


def sample_images(
  sample_fn: SampleFn,
  params: Any,
  bank: bank_lib.MemoryBank,
  images: np.ndarray,
  rows: np.ndarray,
  batch_size: int,
) -> np.ndarray:
  """Samples any number of images, in batches of one shape.

  Args:
    sample_fn: Of `make_sample_fn`.
    params: The network's parameters.
    bank: The bank.
    images: Global image numbers.
    rows: The bank row of each.
    batch_size: Images at a time; the last batch is filled up.

  Returns:
    uint8 [n H W channels].
  """
  done = []
  for start in range(0, len(images), batch_size):
    part = np.arange(start, start + batch_size).clip(max=len(images) - 1)
    pixels = sample_fn(
      params, bank, jnp.asarray(images[part]), jnp.asarray(rows[part])
    )
    done.append(jax.device_get(pixels)[: len(images) - start])
  return np.concatenate(done)


def save_png(path: pathlib.Path, pixels: np.ndarray) -> None:
  """Writes a picture, whole or not at all.

  Args:
    path: The PNG file.
    pixels: uint8 [H, W, channels], one channel or three.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
    temporary, format="PNG"
  )
  temporary.replace(path)


def read_png(path: pathlib.Path) -> np.ndarray:
  """Reads a picture.

  Args:
    path: The PNG file.

  Returns:
    uint8 [H, W, channels].
  """
  with Image.open(path) as image:
    pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def make_grid(
  images: np.ndarray, columns: int, *, scale: int = 1, gap: int = 2
) -> np.ndarray:
  """Arranges images in rows on a white ground.

  Args:
    images: uint8 [n H W channels].
    columns: Images a row.
    scale: Whole-number enlargement of each pixel.
    gap: Pixels between images.

  Returns:
    uint8 [H', W', channels].
  """
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  n, h, w, channels = images.shape
  rows = -(-n // columns)
  grid = np.full(
    (rows * (h + gap) + gap, columns * (w + gap) + gap, channels),
    255,
    np.uint8,
  )
  for i, image in enumerate(images):
    y, x = i // columns * (h + gap) + gap, i % columns * (w + gap) + gap
    grid[y : y + h, x : x + w] = image
  return grid


def write_images(
  directory: pathlib.Path,
  count: int,
  batch_size: int,
  make: Callable[[np.ndarray], np.ndarray],
) -> int:
  """Fills a directory with images; those that exist are not made again.

  Args:
    directory: Receives 000000.png and so on.
    count: Number of images in all.
    batch_size: Images at a time.
    make: Image numbers -> uint8 [n H W channels].

  Returns:
    How many images were made now.
  """
  directory.mkdir(parents=True, exist_ok=True)
  missing = np.array(
    [i for i in range(count) if not (directory / f"{i:06d}.png").exists()],
    np.int32,
  )
  progress = metrics.Progress(
    "sample", count - len(missing), count, unit="image"
  )
  for start in range(0, len(missing), batch_size):
    part = missing[start : start + batch_size]
    for i, pixels in zip(part, make(part), strict=True):
      save_png(directory / f"{i:06d}.png", pixels)
    progress.update(count - len(missing) + start + len(part))
  progress.close()
  return len(missing)


def claim_directory(directory: pathlib.Path, settings: dict[str, Any]) -> None:
  """Makes a directory these settings', or checks that it already is.

  Args:
    directory: Will hold the images.
    settings: All that the images depend on; JSON.

  Raises:
    ValueError: If it holds images of other settings; lists them.
  """
  path = directory / "sample.json"
  if path.exists():
    theirs = json.loads(path.read_text())
    ours = json.loads(json.dumps(settings))
    differing = [
      f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if differing:
      raise ValueError(
        f"{directory} holds images of other settings:\n"
        + "\n".join(differing)
        + "\nMove it away, or sample with another sample.seed."
      )
  directory.mkdir(parents=True, exist_ok=True)
  checkpoint.write_json(path, settings)


def write_grid(directory: pathlib.Path, count: int) -> None:
  """Shows the first images of a directory in one picture, grid.png.

  Args:
    directory: Holds 000000.png and so on.
    count: How many to show.
  """
  images = np.stack(
    [read_png(directory / f"{i:06d}.png") for i in range(count)]
  )
  scale = max(1, 64 // images.shape[1])
  columns = int(np.ceil(np.sqrt(count)))
  save_png(directory / "grid.png", make_grid(images, columns, scale=scale))
