"""`--mode=sample`: images from a run, or from converted weights."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from gmem_jax.config import sections
from gmem_jax.data import images as images_lib
from gmem_jax.diffusion import samplers
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import plan as plan_lib, source as source_lib


def sample_mode(
  config: sections.Config,
  workdir: pathlib.Path,
  images: Sequence[str] = (),
  ends: Sequence[str] = (),
) -> None:
  """Writes images.

  Args:
    config: The run.
    workdir: Its directory.
    images: Files to make samples like (--image).
    ends: Two bank rows or files to go between (--interpolate), or nothing.

  Raises:
    ValueError: Naming the key or flag that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  source = source_lib.load(config, workdir, mesh)
  if images or ends:
    plan = plan_lib.plan_manipulation(config, source, images, ends)
  else:
    plan = plan_lib.plan_rows(config, source)
  directory = plan_lib.directory_of(config, workdir, source, plan)
  images_lib.claim_directory(directory, plan_lib.record(config, source, plan))
  made = _write(config, source, plan, mesh, directory)
  if not processes.is_main():
    return
  calls = calls_in_words(config.sampler)
  print(f"{made} images made, {plan.count} in {directory}; {calls}")


def calls_in_words(sampler: samplers.SamplerConfig) -> str:
  """What an image costs, in words.

  Args:
    sampler: The sampler.
  """
  calls = samplers.num_calls(sampler)
  if calls is None:
    return f"{sampler.method} chooses its number of network calls"
  text = f"{sum(calls)} network calls per image"
  if calls[1]:
    text += f" ({calls[1]} of them for guidance)"
  return f"{text}, {sampler.method}"


def _write(
  config: sections.Config,
  source: source_lib.Source,
  plan: plan_lib.Plan,
  mesh: jax.sharding.Mesh,
  directory: pathlib.Path,
) -> int:
  """Makes what is missing; returns how many images that was."""
  chosen, count = config.sample, plan.count
  packed = images_lib.adm_file(directory, count).exists()
  if chosen.format == "npz" and processes.agree(packed):
    return 0
  make = plan_lib.make_fn(config, source, plan, mesh)
  made = images_lib.write_images(directory, count, chosen.batch_size, make)
  if not processes.is_main():
    return made
  if chosen.grid:
    _write_grid(config, plan, directory)
  if chosen.format != "png":
    images_lib.write_adm(directory, count)
  if chosen.format == "npz":
    images_lib.remove_pngs(directory, count)
  return made


def _write_grid(
  config: sections.Config, plan: plan_lib.Plan, directory: pathlib.Path
) -> None:
  """The contact sheet: with labels, one row of it for each group."""
  shown = min(plan.count, config.sample.grid)
  if not plan.labels:
    columns = int(np.ceil(np.sqrt(shown)))
    images_lib.write_grid(directory, shown, columns)
    return
  per_row = config.sample.per_row
  groups = max(shown // per_row, 1)
  images_lib.write_grid(
    directory, groups * per_row, per_row, plan.labels[:groups]
  )
