"""Draws the memory that each image is made from: a row, or an image file's.

A `Plan` has all that `--mode=sample` and `--mode=evaluate` need to know of it.

Shapes: b or n images, m bank rows, d snippet width.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from scipy import special

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.diffusion import schedule
from gmem_jax.models import retrieval, transformer
from gmem_jax.sample import (
  sampler as sampler_lib,
  snippets as snippets_lib,
  source as source_lib,
)


def draw_rows(
  seed: int, images: Integer[Array, " b"], size: int
) -> Integer[Array, " b"]:
  """Draws a row in [0, size) for each image, uniformly.

  `images` are global image numbers: image i's row depends on (seed, i) alone.
  """
  keys = rngs.keys(seed, "sample/row", images)
  return jax.vmap(lambda k: jax.random.randint(k, (), 0, size))(keys)


def select_row(
  noise: Float[np.ndarray | Array, "b ..."], frequencies: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " b"]:
  """Draws a row for each image by frequency, from the image's own noise.

  The mean of a noise tensor, scaled to a standard normal, gives a uniform
  number; the inverse of the cumulative frequencies maps it to a row.

  Args:
    noise: Standard normal.
    frequencies: How often each row occurred; not negative, not all zero.

  Returns:
    Row numbers in [0, m).

  Source: GMem (arXiv 2412.08781), release of December 2024, to the bit: the
    uniform number is float32, the cumulative frequencies are float64.
  """
  noise = np.asarray(noise)
  size = noise[0].size
  # The exact mean, rounded: it does not depend on the order of summation.
  mean = noise.reshape(len(noise), size).mean(axis=1, dtype=np.float64)
  normal = mean.astype(np.float32) * np.float32(size**0.5)
  # Half of 1 + erf, rounded at each step: other forms of the normal
  # distribution differ in the last bit.
  erf = special.erf(np.float64(normal / np.float32(2**0.5))).astype(np.float32)
  uniform = np.float32(0.5) * (1 + erf)
  # Rows of the published bank are 1.6e-6 wide: float32 sums would be off by
  # one row in a hundred draws.
  cumulative = np.cumsum(frequencies / frequencies.sum(dtype=np.float64))
  rows = np.searchsorted(cumulative, np.float64(uniform), side="right")
  # A uniform number that rounds to 1 gives m, outside of the bank, where the
  # published code fails. It means the last row that ever occurred.
  return np.minimum(rows, np.flatnonzero(frequencies)[-1])


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which snippet each image is made from.

  Attributes:
    name: What is added to the directory's name.
    count: Number of images.
    features: Image numbers [n] -> features [n d] and the bank rows [n] that
      they are, `retrieval.OUTSIDE` for others.
    labels: Names of the groups of `per_row` images; () if there are none.
    info: All that the features depend on; JSON.
  """

  name: str
  count: int
  features: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  labels: tuple[str, ...]
  info: dict[str, Any]


def plan_rows(config: sections.Config, source: source_lib.SampleSource) -> Plan:
  """Images from rows of the bank, given or drawn."""
  bank, given = source.require_bank(), config.sample.rows
  per_row, count = config.sample.per_row, config.sample.count
  if given:
    count = len(given) * per_row
  rows = _row_fn(config.sample, source, bank)
  labels = ()
  # Drawn rows of one image each would label every image of a large sheet.
  if given or per_row > 1:
    first = rows(np.arange(0, count, per_row))
    labels = tuple(f"row {row}" for row in first)
  info = {
    "bank": bank.info,
    "draw": list(given) or config.sample.draw,
    "per_row": per_row,
  }

  def features(numbers):
    drawn = rows(numbers)
    return bank.rows[drawn], drawn

  return Plan("", count, features, labels, info)


