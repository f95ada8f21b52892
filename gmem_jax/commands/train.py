"""`--mode=train`: trains a run, scores its samples, reports on digits."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import progress
from gmem_jax.bank import bank as bank_lib, lookup, sharding as bank_sharding
from gmem_jax.commands import report
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, sources as data_sources, write_images
from gmem_jax.evaluate import build, scores, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import (
  draw_rows,
  sampler as sampler_lib,
  source as source_lib,
)
from gmem_jax.train import (
  dataset as dataset_lib,
  directory as directory_lib,
  fitted,
  loop,
  metrics,
  setup,
  state as train_state,
)

_log = logging.getLogger(__name__)

# Held-out images, and memories of each, in neighbours.png.
NEIGHBOURS = 8


def train_mode(
  config: sections.Config,
  workdir: pathlib.Path,
  callbacks: Sequence[metrics.Callback] = (),
) -> None:
  """Trains, and compares with a network without memory if so configured.

  The callbacks are told the metrics of the network with memory.
  """
  # First what needs no device and no data: a wrong config fails in a second.
  dataset_lib.require(config)
  mesh = make_mesh(config)
  step = directory_lib.finished(config, workdir, mesh)
  if step is not None and _is_reported(config, workdir, step):
    if processes.is_main():
      print(describe_finished(config, workdir, step))
    return
  directory_lib.claim(config, workdir)
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  evaluator = make_evaluator(
    config, mesh, memory.latent_shape, dataset.train_images
  )
  run = make_run(config, workdir, mesh, dataset, memory, evaluator)
  state = loop.train(dataclasses.replace(run, callbacks=callbacks))
  if config.report.unconditional:
    _compare(run, state, evaluator)
  if processes.is_main():
    print(describe_trained(config, workdir, int(state.step)))


def _is_reported(
  config: sections.Config, workdir: pathlib.Path, step: int
) -> bool:
  """Whether a finished run has its report, or is to have none."""
  if not config.report.unconditional:
    return True
  return bool(processes.agree(report.is_written(workdir, step)))


def describe_trained(
  config: sections.Config, workdir: pathlib.Path, step: int
) -> str:
  """What a run has written, and what to do with it."""
  files = [f"samples/bank_{step:07d}.png"]
  if config.report.unconditional:
    files = [*report.FILES, *files]
  files += ["metrics.jsonl", "tensorboard/", f"checkpoints/{step}"]
  scores = " --mode=evaluate scores them," if config.eval.scores else ""
  return (
    f"Trained to step {step}. Written to {workdir}: {', '.join(files)}\n"
    f"Next, with the same command: --mode=sample makes images,{scores} a higher"
    " --config.train.steps trains on."
  )


def describe_finished(
  config: sections.Config, workdir: pathlib.Path, step: int
) -> str:
  """The line on a run that has nothing left to do."""
  result = f"samples are in {workdir}/samples"
  if config.report.unconditional:
    result = f"its report is {workdir}/report.txt"
  return (
    f"This run is finished, it has trained {step} steps; {result}. To train on,"
    " raise --config.train.steps; --mode=sample makes images."
  )


def _compare(
  run: loop.Run,
  state: train_state.TrainState,
  evaluator: scores.Evaluator | None,
) -> None:
  """Trains the network without memory too, and writes the report."""
  config, dataset, memory = run.config, run.dataset, run.memory
  # The config has been checked: the images are in memory.
  assert dataset.train_images is not None
  assert dataset.heldout is not None
  assert dataset.heldout_images is not None
  other = dataclasses.replace(
    config, model=dataclasses.replace(config.model, conditioning="none")
  )
  directory = run.workdir / "unconditional"
  _log.info("now the same network without memory, to compare: %s", directory)
  directory_lib.claim(other, directory)
  other_run = make_run(other, directory, run.mesh, dataset, memory, evaluator)
  other_params = loop.train(other_run).ema
  _log.info("report: sampling %d images, three times", config.eval.count)
  # A sampler of each network, for both banks: it compiles at its first call.
  draw, draw_other = (
    functools.partial(
      draw_samples,
      one,
      source_lib.make_sampler(one, memory, run.mesh),
      source_lib.make_weights(one, memory, weights),
    )
    for one, weights in ((config, state.ema), (other, other_params))
  )
  material = report.Material(
    train=dataset.train_images.pixels,
    heldout=dataset.heldout_images.pixels,
    from_bank=draw(memory.bank, "report: from the bank"),
    from_heldout=draw(
      dataset.heldout.bank, "report: from held-out images", outside=True
    ),
    unconditional=draw_other(memory.bank, "report: without memory"),
    neighbours=neighbours(dataset.heldout.bank, dataset.train.bank),
    distance=lambda pixels: build.score_pixels(evaluator, pixels)["frechet"],
  )
  # All processes have sampled and scored together.
  if not processes.is_main():
    return
  _log.info("report: scoring the images, drawing the pictures")
  print(report.write(material, run.workdir, directory, int(state.step)))


def neighbours(
  queries: bank_lib.MemoryBank, bank: bank_lib.MemoryBank
) -> report.NearestMemories:
  """Looks up the rows of a bank nearest to the first rows of another."""
  first = np.arange(min(NEIGHBOURS, queries.size))
  features = np.asarray(bank_lib.features(queries, first))
  found = lookup.nearest_by_cosine(
    features, lookup.place_units(bank), min(NEIGHBOURS, bank.size)
  )
  return report.NearestMemories(*found)


def make_run(
  config: sections.Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  dataset: dataset_lib.Dataset,
  memory: setup.RunMemory,
  evaluator: scores.Evaluator | None,
) -> loop.Run:
  """Puts a run together; its evaluation scores fresh samples.

  Without an evaluator it only makes pictures.
  """
  # Sampling needs no data set, only this directory.
  setup.save_memory(workdir / "memory", memory)
  fitted.keep(config, workdir)
  sampler = source_lib.make_sampler(config, memory, mesh)
  # The decoder is read here and not at every evaluation; on the host it waits
  # without taking memory of the devices.
  fixed = source_lib.make_weights(config, memory, None)
  shape = protocols.image_shape(fixed.tokenizer, memory.latent_shape)
  count, shown = config.eval.count, config.eval.grid
  # Every evaluation samples the same memories: they are drawn once.
  rows, features = draw_snippets(
    config, memory.bank, np.arange(max(count, shown))
  )
  memories = None
  if config.model.conditioning != "none":
    memories = dataset_lib.images_of_rows(dataset, rows[:shown])

  def evaluate_fn(step: int, params: Any):
    sampled = shown if evaluator is None else count
    _log.info(
      "step %d: sampling %d images; the first call compiles", step, sampled
    )
    weights = dataclasses.replace(fixed, params=params)
    first: list[np.ndarray] = []

    def read(numbers):
      pixels = sampler(
        weights, config.seed, numbers, features[numbers], rows[numbers]
      )
      # The picture shows images that are scored anyway.
      if numbers[0] < shown:
        first.append(pixels)
      return pixels

    values = {}
    if evaluator is None:
      _in_calls("sample", sampler, shown, read)
    else:
      samples = sources.Arrays(
        {"step": step}, count, shape, read, collective=True
      )
      values = evaluator(samples, count)
    pixels = np.concatenate(first)[:shown]
    if memories is not None:
      # To the left of each sample, the image whose memory it is made from.
      pixels = np.concatenate([memories[: len(pixels)], pixels], axis=2)
    scale = max(1, 32 // pixels.shape[1])
    return values, {"bank": write_images.make_grid(pixels, scale=scale)}

  return loop.Run(
    config,
    workdir,
    mesh,
    dataset,
    memory,
    setup.network(config, memory),
    setup.make_retrieve(config, memory.unit),
    evaluate_fn,
  )


def make_evaluator(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  latent_shape: tuple[int, int, int],
  own: data_sources.Images | None,
) -> scores.Evaluator | None:
  """What scores the samples during training, or None if no score is asked for.

  Args:
    config: Names the scores.
    mesh: Where features are computed.
    latent_shape: h, w, c.
    own: The training images, if they are in memory; else
      `config.eval.reference` must name what to compare with.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  if not config.eval.scores:
    return None
  shape = protocols.image_shape(
    load_encoders.load_tokenizer(config), latent_shape
  )
  evaluator = build.make_evaluator(config, mesh, own)
  evaluator.check_shape(shape, config.eval.count, "config.eval.count")
  return build.with_reference(config, evaluator, shape, own)


