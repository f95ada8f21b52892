"""`--mode=train`: trains a run, scores its samples, reports on digits."""

import dataclasses
from collections.abc import Sequence

from gmem_jax.commands import compare, report, runs
from gmem_jax.config import sections
from gmem_jax.files import atomic, paths
from gmem_jax.parallel import processes
from gmem_jax.train import (
  dataset as dataset_lib,
  directory as directory_lib,
  loop,
  metrics,
  milestones,
  setup,
)


def train_mode(
  config: sections.Config,
  workdir: paths.Path,
  callbacks: Sequence[metrics.Callback] = (),
) -> None:
  """Trains, and compares with a network without memory if so configured.

  The callbacks are told the metrics of the network with memory.
  """
  # First what needs no device and no data: a wrong config fails in a second.
  dataset_lib.require(config)
  mesh = runs.make_mesh(config)
  step = directory_lib.finished(config, workdir, mesh)
  if step is not None and _is_reported(config, workdir, step):
    if processes.is_main():
      print(describe_finished(config, workdir, step))
    return
  directory_lib.claim(config, workdir)
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  evaluator = runs.make_evaluator(
    config, mesh, memory.latent_shape, dataset.train_images
  )
  run = runs.make_run(config, workdir, mesh, dataset, memory, evaluator)
  state = loop.train(dataclasses.replace(run, callbacks=callbacks))
  if config.report.unconditional:
    compare.compare(run, state, evaluator)
  if processes.is_main():
    if not config.report.unconditional:
      _report_thresholds(config, workdir, len(dataset.train.records))
    print(describe_trained(config, workdir, int(state.step)))


def _report_thresholds(
  config: sections.Config, workdir: paths.Path, size: int
) -> None:
  """Writes report.txt of a run that has no other report."""
  records = metrics.read_jsonl(workdir / "metrics.jsonl")
  text = milestones.table(config, size, {"this run": records})
  if text:
    atomic.write_text(workdir / "report.txt", text)
    print(text)


def _is_reported(
  config: sections.Config, workdir: paths.Path, step: int
) -> bool:
  """Whether a finished run has its report, or is to have none."""
  if not config.report.unconditional:
    return True
  return bool(processes.agree(report.is_written(workdir, step)))


def describe_trained(
  config: sections.Config, workdir: paths.Path, step: int
) -> str:
  """What a run has written, and what to do with it."""
  files = [f"samples/bank_{step:07d}.png"]
  if config.report.unconditional:
    files = [*report.FILES, *files]
  elif config.eval.thresholds:
    files = ["report.txt", *files]
  files += ["metrics.jsonl", "tensorboard/", f"checkpoints/{step}"]
  scores = " --mode=evaluate scores them," if config.eval.scores else ""
  return (
    f"Trained to step {step}. Written to {workdir}: {', '.join(files)}\n"
    f"Next, with the same command: --mode=sample makes images,{scores} a higher"
    " --config.train.steps trains on."
  )


def describe_finished(
  config: sections.Config, workdir: paths.Path, step: int
) -> str:
  """The line on a run that has nothing left to do."""
  result = f"samples are in {workdir}/samples"
  if config.report.unconditional:
    result = f"its report is {workdir}/report.txt"
  return (
    f"This run is finished, it has trained {step} steps; {result}. To train on,"
    " raise --config.train.steps; --mode=sample makes images."
  )
