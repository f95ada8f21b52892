"""`--mode=sample`: images from a run, or from converted weights."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.diffusion import schedule
from gmem_jax.files import paths
from gmem_jax.parallel import processes
from gmem_jax.sample import draw_rows, generator as generator_lib, sheet


def sample_mode(
  config: sections.Config,
  workdir: paths.Path,
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
  if (images or pairs) and config.sample.draw == "prior":
    raise ValueError(
      f"{'--image' if images else '--interpolate'} names the memories, which"
      " config.sample.draw='prior' draws: give one of the two"
    )
  generator = generator_lib.from_config(config, workdir)
  plan = generator.plan(images, pairs)
  directory = directory_of(generator, plan)
  with write_images.claimed(directory, generator.record(plan)):
    made = _write(generator, plan, directory)
  if processes.is_main():
    cost = describe_cost(config.sampler)
    print(f"{made} images made, {plan.count} in {directory}; {cost}")
    print(describe_files(directory, plan.count))
    print(describe_next(config, drawn=not (images or pairs)))


def directory_of(
  generator: generator_lib.Generator, plan: draw_rows.Plan
) -> paths.Path:
  """The samples' directory: `sample.output`, or one in WORKDIR/images.

  Its name ends in a digest of all that the samples depend on: other settings
  get another directory, the same again find their own.
  """
  config = generator.config.sample
  # Absolute: processes of a job may have different working directories.
  if config.output:
    return paths.of(config.output)
  settings, images = generator.record(plan), generator.workdir / "images"
  name = name_of(generator, plan)
  parts = generator.source.name, f"seed_{config.seed}", plan.name
  # Directories were called so when names, and settings, told less.
  later = write_images.LATER.items()
  fewer = {k: v for k, v in settings.items() if (k, v) not in later}
  for old in ("_".join(filter(None, parts)), f"{name}_{_digest(fewer)}"):
    if processes.agree(_is_of(images / old, settings)):
      return images / old
  return images / f"{name}_{_digest(settings)}"


def _digest(settings: dict[str, Any]) -> str:
  text = json.dumps(settings, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def name_of(generator: generator_lib.Generator, plan: draw_rows.Plan) -> str:
  """What samples are called: their settings, as far as a name can tell."""
  sampler = generator.config.sampler
  parts = [generator.source.name, f"{sampler.method}_{sampler.steps}"]
  if sampler.guidance.scale != 1:
    parts.append(f"guidance_{sampler.guidance.scale:g}")
  parts.append(f"seed_{generator.config.sample.seed}")
  return "_".join([*parts, plan.name] if plan.name else parts)


def _is_of(directory: paths.Path, settings: dict[str, Any]) -> bool:
  """Whether a directory has samples of these settings."""
  path = directory / "sample.json"
  return path.exists() and not write_images.differences(path, settings)


def _write(
  generator: generator_lib.Generator,
  plan: draw_rows.Plan,
  directory: paths.Path,
) -> int:
  """Makes what is missing; returns how many images that was."""
  config, count = generator.config.sample, plan.count
  packed = write_images.adm_file(directory, count).exists()
  # Its PNG files were removed: they must not look as if they were missing.
  if config.format == "npz" and processes.agree(packed):
    return 0
  made = write_images.write_folder(
    directory,
    count,
    config.batch_size,
    lambda numbers: generator.make(plan, numbers),
  )
  if not processes.is_main():
    return made
  if config.grid:
    sheet.write(directory, plan.lines(min(count, config.grid)))
  if config.format != "png":
    write_images.write_adm(directory, count)
  if config.format == "npz":
    write_images.remove_pngs(directory, count)
  return made


def describe_files(directory: paths.Path, count: int) -> str:
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