def draw_samples(
  config: sections.Config,
  sampler: sampler_lib.Sampler,
  weights: sampler_lib.SampleWeights,
  bank: bank_lib.MemoryBank,
  name: str = "sample",
  *,
  outside: bool = False,
) -> report.Samples:
  """The samples of an evaluation: always the same rows and noise.

  If the bank is `outside` of the one that neighbours are looked up in, no row
  is left out there as an image's own. `name` begins the line of progress.
  """
  count, weights = config.eval.count, sampler.place(weights)
  rows, features = draw_snippets(config, bank, np.arange(count))

  def read(numbers):
    own = None if outside else rows[numbers]
    return sampler(weights, config.seed, numbers, features[numbers], own)

  return report.Samples(_in_calls(name, sampler, count, read), rows)


def _in_calls(
  name: str,
  sampler: sampler_lib.Sampler,
  count: int,
  read: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Reads samples 0 to `count`, those of one call at a time, with progress."""
  line = progress.Progress(name, 0, count, unit="image")
  parts = []
  for start in range(0, count, sampler.call_size):
    numbers = np.arange(start, min(start + sampler.call_size, count))
    parts.append(read(numbers))
    line.advance(len(numbers))
  line.close()
  return np.concatenate(parts)


def draw_snippets(
  config: sections.Config, bank: bank_lib.MemoryBank, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the snippets of images [n]; each depends on (seed, number) alone.

  Returns:
    Rows of the bank [n], and their features [n d].
  """
  images = jnp.asarray(numbers.astype(np.int32))
  rows = np.asarray(draw_rows.draw_rows(config.seed, images, bank.size))
  return rows, bank_sharding.read_rows(bank, rows)


def make_mesh(config: sections.Config) -> jax.sharding.Mesh:
  """The mesh of a run.

  Raises:
    ValueError: If the batch or its parts do not divide over it.
  """
  mesh = sharding.make_mesh(config.mesh)
  ways = sharding.batch_ways(mesh)
  batch, parts = config.train.batch_size, config.train.accumulation
  if batch % ways:
    raise ValueError(
      f"config.train.batch_size={batch}: must be a multiple of the mesh's data"
      f" x fsdp = {ways}"
    )
  if batch % (ways * parts):
    raise ValueError(
      f"config.train.accumulation={parts}: must divide the {batch // ways}"
      f" examples that each of data x fsdp = {ways} has of"
      f" config.train.batch_size={batch}"
    )
  return mesh
