"""Where samples go: a directory for all samples of the same settings."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.diffusion import schedule
from gmem_jax.files import atomic
from gmem_jax.parallel import processes
from gmem_jax.sample import draw_rows, source as source_lib


def name_of(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
) -> str:
  """What samples are called: their settings, as far as a name can tell."""
  sampler, guidance = config.sampler, config.sampler.guidance.scale
  parts = [source.name, f"{sampler.method}_{sampler.steps}"]
  if guidance != 1:
    parts.append(f"guidance_{guidance:g}")
  parts.append(f"seed_{config.sample.seed}")
  return "_".join([*parts, plan.name] if plan.name else parts)


def directory_of(
  config: sections.Config,
  workdir: pathlib.Path,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
) -> pathlib.Path:
  """The samples' directory: `sample.output`, or one in WORKDIR/images.

  Its name ends in a digest of all that the samples depend on: other settings
  get another directory, the same again find their own.
  """
  # Absolute: processes of a job may have different working directories.
  if config.sample.output:
    return pathlib.Path(config.sample.output).absolute()
  settings, images = record(config, source, plan), workdir / "images"
  # Directories were called so when names told less.
  parts = source.name, f"seed_{config.sample.seed}", plan.name
  old = images / "_".join(filter(None, parts))
  if processes.agree(_is_of(old, settings)):
    return old
  text = json.dumps(settings, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  return images / f"{name_of(config, source, plan)}_{digest}"


def _is_of(directory: pathlib.Path, settings: dict[str, Any]) -> bool:
  """Whether a directory has samples of these settings."""
  path = directory / "sample.json"
  return path.exists() and not atomic.differences(
    atomic.read_json(path), settings
  )


def record(
  config: sections.Config,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
) -> dict[str, Any]:
  """sample.json: all that the images depend on."""
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
