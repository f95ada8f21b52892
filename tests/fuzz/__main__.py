"""python -m tests.fuzz: hostile files by the thousand, and what reading does.

Valid tiny files of every kind that the package reads are damaged at random, or
made by hand to harm, and read as the commands read them. No file may run or
write anything, take more than ten seconds, or more memory than twice its size
and a gigabyte, or show as anything but bad input.

A case is its number and the seed: `--case N` shows it again.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import queue
import select
import subprocess
import sys
import tempfile
import time
from typing import Any

from gmem_jax import progress
from tests.fuzz import originals

# A case's seconds of the processor. A machine may be slow: the clock has more.
SECONDS, CLOCK = 10, 300
_STARTED = 900


class _Process:
  """A process of `watch`; replaced when a case ends it."""

  def __init__(self, root: pathlib.Path, scratch: pathlib.Path, seed: int):
    self._arguments = [str(root), str(scratch), str(seed)]
    self._start()

  def _start(self) -> None:
    self._child = subprocess.Popen(
      [sys.executable, "-m", "tests.fuzz.watch", *self._arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      bufsize=0,
    )
    self._answer(_STARTED, _STARTED)

  def _seconds(self) -> float:
    """Of the processor, so far."""
    with open(f"/proc/{self._child.pid}/stat") as file:
      fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

  def _answer(self, seconds: float, clock: float) -> dict[str, Any] | None:
    """The next answer, or None if there is none in time."""
    stdout: Any = self._child.stdout
    begun, before = time.monotonic(), self._seconds()
    while not select.select([stdout], [], [], 1)[0]:
      used = self._seconds() - before
      if used > seconds or time.monotonic() - begun > clock:
        return None
    line = stdout.readline()
    return json.loads(line) if line else {"dead": self._child.wait()}

  def run(self, number: int) -> dict[str, Any]:
    """What a case is, and what `watch.run` says of it or became of it."""
    stdin: Any = self._child.stdin
    stdin.write(f"{number}\n".encode())
    case = self._answer(_STARTED, _STARTED) or {}
    begun = time.monotonic()
    answer = self._answer(SECONDS, CLOCK)
    if answer is None or "dead" in answer:
      fault = f"still running after {SECONDS} s"
      if answer:
        fault = f"the process ended with status {answer['dead']}"
      answer = {"ending": "fault", "memory": 0, "fault": fault}
      self.close()
      self._start()
    seconds = time.monotonic() - begun
    return {"number": number, "seconds": seconds, **case, **answer}

  def close(self) -> None:
    self._child.kill()
    self._child.wait()


def run(
  root: pathlib.Path, numbers: list[int], seed: int, workers: int
) -> list[dict[str, Any]]:
  """Runs cases in processes of their own; returns what each did."""
  bar = progress.Progress("fuzz", 0, len(numbers), "case")
  originals.make(root / "originals")
  idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()

  def work(number: int) -> dict[str, Any]:
    process = idle.get()
    try:
      return process.run(number)
    finally:
      idle.put(process)

  with (
    contextlib.closing(bar),
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    contextlib.ExitStack() as stack,
  ):
    started = pool.map(
      lambda i: _Process(root / "originals", root / f"scratch{i}", seed),
      range(workers),
    )
    for process in started:
      stack.callback(process.close)
      idle.put(process)
    found = []
    for answer in pool.map(work, numbers):
      found.append(answer)
      bar.advance(1)
      # At once: the whole may take hours.
      if answer["fault"]:
        logging.warning("%s", _described(answer))
    return found


def summary(found: list[dict[str, Any]]) -> str:
  """What was tried and held, a line for each kind, and every fault."""
  kinds = collections.defaultdict(list)
  for answer in found:
    kinds[answer["kind"]].append(answer)
  lines = [f"{'kind':<12} cases  read  refused  slowest s  most MB  faults"]
  for kind, answers in sorted(kinds.items()):
    endings = collections.Counter(answer["ending"] for answer in answers)
    slowest = max(answer["seconds"] for answer in answers)
    most = max(answer["memory"] for answer in answers) / 1e6
    lines.append(
      f"{kind:<12} {len(answers):>5} {endings['read']:>5}"
      f" {endings['refused']:>8} {slowest:>10.1f} {most:>8.0f}"
      f" {endings['fault']:>7}"
    )
  lines += [_described(answer) for answer in found if answer["fault"]]
  return "\n".join(lines)


def _described(answer: dict[str, Any]) -> str:
  """A fault in a line, and how to see it again."""
  last = answer["fault"].strip().splitlines()[-1][:300]
  case = f"--case {answer['number']}, {answer['kind']} {answer['name']}"
  return f"FAULT {case}: {last}"


def main() -> int:
  """Runs the program; returns its exit status, 1 if there was a fault."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.fuzz", description=__doc__
  )
  parser.add_argument("--cases", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--case", type=int, help="run this one alone")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  args = parser.parse_args()
  logging.basicConfig(format="%(message)s", force=True)
  logging.getLogger("gmem_jax").setLevel(logging.INFO)
  numbers = list(range(args.cases)) if args.case is None else [args.case]
  with tempfile.TemporaryDirectory(prefix="gmem_jax_fuzz_") as folder:
    workers = min(args.workers, len(numbers))
    found = run(pathlib.Path(folder), numbers, args.seed, workers)
  if args.case is not None:
    print(found[0]["fault"])
  print(summary(found))
  return int(any(answer["fault"] for answer in found))


if __name__ == "__main__":
  sys.exit(main())
