"""Checkpoints of the training state: what a save costs training, and restoring.

Saves the state of the run as training does, uncompressed, while a step could
go on; in turns with orbax as it is by default (compressed), and with torch.save
of the same arrays where torch is installed. Times are medians. The columns:

  blocking   until the state may be changed: training waits so long
  total      until everything is on disk
  MB/s       bytes of the state over the total
  restore    back onto the device, the digests checked
  disk       bytes of the checkpoint
  of a step  the blocking part, over `config.checkpoint.every` steps

What the page cache takes counts as written, as everywhere.
"""

import argparse
import importlib
import importlib.util
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gmem_jax.bench import _recipe, _results, _timing, _training
from gmem_jax.files import errors
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint as checkpoint_lib

OURS, DEFAULT, TORCH = "gmem_jax", "orbax, default", "torch.save"
# (directory) -> seconds: blocking, total, restoring; None where unknown.
Turn = Callable[[pathlib.Path], tuple[float | None, float, float | None]]


def ours(work: _training.Work) -> Turn:
  """A turn of the product's checkpoints."""
  target = sharding.abstract(
    work.state, jax.tree.map(lambda x: x.sharding, work.state)
  )

  def turn(directory):
    with checkpoint_lib.opened(directory, work.config.checkpoint) as kept:
      start = time.perf_counter()
      kept.save(1, work.state, {"train_seconds": 0.0})
      blocking = time.perf_counter() - start
      # The save is asynchronous: training goes on from here.
      kept.wait()
      total = time.perf_counter() - start
      restored: Any = None

      def restore():
        nonlocal restored
        restored = kept.restore(target)
        return restored[0]

      seconds = _timing.seconds(restore)
      _check(work.state, restored[0])
      return blocking, total, seconds

  return turn


def _check(state: Any, restored: Any) -> None:
  """What came back is what was saved, bit for bit."""
  for a, b in zip(
    jax.tree.leaves(state), jax.tree.leaves(restored), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def orbax_default(work: _training.Work) -> Turn:
  """A turn of orbax with its own defaults."""

  def turn(directory):
    path = str(directory / "1")
    start = time.perf_counter()
    response = ocp.save_async(path, work.state)
    blocking = time.perf_counter() - start
    response.result()
    total = time.perf_counter() - start
    seconds = _timing.seconds(lambda: ocp.load(path, work.state))
    return blocking, total, seconds

  return turn


def torch_save(work: _training.Work) -> Turn:
  """A turn of torch.save, as the published code saves: training waits."""
  torch = importlib.import_module("torch")

  def turn(directory):
    path = directory / "1.pt"
    directory.mkdir(parents=True)
    start = time.perf_counter()
    # The copy to the host is part of the save, as with a torch module on a GPU.
    leaves = [torch.tensor(np.asarray(x)) for x in jax.tree.leaves(work.state)]
    torch.save(leaves, path)
    total = time.perf_counter() - start

    def restore():
      found = torch.load(path, weights_only=True)
      # Back onto the device, as the others restore to it.
      return [jax.device_put(x.numpy()) for x in found]

    return total, total, _timing.seconds(restore)

  return turn


def size_of(directory: pathlib.Path) -> int:
  """Bytes of all files in a directory."""
  return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def measure(
  turns: dict[str, Turn], repeats: int, parent: pathlib.Path | None
) -> dict[str, list[float]]:
  """Medians, each in a new directory, in turns.

  Args:
    turns: What saves.
    repeats: Turns of each, after one that does not count.
    parent: Where the directories are made; None: where temporary files are.

  Returns:
    Name -> blocking, total, restoring, bytes on disk.
  """
  found: dict[str, list[Any]] = {name: [] for name in turns}
  # The first turn makes threads and compiles, and does not count.
  for turn in range(repeats + 1):
    for name, save in turns.items():
      # A new directory each time: an overwritten file may cost less or more.
      with tempfile.TemporaryDirectory(
        prefix="gmem_jax_checkpoint_", dir=parent
      ) as name_of:
        directory = pathlib.Path(name_of) / "checkpoints"
        times = save(directory)
        if turn:
          found[name].append([*times, size_of(directory)])
        shutil.rmtree(directory)
  return {n: np.median(rows, axis=0).tolist() for n, rows in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its table.

  Returns:
    0.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench checkpoint",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: python -m gmem_jax.bench checkpoint --directory=/mnt/disk",
  )
  _recipe.add_arguments(parser, _recipe.XL, _recipe.describe(_recipe.SMALL))
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--directory", type=pathlib.Path, help="the disk")
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  try:
    config = _recipe.load(args, _recipe.SMALL)
    changes = _recipe.changes_of(args, _recipe.SMALL)
  except ValueError as error:
    parser.error(str(error))
  work = _training.make(config)
  work.step()  # The moments are not all zero, which compresses well.
  jax.block_until_ready(work.state)
  k = config.train.steps_per_dispatch
  step = min(_timing.seconds(work.step) for _ in range(args.repeats)) / k
  turns = {OURS: ours(work), DEFAULT: orbax_default(work)}
  versions = {}
  if importlib.util.find_spec("torch") is not None:
    turns[TORCH] = torch_save(work)
    versions["torch"] = importlib.import_module("torch").__version__
  else:
    print("torch is not installed: no torch.save", file=sys.stderr)
  found = measure(turns, args.repeats, args.directory)
  nbytes = _timing.nbytes(work.state)
  steps = step * config.checkpoint.every
  rows = [
    [
      name,
      f"{blocking:.3f}",
      f"{total:.2f}",
      f"{nbytes / total / 1e6:.0f}",
      f"{restore:.2f}",
      f"{disk / 1e6:.0f} MB",
      f"{blocking / steps:.3%}",
    ]
    for name, (blocking, total, restore, disk) in found.items()
  ]
  head = ["", "blocking, s", "total, s", "MB/s", "restore, s", "disk"]
  head.append(f"of {config.checkpoint.every:,} steps")
  words = (
    f"`python -m gmem_jax.bench checkpoint`: the training state of"
    f" {pathlib.Path(args.config).name} with"
    f" {_recipe.describe(changes) or 'nothing changed'}, {nbytes / 1e6:.0f} MB,"
    f" a step of {step * 1e3:.0f} ms.\n\n{_results.machine(**versions)}."
    f" Medians of {args.repeats} turns."
  )
  _results.finish(args, "checkpoint", words, _timing.markdown(head, rows))
  return 0
