"""`--mode=evaluate`: scores of a run's samples, or of given images."""

import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np

from gmem_jax.commands import sample
from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.evaluate import (
  accumulate,
  audit as audit_lib,
  audit_report,
  build,
  floor as floor_lib,
  open as open_lib,
  results,
  sources,
)
from gmem_jax.files import paths
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import generator as generator_lib
from gmem_jax.train import dataset as dataset_lib


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is scored.

  Attributes:
    name: Names the files of the result.
    source: The images, all of which are scored.
    info: All that they depend on; JSON.
    step: The training step that they are of, or None.
    claim: Keeps other jobs out of where they are kept, while they are read.
  """

  name: str
  source: sources.ImageSource
  info: dict[str, Any]
  step: int | None
  claim: contextlib.AbstractContextManager[None]


def evaluate_mode(config: sections.Config, workdir: paths.Path) -> None:
  """Scores images and writes a json to WORKDIR/evaluations."""
  # Only the digits' classifier and the audit read training images.
  in_memory = config.data.source == "digits" and not config.data.prepared
  audited = config.eval.audit and config.data.source != "none"
  dataset = dataset_lib.load(config) if in_memory or audited else None
  if config.eval.images:
    own = dataset.train_images if dataset else None
    subject = _given(config, own.pixels.shape[-1] if own else 3)
  else:
    subject = _sampled(config, workdir)
  with subject.claim:
    _score(config, workdir, subject, dataset)


def _score(
  config: sections.Config,
  workdir: paths.Path,
  subject: Subject,
  dataset: dataset_lib.Dataset | None,
) -> None:
  """Scores images, audits them if asked to, and writes the results."""
  own = dataset.train_images if dataset else None
  source, count = subject.source, subject.source.count
  mesh = sharding.make_mesh(config.mesh)
  evaluator = build.make_evaluator(config, mesh, own)
  # All that can be refused is, before the first of 50,000 images is made.
  try:
    evaluator.check(source, count)
  except ValueError as error:
    images = config.eval.images
    key = f"config.eval.images={images!r}: " if images else ""
    raise ValueError(f"{key}{error}") from None
  audit = None
  if config.eval.audit:
    audit = audit_lib.Auditor(config, dataset, count, source.shape)
  directory = workdir / "evaluations"
  partial, board = directory / "partial", workdir / "tensorboard"
  with accumulate.PartialStore(partial, config.eval.save_every) as store:
    evaluator = build.with_reference(
      config, evaluator, source.shape, own, store
    )
    evaluator = build.with_heldout(
      config,
      evaluator,
      source.shape,
      dataset.heldout_images if dataset else None,
      store,
    )
    scores = evaluator(source, count, store)
    real = build.real_images(config, own, source.shape[-1])
    floor = floor_lib.of_reference(evaluator, real, count, store)
    details = scores, evaluator, count, subject.info
    path = results.write(
      directory,
      subject.name,
      *details,
      board=board,
      step=subject.step,
      floor=floor,
    )
    store.forget()
  if processes.is_main():
    print(results.table(scores, count, floor))
  if audit:
    text = audit_report.write(path.with_suffix(""), audit(source), subject.info)
    if processes.is_main():
      print(text)
  if processes.is_main():
    print(results.written(path, board))


def _given(config: sections.Config, channels: int) -> Subject:
  """The images that `eval.images` names."""
  try:
    path = paths.local(config.eval.images)
    source = open_lib.open_images(path, channels=channels)
  except ValueError as error:
    raise ValueError(f"config.eval.images: {error}") from None
  info = {"source": source.info}
  free = contextlib.nullcontext()  # Nothing is written there.
  return Subject(results.name_of(path), source, info, None, free)


def _sampled(config: sections.Config, workdir: paths.Path) -> Subject:
  """The images that `--mode=sample` would make, made as they are needed."""
  generator = generator_lib.from_config(config, workdir)
  plan, source = generator.plan(), generator.source
  make, info = functools.partial(generator.make, plan), generator.record(plan)
  claim = contextlib.nullcontext()
  if config.eval.keep_images:
    directory = sample.directory_of(generator, plan)
    claim = write_images.claimed(directory, info)
    make = _keeping(make, directory)
  tokenizer = source.weights.tokenizer
  shape = protocols.image_shape(tokenizer, source.sampler.latent_shape)
  images = sources.Arrays(info, plan.count, shape, make, collective=True)
  name, step = sample.name_of(generator, plan), source.info.get("step")
  return Subject(name, images, {"samples": info}, step, claim)


def _keeping(make, directory: paths.Path):
  """Writes the images that are made; reads those already written."""

  def kept(numbers: np.ndarray) -> np.ndarray:
    paths = [directory / f"{number:06d}.png" for number in numbers]
    missing = np.array([not path.exists() for path in paths])
    if not processes.agree(missing).any():
      return np.stack([write_images.read_png(path) for path in paths])
    # All of the batch, as all hosts must make the same.
    pixels = make(numbers)
    if processes.is_main():
      for path, image in zip(paths, pixels, strict=True):
        write_images.save_png(path, image)
    return pixels

  return kept
