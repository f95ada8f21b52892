"""Does training lose anything to 8-bit products? Their loss beside 16-bit ones.

Starts the real training command three times on the same data: with
config.model.float8, without it, and without it from another seed, which shows
how far two good runs lie apart. The table has the mean of train/loss in each
quarter of the run. The gate is coarse: it finds scales at which numbers vanish
or saturate. Speed is another matter, which only a GPU can tell:
python -m gmem_jax.bench train --change=model.float8=True.

The small size is a LightningDiT of 6 blocks on the digits, in bfloat16.
"""

import argparse
import itertools
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from gmem_jax import metrics
from gmem_jax.bench import _recipe, _results, _timing

SMALL = {
  "model.family": "lightning_dit",
  "model.depth": 6,
  "model.swiglu": True,
  "model.rope": True,
  "model.rms_norm": True,
  "model.dtype": "bfloat16",
  "report.unconditional": False,
}
# Only the loss is wanted, often enough for quarters to be means of many.
ONLY_LOSS = {"eval.every": 0, "train.log_every": 10}
# Most that the loss of the last quarter may be above that of 16-bit products:
# chosen after the digits had shown 1.6 %, so no prediction; a scale left out
# shows 200 %.
GATE = 0.02
_QUARTERS = 4


def loss_curve(config: str, changes: Mapping[str, Any]) -> list[float]:
  """Trains by the real command.

  Args:
    config: The recipe.
    changes: Dotted keys -> values.

  Returns:
    The mean of train/loss in each quarter of the run.

  Raises:
    RuntimeError: If the run fails; it has said why.
  """
  with tempfile.TemporaryDirectory(prefix="gmem_jax_float8_") as name:
    workdir = pathlib.Path(name)
    command = _recipe.train_command(config, workdir, changes)
    run = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if run.returncode:
      raise RuntimeError(
        f"training failed with status {run.returncode}: {shlex.join(command)}"
      )
    records = metrics.read_jsonl(workdir / "metrics.jsonl")
  losses = [r["train/loss"] for r in records if "train/loss" in r]
  if len(losses) < _QUARTERS:
    raise RuntimeError(f"{len(losses)} losses were written: train for longer")
  bounds = [len(losses) * i // _QUARTERS for i in range(_QUARTERS + 1)]
  return [statistics.fmean(losses[a:b]) for a, b in itertools.pairwise(bounds)]


def passes(curve: Sequence[float], beside: Sequence[float]) -> bool:
  """Whether a loss curve ends no more than `GATE` above another.

  Args:
    curve: Losses.
    beside: Those to be reached.
  """
  return curve[-1] <= beside[-1] * (1 + GATE)


def main(argv: Sequence[str] | None = None) -> int:
  """Trains three times and prints the table.

  Args:
    argv: Arguments.

  Returns:
    0, or 1 where 8-bit products end with a loss that is too high.
  """
  parser = argparse.ArgumentParser(
    prog="python -m gmem_jax.bench float8",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="examples: python -m gmem_jax.bench float8 --results;"
    " python -m gmem_jax.bench float8 --config=configs/xl_in1k.py:train"
    " --change=train.steps=5000",
  )
  small = _recipe.describe(SMALL)
  _recipe.add_arguments(parser, _recipe.DIGITS, small, apart=True)
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  try:
    config = _recipe.load(args, SMALL | ONLY_LOSS)
    changes = ONLY_LOSS | _recipe.changes_of(args, SMALL)
  except ValueError as error:
    parser.error(str(error))
  if config.model.dtype != "bfloat16":  # Before anything is trained.
    parser.error("config.model.dtype must be 'bfloat16', see --change")
  runs = {
    "bfloat16 products": {},
    "8-bit operands": {"model.float8": True},
    "another seed": {"seed": config.seed + 1},
  }
  curves = {}
  for name, change in runs.items():
    print(f"training: {name}", file=sys.stderr)
    curves[name] = loss_curve(args.config, changes | change)
  plain, float8, _ = curves.values()
  rows = [
    [name, *(f"{x:.4f}" for x in curve), f"{curve[-1] / plain[-1] - 1:+.2%}"]
    for name, curve in curves.items()
  ]
  words = (
    f"`python -m gmem_jax.bench float8`: {pathlib.Path(args.config).name} with"
    f" {_recipe.describe(changes)}; {config.train.steps} steps of"
    f" {config.train.batch_size}. {_results.machine()}. Mean of train/loss in"
    f" each quarter of the run; the gate is +{GATE:.0%} in the last."
  )
  head = ["", "1st quarter", "2nd", "3rd", "last", "last, relative"]
  _results.finish(args, "float8", words, _timing.markdown(head, rows))
  return int(not passes(float8, plain))
