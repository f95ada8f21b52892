"""Which images `--mode=sample` and `--mode=evaluate` make, and of what."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import bank as bank_lib
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.diffusion import samplers
from gmem_jax.models import retrieval, transformer
from gmem_jax.sample import (
  memories as memories_lib,
  pretrained,
  sampler as sampler_lib,
  source as source_lib,
)
from gmem_jax.train import setup


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


def plan_rows(config: sections.Config, source: source_lib.Source) -> Plan:
  """Images from rows of the bank, given or drawn.

  Args:
    config: The run.
    source: What to sample with.
  """
  bank, chosen = source_lib.bank_of(source), config.sample
  per_row, count = chosen.per_row, chosen.count
  if chosen.rows:
    count = len(chosen.rows) * per_row
  rows = _row_fn(chosen, source.latent_shape, bank)
  labels = ()
  if chosen.rows or per_row > 1:
    first = rows(np.arange(0, count, per_row))
    labels = tuple(f"row {row}" for row in first)
  info = {
    "bank": bank.info,
    "draw": list(chosen.rows) or chosen.draw,
    "per_row": per_row,
  }

  def features(numbers):
    chosen_rows = rows(numbers)
    return bank.rows[chosen_rows], chosen_rows

  return Plan("", count, features, labels, info)


def _row_fn(
  chosen: sections.SampleConfig,
  latent_shape: tuple[int, int, int],
  bank: pretrained.Bank,
) -> Callable[[np.ndarray], np.ndarray]:
  """Image numbers -> bank rows."""
  if chosen.rows:
    given = np.array(chosen.rows)
    bank_lib.check_rows(given, len(bank.rows), "config.sample.rows")
    return lambda numbers: given[numbers // chosen.per_row]
  if chosen.draw == "noise":
    if bank.frequencies is None:
      raise ValueError(
        "config.sample.draw='noise' needs a bank with frequencies, as it comes"
        " with the first release; this one has none: 'uniform' is left"
      )
    return sampler_lib.make_row_fn(chosen.seed, latent_shape, bank.frequencies)

  def draw_rows(numbers):
    groups = jnp.asarray(numbers // chosen.per_row, jnp.int32)
    return np.asarray(bank_lib.draw_rows(chosen.seed, groups, len(bank.rows)))

  return draw_rows


def plan_manipulation(
  config: sections.Config,
  source: source_lib.Source,
  images: Sequence[str],
  ends: Sequence[str],
) -> Plan:
  """Images like given ones, or between two memories.

  Args:
    config: The run.
    source: What to sample with.
    images: Files to make samples like (--image).
    ends: Two bank rows or files to go between (--interpolate).

  Raises:
    ValueError: If both are given, or one cannot be read.
  """
  if images and ends:
    raise ValueError("--image and --interpolate exclude each other")
  read = memories_lib.Reader(
    config,
    channels=source.latent_shape[-1]
    if config.encoder.tokenizer == "identity"
    else 3,
    width=source.model.snippet_dim,
    bank_rows=lambda: source_lib.bank_of(source).rows,
  )
  if images:
    memories = [read.image(image, "--image") for image in images]
    found = memories_lib.alone(memories)
  else:
    memories = [read.memory(end, "--interpolate") for end in ends]
    found = memories_lib.between(config.sample, memories)
  per_row = config.sample.per_row
  info = {"per_row": per_row, **found.info}
  attends = transformer.uses_cross(source.model.conditioning)
  if (ends or attends) and source.bank is not None:
    info["bank"] = source.bank.info

  def features(numbers):
    outside = np.full(len(numbers), retrieval.OUTSIDE)
    return found.features[numbers // per_row], outside

  return Plan(
    found.name, len(found.features) * per_row, features, found.labels, info
  )


def name_of(
  config: sections.Config, source: source_lib.Source, plan: Plan
) -> str:
  """The directory's name in WORKDIR/images.

  Args:
    config: The run.
    source: What is sampled with.
    plan: What is sampled.
  """
  parts = [source.name, f"seed_{config.sample.seed}", plan.name]
  return "_".join(part for part in parts if part)


def directory_of(
  config: sections.Config,
  workdir: pathlib.Path,
  source: source_lib.Source,
  plan: Plan,
) -> pathlib.Path:
  """Where the images lie.

  Args:
    config: The run.
    workdir: Its directory.
    source: What is sampled with.
    plan: What is sampled.
  """
  if config.sample.output:
    return pathlib.Path(config.sample.output).absolute()
  return workdir / "images" / name_of(config, source, plan)


def record(
  config: sections.Config, source: source_lib.Source, plan: Plan
) -> dict[str, Any]:
  """sample.json: all that the images depend on.

  Args:
    config: The run.
    source: What is sampled with.
    plan: What is sampled.
  """
  calls = samplers.num_calls(config.sampler)
  # Directories from before there was a choice say nothing of it.
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
    "device_batch": config.sample.device_batch,
    **decoding,
    **plan.info,
  }


def make_fn(
  config: sections.Config,
  source: source_lib.Source,
  plan: Plan,
  mesh: jax.sharding.Mesh,
) -> Callable[[np.ndarray], np.ndarray]:
  """The function that makes the images.

  Args:
    config: The run.
    source: What to sample with.
    plan: What is sampled.
    mesh: The devices.

  Returns:
    Image numbers [n] -> uint8 [n H W channels].
  """
  sample_fn = sampler_lib.make_sample_fn(
    source.model,
    config.sampler,
    source.latent_shape,
    mesh,
    seed=config.sample.seed,
    device_batch=config.sample.device_batch,
    first_release=source.first_release,
    retrieve=setup.make_retrieve(config, source.weights.bank),
  )
  weights = sampler_lib.place(source.weights, mesh)
  return lambda numbers: sample_fn(weights, numbers, *plan.features(numbers))
