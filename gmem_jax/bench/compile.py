"""What XL needs on pods and nodes that are not here, and how long it compiles.

One row a machine, each in a process of its own: the training step at the
published batch, and the sampler. Needs libtpu for the TPUs (the extra
`tpu-aot`); for GPUs jax-cuda12-plugin and jax-cuda12-pjrt, else their rows hold
only what lowering tells. Step times are estimates from published limits of the
chips, no measurement; seconds of compiling are measured, on this machine.
"""

import contextlib
import dataclasses
import importlib.util
import io
import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any

from gmem_jax.aot import chips, examine
from gmem_jax.commands import compile as compile_command
from gmem_jax.config import recipe, resolve
from gmem_jax.files import errors

CONFIG = recipe.OURS / "xl_in1k.py"


@dataclasses.dataclass(frozen=True)
class Row:
  """A machine, and what the config needs there.

  Attributes:
    topology: See `aot.topology.HELP`.
    option: Of the config.
    changes: Dotted config keys that differ from it.
  """

  topology: str
  option: str
  changes: Mapping[str, Any]


ROWS = (
  Row("v4:4x4x4", "tpu", {}),
  Row("v5e:16x16", "tpu", {}),
  Row("v5p:4x4x4", "tpu", {}),
  Row("v6e:16x16", "tpu", {}),
  Row("h100:1", "train", {"train.batch_size": 128}),
  Row("h100:8", "train", {}),
  Row("h200:8", "train", {}),
)


def measure(row: Row) -> tuple[examine.Needs, ...] | str:
  """Compiles for one machine.

  Returns:
    What training step and sampler need, or why they do not fit.
  """
  spec = importlib.util.spec_from_file_location("recipe", CONFIG)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  tree = module.get_config(row.option)
  tree.update_from_flattened_dict(dict(row.changes))
  # The command prints as it goes, which is not for a table.
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      return compile_command.compile_mode(
        resolve.resolve(tree), row.topology, compile_command.PUBLISHED_ROWS
      )
  except (ValueError, ModuleNotFoundError) as error:
    return str(error).splitlines()[0]


def cells(row: Row, needs: Sequence[examine.Needs]) -> list[str]:
  """A row of the table."""
  step, sampler = needs
  held = sum(step.parts.values()) / chips.GIB
  found = [
    row.topology,
    ", ".join([row.option, *(f"{k}={v}" for k, v in row.changes.items())]),
    f"{held:.2f}",
  ]
  if (time := step.roofline) is None:
    found += ["unknown"] * 4
  else:
    sent = sum(c.sent for c in step.collectives or []) / chips.GIB
    found += [
      f"{(step.peak or 0) / chips.GIB:.2f}",
      f"{(step.moved or 0) / chips.GIB:.1f}",
      f"{sent:.2f}",
      f"{time.seconds * 1e3:.0f} ({time.limit})",
    ]
  peak = sampler.peak
  return [
    *found,
    f"{step.seconds:.0f}",
    "unknown" if peak is None else f"{peak / chips.GIB:.2f}",
    f"{sampler.seconds:.0f}",
  ]


HEADER = (
  "machine", "option", "arguments", "peak", "moved", "sent", "estimate, ms",
  "compiling, s", "sampler's peak", "compiling, s",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
  """Compiles for every machine and prints the table, in markdown.

  Returns:
    0, or 1 where something does not fit or compile.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench compile", description=__doc__
  )
  parser.add_argument(
    "--only", default="", help="a machine, e.g. v5e:16x16; all by default"
  )
  args = parser.parse_args(argv)
  rows = [row for row in ROWS if args.only in ("", row.topology)]
  if not rows:
    parser.error(f"--only: one of {[row.topology for row in ROWS]}")
  print("GiB are those of a chip.\n")
  print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
  failed = 0
  context = multiprocessing.get_context("spawn")
  for row in rows:
    # A process of its own: environment and devices are a process's.
    with context.Pool(1) as pool:
      needs = pool.apply(measure, (row,))
    if isinstance(needs, str):
      failed = 1
      print(f"| {row.topology} | {needs} |", flush=True)
    else:
      print(f"| {' | '.join(cells(row, needs))} |", flush=True)
  return failed
