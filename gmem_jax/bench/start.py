"""Seconds from the command to the first training step, cold and again.

Starts the real command twice, each time in a new directory, with one directory
of compiled programs (config.compile_cache) that is empty at first. "first step"
is when the metrics of the first step are written. "imports" is a process that
imports what training imports and does no more: no cache can spare that.

The small size is a LightningDiT of 28 blocks, 192 wide, on the digits.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gmem_jax.bench import _recipe, _results, _timing
from gmem_jax.files import errors

SMALL = {
  "model.family": "lightning_dit",
  "model.width": 192,
  "model.depth": 28,
  "model.swiglu": True,
  "model.rope": True,
  "model.rms_norm": True,
  "model.snippet_dropout": 0.4,
  "train.batch_size": 16,
}
# Every step is reported, so that the first shows.
REPORTED = {
  "train.steps_per_dispatch": 1,
  "train.log_every": 1,
}
GOAL = 0.2
_PATIENCE = 1800  # seconds


def environment() -> dict[str, str]:
  """That of this process, without a cache of its own."""
  # A cache that the user set would make the first start a warm one.
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))
  }


def imports() -> float:
  """Seconds in which a process imports what training imports."""
  start = time.monotonic()
  subprocess.run(
    [sys.executable, "-c", "import gmem_jax.main, gmem_jax.commands.train"],
    env=environment(),
    check=True,
  )
  return time.monotonic() - start


def first_step(
  config: str, changes: Mapping[str, Any], cache: pathlib.Path
) -> float:
  """Seconds from the command to the first step; the run ends there.

  Raises:
    RuntimeError: If the run ends before, with what it said.
  """
  with tempfile.TemporaryDirectory(prefix="gmem_jax_start_") as name:
    directory = pathlib.Path(name)
    metrics, log = directory / "run" / "metrics.jsonl", directory / "log"
    changes = {**changes, "compile_cache": cache}
    command = _recipe.train_command(config, directory / "run", changes)
    start = time.monotonic()
    with log.open("w") as said:
      process = subprocess.Popen(
        command, env=environment(), stdout=said, stderr=said
      )
    try:
      while not metrics.exists() or "\n" not in metrics.read_text():
        if process.poll() is not None or time.monotonic() - start > _PATIENCE:
          raise RuntimeError(f"no first step: {log.read_text()[-2000:]}")
        time.sleep(0.02)
      return time.monotonic() - start
    finally:
      process.kill()
      process.wait()


def main(argv: Sequence[str] | None = None) -> int:
  """Starts training, cold and again, and prints the table.

  Returns:
    0, or 1 where the second start took more than its share.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench start",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: python -m gmem_jax.bench start --repeats=3 --results",
  )
  small = _recipe.describe(SMALL)
  _recipe.add_arguments(parser, _recipe.DIGITS, small, apart=True)
  parser.add_argument(
    "--repeats", type=int, default=1, help="medians of so many"
  )
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  try:
    config = _recipe.load(args, SMALL | REPORTED)
    changes = _recipe.changes_of(args, SMALL) | REPORTED
  except ValueError as error:
    parser.error(str(error))
  del config  # It is good.
  seconds: dict[str, list[float]] = {"imports": [], "cold": [], "again": []}
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory(prefix="gmem_jax_cache_") as cache:
      seconds["imports"].append(imports())
      for name in ("cold", "again"):
        seconds[name].append(
          first_step(args.config, changes, pathlib.Path(cache))
        )
  found = {name: statistics.median(values) for name, values in seconds.items()}
  share = found["again"] / found["cold"]
  rest = (found["again"] - found["imports"]) / (
    found["cold"] - found["imports"]
  )
  words = (
    f"`python -m gmem_jax.bench start`: {pathlib.Path(args.config).name} with"
    f" {_recipe.describe(changes)}. {_results.machine()}. Medians of"
    f" {args.repeats}. Seconds from the command to the first step; the goal is"
    f" at most {GOAL:.0%} of the cold start."
  )
  head = ["imports, s", "cold, s", "again, s", "share", "share without imports"]
  row = [f"{found[name]:.1f}" for name in seconds]
  row += [f"{share:.1%}", f"{rest:.1%}"]
  _results.finish(args, "start", words, _timing.markdown(head, [row]))
  return int(share > GOAL)
