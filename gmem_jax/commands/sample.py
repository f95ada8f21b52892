"""`--mode=sample`: images from a run, or from converted weights."""

import pathlib
from collections.abc import Sequence

from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.diffusion import schedule
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import draw_rows, source as source_lib


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
    plan = draw_rows.plan_manipulation(config, source, images, ends)
  else:
    plan = draw_rows.plan_rows(config, source)
  directory = draw_rows.directory_of(config, workdir, source, plan)
  write_images.claim(directory, draw_rows.record(config, source, plan))
  made = _write(config.sample, source, plan, directory)
  if processes.is_main():
    cost = describe_cost(config.sampler)
    print(f"{made} images made, {plan.count} in {directory}; {cost}")


def _write(
  config: sections.SampleConfig,
  source: source_lib.SampleSource,
  plan: draw_rows.Plan,
  directory: pathlib.Path,
) -> int:
  """Makes what is missing; returns how many images that was."""
  count = plan.count
  packed = write_images.adm_file(directory, count).exists()
  # Its PNG files were removed: they must not look as if they were missing.
  if config.format == "npz" and processes.agree(packed):
    return 0
  make = draw_rows.make_fn(source, plan)
  made = write_images.write_folder(directory, count, config.batch_size, make)
  if not processes.is_main():
    return made
  if config.grid:
    shown = min(count, config.grid)
    write_images.write_grid(directory, shown, config.per_row, plan.labels)
  if config.format != "png":
    write_images.write_adm(directory, count)
  if config.format == "npz":
    write_images.remove_pngs(directory, count)
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
