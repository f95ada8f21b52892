"""`--mode=sample`: images from a run, or from converted weights."""

import pathlib
from collections.abc import Sequence

from gmem_jax.config import sections
from gmem_jax.data import images as images_lib
from gmem_jax.diffusion import schedule
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
    workdir: Directory of the run, or of the images of converted weights.
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
  images_lib.claim(directory, plan_lib.record(config, source, plan))
  made = _write(config.sample, source, plan, directory)
  if processes.is_main():
    cost = describe_cost(config.sampler)
    print(f"{made} images made, {plan.count} in {directory}; {cost}")


def _write(
  config: sections.SampleConfig,
  source: source_lib.SampleSource,
  plan: plan_lib.Plan,
  directory: pathlib.Path,
) -> int:
  """Makes what is missing; returns how many images that was."""
  count = plan.count
  packed = images_lib.adm_file(directory, count).exists()
  # Its PNG files were removed: they must not look as if they were missing.
  if config.format == "npz" and processes.agree(packed):
    return 0
  make = plan_lib.make_fn(source, plan)
  made = images_lib.write_images(directory, count, config.batch_size, make)
  if not processes.is_main():
    return made
  if config.grid:
    shown = min(count, config.grid)
    images_lib.write_grid(directory, shown, config.per_row, plan.labels)
  if config.format != "png":
    images_lib.write_adm(directory, count)
  if config.format == "npz":
    images_lib.remove_pngs(directory, count)
  return made


def describe_cost(sampler: schedule.SamplerConfig) -> str:
  """What an image costs, in network calls (NFE)."""
  calls = schedule.num_calls(sampler)
  if calls is None:
    return f"{sampler.method} chooses its number of network calls"
  text = f"{sum(calls)} network calls per image"
  if calls[1]:
    text += f" ({calls[1]} of them for guidance)"
  return f"{text}, {sampler.method}"
