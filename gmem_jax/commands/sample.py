"""`--mode=sample`: images from a run, or from converted weights."""

import pathlib
from collections.abc import Sequence

from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.diffusion import schedule
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import draw_rows, output, sheet, source as source_lib


def sample_mode(
  config: sections.Config,
  workdir: pathlib.Path,
  images: Sequence[str] = (),
  pairs: Sequence[Sequence[str]] = (),
) -> None:
  """Writes images.

  Args:
    config: The run.
    workdir: Directory of the run, or of the images of converted weights.
    images: Files, and folders of files, to make samples like (--image).
    pairs: Pairs of bank rows or files to go between (--interpolate).

  Raises:
    ValueError: Naming the key or flag that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  source = source_lib.load(config, workdir, mesh)
  if images or pairs:
    plan = draw_rows.plan_manipulation(config, source, images, pairs)
  else:
    plan = draw_rows.plan_rows(config, source)
  directory = output.directory_of(config, workdir, source, plan)
  write_images.claim(directory, output.record(config, source, plan))
  made = _write(config.sample, source, plan, directory)
  if processes.is_main():
    cost = describe_cost(config.sampler)
    print(f"{made} images made, {plan.count} in {directory}; {cost}")
    print(describe_files(directory, plan.count))
    print(describe_next(config, drawn=not (images or pairs)))


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
  make = draw_rows.make_fn(source, plan, config.seed)
  made = write_images.write_folder(directory, count, config.batch_size, make)
  if not processes.is_main():
    return made
  if config.grid:
    sheet.write(directory, plan.lines(min(count, config.grid)))
  if config.format != "png":
    write_images.write_adm(directory, count)
  if config.format == "npz":
    write_images.remove_pngs(directory, count)
  return made


def describe_files(directory: pathlib.Path, count: int) -> str:
  """What is in a directory of so many images."""
  last = write_images.png_path(directory, count - 1).name
  notes = {
    last: f"000000.png to {last}" if count > 1 else last,
    write_images.adm_file(directory, count).name: "{} (all of them)",
    "grid.png": "{} (a contact sheet)",
    "sample.json": "{} (all that they depend on)",
  }
  found = [
    note.format(name)
    for name, note in notes.items()
    if (directory / name).exists()
  ]
  return f"There: {', '.join(found)}"


def describe_next(config: sections.Config, drawn: bool) -> str:
  """What to do next; `drawn` says whether the memories are rows of the bank."""
  if drawn and not config.sample.rows:
    hints = ["a higher --config.sample.count adds images"]
  else:
    hints = ["a higher --config.sample.per_row makes more of each"]
  hints.append("another --config.sample.seed makes others")
  if drawn and config.eval.scores:
    hints.append("--mode=evaluate scores them")
  return f"Next, with the same command: {', '.join(hints)}."


def describe_cost(sampler: schedule.SamplerConfig) -> str:
  """What an image costs, in network calls (NFE)."""
  calls = schedule.num_calls(sampler)
  if calls is None:
    return f"{sampler.method} chooses its number of network calls"
  text = f"{sum(calls)} network calls per image"
  if calls[1]:
    text += f" ({calls[1]} of them for guidance)"
  return f"{text}, {sampler.method}"
