"""`--mode=prior`: trains a prior on the rows of a bank."""

from gmem_jax.bank import files as bank_files
from gmem_jax.config import sections
from gmem_jax.data import row_images
from gmem_jax.files import paths
from gmem_jax.parallel import lock, processes
from gmem_jax.train import directory as directory_lib, loop, prior as prior_lib


def prior_mode(config: sections.Config, workdir: paths.Path) -> None:
  """Trains the prior of a run, or of the bank of converted weights.

  It is kept in WORKDIR/prior, and continues there after a kill.

  Raises:
    ValueError: If there is no bank, or no prior can be trained on it.
  """
  path = config.sample.bank or config.sample.network or str(workdir)
  if path == str(workdir):
    if not (workdir / "memory").exists():
      raise ValueError(
        f"--workdir={workdir}: no run was trained there, and neither"
        " config.sample.bank nor config.sample.network names a bank"
      )
    directory_lib.check(config, workdir)
  stored = bank_files.read(path)
  images = row_images.find(path, stored)
  with lock.held(workdir, "--workdir"):
    run = prior_lib.make_run(
      config, workdir, stored, images.classes if images else ()
    )
    state = loop.train(run)
  if processes.is_main():
    print(describe(run, int(state.step)))


def describe(run: prior_lib.PriorRun, step: int) -> str:
  """What was written, and what to do with it."""
  groups = len(run.record.groups)
  known = f", {groups} groups" if groups else ""
  return (
    f"Trained to step {step}, on {run.record.rows:,} rows{known}. Written to"
    f" {run.workdir}: metrics.jsonl, tensorboard/, checkpoints/{step}\n"
    "Next, with the same command: --mode=sample --config.sample.draw=prior"
    " makes images without the bank."
  )