def _row_fn(
  config: sections.SampleConfig,
  source: source_lib.SampleSource,
  bank: source_lib.HostBank,
) -> Callable[[np.ndarray], np.ndarray]:
  """Image numbers -> bank rows."""
  if config.rows:
    given = np.array(config.rows)
    bank_lib.check_rows(given, len(bank.rows), "config.sample.rows")
    return lambda numbers: given[numbers // config.per_row]
  # First release: an image's noise decides its row, by the frequencies with
  # which rows occurred in training.
  if config.draw == "noise":
    if bank.frequencies is None:
      raise ValueError(
        "config.sample.draw='noise' needs a bank with frequencies, as the first"
        " release has it; this one has none: take 'uniform'"
      )
    return _rows_by_noise(source.sampler, bank.frequencies)

  def drawn(numbers):
    # By group, so that the first image of each does not depend on per_row.
    groups = jnp.asarray(numbers // config.per_row, jnp.int32)
    return np.asarray(draw_rows(config.seed, groups, len(bank.rows)))

  return drawn


def _rows_by_noise(
  sampler: sampler_lib.Sampler, frequencies: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Image numbers -> bank rows; see `select_row`."""
  # One image at a time: in a batch, noise may differ in the last bit.
  noise = jax.jit(lambda number: sampler.noise(number[None])[0])

  def drawn(numbers):
    each = [np.asarray(noise(jnp.int32(i))) for i in numbers]
    return select_row(np.stack(each), frequencies)

  return drawn


def plan_manipulation(
  config: sections.Config,
  source: source_lib.SampleSource,
  images: Sequence[str],
  ends: Sequence[str],
) -> Plan:
  """Images like given ones, or between two memories.

  Args:
    config: Says how files are read, and how to go between snippets.
    source: Has the bank that rows are taken from.
    images: Files to make samples like (--image).
    ends: Two bank rows or files to go between (--interpolate).

  Raises:
    ValueError: If both are given, or one cannot be read.
  """
  if images and ends:
    raise ValueError("--image and --interpolate exclude each other")
  network = source.sampler.network
  # Digits are grey; every published tokenizer decodes to RGB.
  latents_are_pixels = config.encoder.tokenizer == "identity"
  reader = snippets_lib.Reader(
    config,
    channels=source.sampler.latent_shape[-1] if latents_are_pixels else 3,
    width=network.snippet_dim,
    bank_rows=lambda: source.require_bank().rows,
  )
  if images:
    snippets = snippets_lib.alone(
      [reader.image(image, "--image") for image in images]
    )
  else:
    snippets = snippets_lib.between(
      config.sample, [reader.snippet(end, "--interpolate") for end in ends]
    )
  per_row = config.sample.per_row
  info = {"per_row": per_row, **snippets.info}
  # An image alone comes from no bank; but a network may attend to one.
  attends = transformer.uses_cross(network.conditioning)
  if (ends or attends) and source.bank is not None:
    info["bank"] = source.bank.info

  # None is a row of the bank, so that lookup leaves no row out as their own.
  def features(numbers):
    outside = np.full(len(numbers), retrieval.OUTSIDE)
    return snippets.features[numbers // per_row], outside

  count = len(snippets.features) * per_row
  return Plan(snippets.name, count, features, snippets.labels, info)


def name_of(
  config: sections.Config, source: source_lib.SampleSource, plan: Plan
) -> str:
  """The directory's name in WORKDIR/images."""
  parts = [source.name, f"seed_{config.sample.seed}", plan.name]
  return "_".join(part for part in parts if part)


def directory_of(
  config: sections.Config,
  workdir: pathlib.Path,
  source: source_lib.SampleSource,
  plan: Plan,
) -> pathlib.Path:
  """The images' directory: `sample.output`, or one in WORKDIR/images."""
  # Absolute: processes of a job may have different working directories.
  if config.sample.output:
    return pathlib.Path(config.sample.output).absolute()
  return workdir / "images" / name_of(config, source, plan)


def record(
  config: sections.Config, source: source_lib.SampleSource, plan: Plan
) -> dict[str, Any]:
  """sample.json: all that the images depend on."""
  # Images of other settings need another directory: see `write_images.claim`.
  calls = schedule.num_calls(config.sampler)
  # Left out at its default: directories from before the key was added have no
  # such entry, and shall still be continued.
  dtype = config.sample.decode_dtype
  decoding = {} if dtype == "float32" else {"decode_dtype": dtype}
  return {
    "network": source.info,
    "tokenizer": load_encoders.tokenizer_info(config),
    "latent_mean": np.asarray(source.weights.stats.mean).tolist(),
    "latent_std": np.asarray(source.weights.stats.std).tolist(),
    "sampler": dataclasses.asdict(config.sampler),
    "network_calls": None
    if calls is None
    else {"conditional": calls[0], "unconditional": calls[1]},
    "dtype": config.model.dtype,
    "seed": config.sample.seed,
    # Kernels are chosen by the shape of a call, and differ in the last bit.
    "device_batch": config.sample.device_batch,
    **decoding,
    **plan.info,
  }


def make_fn(
  source: source_lib.SampleSource, plan: Plan
) -> Callable[[np.ndarray], np.ndarray]:
  """The function that makes a plan's images.

  Returns:
    Image numbers [n] -> uint8 [n H W channels].
  """
  sampler = source.sampler
  # Once, or every call would copy the weights to the devices.
  weights = sampler.place(source.weights)
  return lambda numbers: sampler(weights, numbers, *plan.features(numbers))
