"""Trains the network without memory too, and reports on both."""

import dataclasses
import functools
import logging

import numpy as np

from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.commands import report, runs
from gmem_jax.config import sections
from gmem_jax.data import sources as data_sources
from gmem_jax.evaluate import build, floor, scores
from gmem_jax.parallel import processes
from gmem_jax.sample import sampler as sampler_lib, source as source_lib
from gmem_jax.train import (
  directory as directory_lib,
  loop,
  run as run_lib,
  state as train_state,
)

_log = logging.getLogger(__name__)

# Held-out images, and memories of each, in neighbours.png.
NEIGHBOURS = 8


def compare(
  run: run_lib.Run,
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
  other_run = runs.make_run(
    other, directory, run.mesh, dataset, memory, evaluator
  )
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
    floor=_floor(evaluator, dataset.train_images, config.eval.count),
  )
  # All processes have sampled and scored together.
  if not processes.is_main():
    return
  _log.info("report: scoring the images, drawing the pictures")
  step = int(state.step)
  print(report.write(material, run.workdir, directory, config, step))


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
  rows, features = runs.draw_snippets(config, bank, np.arange(count))

  def read(numbers):
    own = None if outside else rows[numbers]
    return sampler(weights, config.seed, numbers, features[numbers], own)

  return report.Samples(runs.sample_in_calls(name, sampler, count, read), rows)


def _floor(
  evaluator: scores.Evaluator | None, own: data_sources.Images, count: int
) -> float | None:
  """That of the report, or None where there are too few real images."""
  assert evaluator is not None, "config checks that the report has its score"
  real = build.images_source(own)
  evaluator = dataclasses.replace(evaluator, scores=("frechet",))
  try:
    floor.sizes(evaluator, real.count, count)
  except ValueError:
    return None
  return floor.measure(evaluator, real, count).scores["frechet"]
