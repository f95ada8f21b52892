r"""Kills training runs at random moments; they must end as if undisturbed.

  python -m tests.kill_training --kills=50 --directory=kills

Trains configs/digits.py (shortened by --steps) once without disturbance, and
then again with SIGKILLs: at any moment after the start, while it trains, and
while a checkpoint is being written. Each time the run must go on from its
newest whole checkpoint, and at the end its state must be that of the
undisturbed run, bit for bit.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

ROOT = pathlib.Path(__file__).parents[1]

# Directory -> the command that trains there.
CommandFn = Callable[[pathlib.Path], list[str]]
MOMENTS = ("any", "training", "saving")


@dataclasses.dataclass
class Kills:
  """What was done.

  Attributes:
    counts: Kills at each kind of moment.
    workdirs: Directories of the runs.
    problems: What should not have happened.
  """

  counts: dict[str, int]
  workdirs: list[pathlib.Path]
  problems: list[str]


def saved_steps(workdir: pathlib.Path) -> list[int]:
  """Steps that have a whole checkpoint."""
  found = (workdir / "checkpoints").glob("*")
  return sorted(int(p.name) for p in found if p.name.isdigit())


def saving(workdir: pathlib.Path, since: float) -> bool:
  """Whether a checkpoint is half written now."""
  try:
    return any(
      p.stat().st_mtime > since
      for p in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")
    )
  except FileNotFoundError:  # just finished
    return False


def training(workdir: pathlib.Path, since: float) -> bool:
  """Whether the run has logged since a time."""
  path = workdir / "metrics.jsonl"
  return path.exists() and path.stat().st_mtime > since


def kill_often(
  command: CommandFn,
  directory: pathlib.Path,
  *,
  steps: int,
  kills: int,
  seed: int,
) -> Kills:
  """Kills runs until there were enough kills; ends each run.

  Args:
    command: The command that trains.
    directory: Receives the runs, one after the other.
    steps: Steps of a run; one that is nearly done is ended, and another begun.
    kills: How many kills.
    seed: Seed of the moments.
  """
  rng = np.random.default_rng(seed)
  done = Kills(dict.fromkeys(MOMENTS, 0), [], [])
  workdir = None
  startup = 3.0  # seconds; measured with each run
  while sum(done.counts.values()) < kills:
    if workdir is None:
      workdir = directory / f"run{len(done.workdirs)}"
      done.workdirs.append(workdir)
    moment = min(MOMENTS, key=done.counts.__getitem__)
    started = began = time.time()
    first = max(saved_steps(workdir), default=0)
    log = workdir.with_suffix(".txt")
    with log.open("w") as output:
      process = subprocess.Popen(
        command(workdir), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
      )
    hit = {"training": training, "saving": saving}.get(moment)
    if hit and rng.integers(2):  # half of them get on by a checkpoint first
      wait_until(
        lambda first=first, workdir=workdir: (
          max(saved_steps(workdir), default=0) > first
        ),
        process,
        600,
      )
      began = time.time()
    wait_until(
      functools.partial(hit, workdir, began) if hit else lambda: False,
      process,
      600 if hit else rng.uniform(0, startup),
    )
    if moment == "training":
      startup = time.time() - started
      time.sleep(rng.uniform(0, 0.4))
    alive = process.poll() is None
    if alive and (moment != "saving" or saving(workdir, began)):
      done.counts[moment] += 1
    process.kill()
    process.wait()
    text = log.read_text()
    if first and "train" in text and f"from step {first}" not in text:
      done.problems.append(f"{workdir}: did not go on from {first}:\n{text}")
    if max(saved_steps(workdir), default=0) < first:
      done.problems.append(f"{workdir}: the checkpoint of {first} is lost")
    if max(saved_steps(workdir), default=0) > 0.8 * steps:
      workdir = None
  for workdir in done.workdirs:
    result = subprocess.run(
      command(workdir), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
      done.problems.append(f"{workdir}: {result.stderr}")
  return done


def wait_until(condition, process: subprocess.Popen, seconds: float) -> None:
  """Waits for a condition, the end of a process, or a time."""
  deadline = time.time() + seconds
  while process.poll() is None and time.time() < deadline and not condition():
    time.sleep(0.0005)


def newest_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Path in the newest checkpoint -> array."""
  path = str(workdir / "checkpoints" / str(saved_steps(workdir)[-1]))
  target = jax.tree.map(
    lambda leaf: np.empty(leaf.shape, leaf.dtype), ocp.metadata(path).metadata
  )
  return {
    jax.tree_util.keystr(key): leaf
    for key, leaf in jax.tree_util.tree_leaves_with_path(ocp.load(path, target))
  }


def differences(workdir: pathlib.Path, reference: pathlib.Path) -> list[str]:
  """Arrays in which the newest checkpoints of two runs differ."""
  ours, theirs = newest_state(workdir), newest_state(reference)
  return sorted(ours.keys() ^ theirs.keys()) + [
    name
    for name in ours.keys() & theirs.keys()
    if not np.array_equal(ours[name], theirs[name])
  ]


def main() -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--directory", type=pathlib.Path, required=True)
  parser.add_argument("flags", nargs="*", help="more flags of gmem_jax.main")
  args = parser.parse_args()
  args.directory.mkdir(parents=True)
  os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(args.directory.absolute() / "cache")
  )
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

  def command(workdir):
    return [
      sys.executable, "-m", "gmem_jax.main", "--config=configs/digits.py",
      f"--workdir={workdir.absolute()}", f"--config.train.steps={args.steps}",
      "--config.report.unconditional=False", "--config.checkpoint.every=50",
      *args.flags,
    ]  # fmt: skip

  reference = args.directory / "undisturbed"
  subprocess.run(command(reference), cwd=ROOT, check=True)
  done = kill_often(
    command, args.directory, steps=args.steps, kills=args.kills, seed=args.seed
  )
  for workdir in done.workdirs:
    found = differences(workdir, reference)
    done.problems += [f"{workdir}: {name} differs" for name in found]
  print(f"{done.counts} kills of {len(done.workdirs)} runs")
  print("\n".join(done.problems) or "all ended as if nothing had happened")
  return bool(done.problems)


if __name__ == "__main__":
  sys.exit(main())
