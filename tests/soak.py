r"""Disturbs a job of two processes again and again; it must end as if alone.

  python -m tests.soak --where=disk --directory=soak
  python -m tests.soak --where=bucket --directory=soak

Trains configs/digits.py, made longer, over loopback: once undisturbed, and once
with disasters of each kind, in an order and at moments that the seed draws. One
process is killed, or told to stop; the storage server is gone for a while; a
disk is full. As a launcher would, it starts the job again whenever that ends
with another status than 0; 2 would end it. The last state must be that of the
undisturbed job, bit for bit.
"""

import argparse
import os
import pathlib
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests import job as job_lib, kill_training, storage_server

# Exit status of training that was told to stop.
STOPPED = 75
KINDS = {"disk": ("kill", "stop", "full"), "bucket": ("kill", "stop", "server")}
# Seconds that the storage server is away: less, and more, than the libraries
# wait for it.
AWAY = (5.0, 150.0)


class Soak:
  """A job that is disturbed.

  Attributes:
    workdir: Its directory, as files of this machine.
    starts: How often it was started.
    statuses: Disaster -> the statuses of the processes after it.
    seconds: Disaster -> seconds until all of them had ended.
    survived: How often the job outlived the storage server's absence.
  """

  def __init__(self, args: argparse.Namespace):
    """Starts the storage server, if the job is to use one."""
    self._args, self._storage = args, None
    self.workdir = args.directory / "disturbed"
    name = str(self.workdir)
    if args.where == "bucket":
      self._storage = storage_server.Server(args.directory)
      os.environ.update(self._storage.environment)
      self.workdir, name = self._storage.root / "run", "gs://bucket/run"
    self._name = name
    self._rng = np.random.default_rng(args.seed)
    self.starts = 0
    self.statuses: dict[str, list[list[int]]] = {}
    self.seconds: dict[str, list[float]] = {}
    self.survived = 0

  def run(self) -> None:
    """Trains to the end, with all disasters on the way."""
    kinds = [*KINDS[self._args.where]] * self._args.times
    self._rng.shuffle(kinds)
    for kind in kinds:
      job = self._start()
      self._wait_for_steps(job)
      began = time.monotonic()
      {
        "kill": self._kill,
        "stop": self._stop,
        "full": self._fill,
        "server": self._lose_server,
      }[kind](job)
      statuses = job.wait(900)
      self.statuses.setdefault(kind, []).append(statuses)
      self.seconds.setdefault(kind, []).append(time.monotonic() - began)
      print(f"{kind}: statuses {statuses}", flush=True)
      if 2 in statuses:
        raise RuntimeError(f"no launcher would go on: {job.output(0)}")
      if statuses == [0, 0]:
        raise RuntimeError("it ended before all disasters: take more steps")
    while (statuses := self._start().wait(3600)) != [0, 0]:
      print(f"nothing: statuses {statuses}", flush=True)
    if self._storage is not None:
      self._storage.kill()

  def _start(self) -> job_lib.Job:
    self.starts += 1
    return start(self._name, self._args, self._args.directory / "outputs")

  def _wait_for_steps(self, job: job_lib.Job) -> None:
    """Until a new checkpoint is there, and a moment more."""
    before = max(kill_training.saved_steps(self.workdir), default=0)
    kill_training.wait_until(
      lambda: max(kill_training.saved_steps(self.workdir), default=0) > before,
      job.processes[0],
      600,
    )
    time.sleep(self._rng.uniform(0, 3))

  def _kill(self, job: job_lib.Job) -> None:
    job.processes[self._rng.integers(2)].kill()

  def _stop(self, job: job_lib.Job) -> None:
    job.processes[self._rng.integers(2)].send_signal(signal.SIGTERM)

  def _fill(self, job: job_lib.Job) -> None:
    # As on a full disk, what is written fails; the log is shorter than that.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for process in job.processes:
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 16, hard))

  def _lose_server(self, job: job_lib.Job) -> None:
    assert self._storage is not None
    away = AWAY[len(self.statuses.get("server", ())) % len(AWAY)]
    self._storage.kill()
    time.sleep(away)
    self._storage.start()
    if away == min(AWAY):
      # The libraries have asked again: the job goes on until it is stopped.
      self._wait_for_steps(job)
      if job.processes[0].poll() is None:
        self.survived += 1
        self._stop(job)


def start(
  workdir: str, args: argparse.Namespace, outputs: pathlib.Path
) -> job_lib.Job:
  """Starts the two processes."""
  changes: dict[str, Any] = {
    "train__steps": args.steps,
    "checkpoint__every": args.every,
    "eval__every": 0,
    "report__unconditional": False,
  }
  flags = "--config.eval.scores=()", f"--stopped_status={STOPPED}"
  return job_lib.Job(
    workdir, *flags, count=2, outputs=outputs, full=True, **changes
  )


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; its exit status is 1 if anything differs."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0]
  )
  parser.add_argument("--where", choices=tuple(KINDS), default="disk")
  parser.add_argument("--directory", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, default=3000)
  parser.add_argument("--every", type=int, default=100, help="of checkpoints")
  parser.add_argument("--times", type=int, default=4, help="of each disaster")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  args.directory = args.directory.absolute()
  args.directory.mkdir(parents=True)
  reference = args.directory / "undisturbed"
  undisturbed = start(str(reference), args, args.directory / "outputs")
  if undisturbed.wait(3600) != [0, 0]:
    raise RuntimeError(undisturbed.output(0))
  soak = Soak(args)
  soak.run()
  for kind, statuses in soak.statuses.items():
    seconds = ", ".join(f"{x:.1f}" for x in soak.seconds[kind])
    print(f"{kind}: statuses {statuses}; ended after {seconds} s")
  print(f"{soak.starts} starts; the job outlived the server {soak.survived} x")
  found = kill_training.differences(soak.workdir, reference)
  print("\n".join(found) or "it ended as if nothing had happened")
  return bool(found)


if __name__ == "__main__":
  sys.exit(main())
