"""Makes the images of a plan, and records what they depend on."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from gmem_jax import progress
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.diffusion import schedule
from gmem_jax.sample import (
  draw_rows,
  images as images_lib,
  source as source_lib,
  stepwise,
)

# Is shown images while they are made; what it raises ends the work.
OnStep = Callable[[stepwise.Preview], object]


def make(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
  numbers: Int[np.ndarray, " n"],
) -> UInt8[np.ndarray, "n h w c"]:
  """Makes images of a plan, by number."""
  seed = config.sample.seed
  features, rows = plan.features(numbers)
  return source.sampler(source.weights, seed, numbers, features, rows)


def make_all(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
  on_step: OnStep | None = None,
) -> images_lib.SampledImages:
  """Makes all images of a plan; step by step if `on_step` wants to see them."""
  size, parts = source.sampler.call_size, []
  with contextlib.closing(
    progress.Progress("sample", 0, plan.count, unit="image")
  ) as line:
    for start in range(0, plan.count, size):
      numbers = np.arange(start, min(start + size, plan.count))
      if on_step is None:
        parts.append(make(config, source, plan, numbers))
      else:
        parts.append(_make_steps(config, source, plan, numbers, on_step))
      line.advance(len(numbers))
  shown = min(plan.count, config.sample.grid or plan.count)
  return images_lib.SampledImages(
    np.concatenate(parts), plan.lines(shown), record(config, source, plan)
  )


def _make_steps(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
  numbers: Int[np.ndarray, " n"],
  on_step: OnStep,
) -> UInt8[np.ndarray, "n h w c"]:
  """Like `make`, of one call's images, step by step."""
  features, rows = plan.features(numbers)
  preview = None
  for preview in stepwise.previews(
    source.sampler, source.weights, config.sample.seed, numbers, features, rows
  ):
    on_step(preview)
  assert preview is not None
  return preview.pixels()


def record(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
) -> dict[str, Any]:
  """sample.json: all that the images depend on."""
  calls = schedule.num_calls(config.sampler)
  return {
    "network": source.info,
    "tokenizer": load_encoders.tokenizer_info(config),
    "latent_mean": np.asarray(source.weights.stats.mean).tolist(),
    "latent_std": np.asarray(source.weights.stats.std).tolist(),
    "sampler": dataclasses.asdict(config.sampler),
    "network_calls": None
    if calls is None
    else {"conditional": calls[0], "unconditional": calls[1]},
    "dtype": config.sample.dtype,
    "precision": config.sample.precision,
    "decode_dtype": config.sample.decode_dtype,
    "seed": config.sample.seed,
    # Kernels are chosen by the shape of a call, and differ in the last bit.
    "device_batch": config.sample.device_batch,
    **plan.info,
  }
