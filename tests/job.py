"""Several real processes of one job on this machine, over loopback."""

import os
import socket
import subprocess
import sys
import time

from tests import tiny


def free_port() -> int:
  """A port whose successor is free, too."""
  while True:
    with socket.socket() as a, socket.socket() as b:
      a.bind(("127.0.0.1", 0))
      port = a.getsockname()[1]
      try:
        b.bind(("127.0.0.1", port + 1))
      except (OSError, OverflowError):
        continue
      return port


def command(workdir, *extra, full=False, **changes) -> list[str]:
  """The command line of a tiny run, or of the digits config itself."""
  given = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
  return [
    sys.executable,
    "-m",
    "gmem_jax.main",
    f"--config={tiny.ROOT}/configs/digits.py",
    f"--workdir={workdir}",
    *(given if full else tiny.flags(**changes)),
    *extra,
  ]


class Job:
  """Processes of one job; the outputs go to files beside the run's."""

  def __init__(
    self, workdirs, *extra, count=None, outputs, full=False, **changes
  ):
    """Starts them.

    Args:
      workdirs: One directory, or one for each process.
      *extra: More flags.
      count: Number of processes; `workdirs` are as many by default.
      outputs: Directory of their outputs.
      full: The digits config itself, not the tiny one.
      **changes: Keys of the config.
    """
    if not isinstance(workdirs, list):
      workdirs = [workdirs] * count
    self.port = free_port()
    outputs.mkdir(exist_ok=True)
    stamp = time.monotonic_ns()
    self.logs, self.processes = [], []
    for i, workdir in enumerate(workdirs):
      flags = [
        f"--coordinator=127.0.0.1:{self.port}",
        f"--processes={len(workdirs)}",
        f"--process={i}",
      ]
      self.logs.append(outputs / f"{stamp}_{i}.txt")
      with self.logs[-1].open("w") as log:
        self.processes.append(
          subprocess.Popen(
            command(workdir, *flags, *extra, full=full, **changes),
            # As launch/local.sh, so that one status is that of all.
            env=dict(os.environ, GMEM_SECRET="known to these alone"),
            cwd=tiny.ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
          )
        )

  def wait(self, seconds=900) -> list[int]:
    """Waits for all; returns their exit statuses."""
    deadline = time.monotonic() + seconds
    try:
      for process in self.processes:
        process.wait(max(deadline - time.monotonic(), 0.1))
    finally:
      for process in self.processes:
        process.kill()
        process.wait()
    return [p.returncode for p in self.processes]

  def output(self, i) -> str:
    """What process i printed."""
    return self.logs[i].read_text()

  def messages(self) -> list[list[str]]:
    """Each process's lines of "gmem_jax: …"."""
    return [
      [x for x in self.output(i).splitlines() if x.startswith("gmem_jax:")]
      for i in range(len(self.logs))
    ]
