"""python -m gmem_jax.bank: banks on disk, made, searched and edited."""

import argparse
import sys
import textwrap
from collections.abc import Sequence

from gmem_jax.commands import bank_commands as commands
from gmem_jax.config import sections

_BANKS = (
  "BANK is a bank that this program or `python -m gmem_jax.convert` wrote, the"
  " directory of a run or its memory/, or prepared data. It is never changed:"
  " what makes a bank writes a new one to OUT, which must not exist, and names"
  " its parent."
)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m gmem_jax.bank",
    description=f"Memory banks. {_BANKS}",
    epilog="python -m gmem_jax.bank COMMAND --help shows examples.",
  )
  added = parser.add_subparsers(metavar="COMMAND", required=True)

  def command(function, summary, *examples):
    name = function.__name__
    prefix = "python -m gmem_jax.bank " + name
    found = added.add_parser(
      name,
      help=summary,
      description=textwrap.fill(
        f"{summary[0].upper()}{summary[1:]}. {_BANKS}", 79
      ),
      epilog="examples:\n" + "\n".join(f"  {prefix} {e}" for e in examples),
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.set_defaults(run=function)
    return found

  found = command(
    commands.info,
    "what a bank holds and where it comes from",
    "banks/dogs",
    "runs/digits",
  )
  found.add_argument("bank", metavar="BANK")

  found = command(
    commands.build,
    "a bank of the images of a folder",
    "photos banks/photos --config=configs/xl_in1k.py --weights=weights/dinov2",
  )
  found.add_argument("folder", metavar="FOLDER", help="images in any nesting")
  _out(found)
  _encoder(found, required=True)

  found = command(
    commands.search,
    "the nearest rows, by cosine",
    "banks/photos --row 12 40 -k 5 --sheet=neighbours.png",
    "banks/photos --image dog.jpg --config=configs/xl_in1k.py",
    "banks/photos --features queries.npy",
  )
  found.add_argument("bank", metavar="BANK")
  query = found.add_mutually_exclusive_group(required=True)
  query.add_argument("--row", type=int, nargs="+", help="rows of the bank")
  query.add_argument("--image", nargs="+", help="image files or folders")
  query.add_argument("--features", help=".npy, .npz or .safetensors file")
  found.add_argument("-k", type=int, default=10, help="neighbours (default 10)")
  found.add_argument("--sheet", help="PNG file to draw the neighbours to")
  found.add_argument(
    "--images", metavar="FOLDER", help="where the source images are now"
  )
  _encoder(found)

  found = command(
    commands.append,
    "the bank with more memories at its end",
    "banks/photos banks/more --image dog.jpg cats/ --config=configs/xl_in1k.py",
    "banks/photos banks/more --features new.npy",
  )
  _edit(found)
  added_rows = found.add_mutually_exclusive_group(required=True)
  added_rows.add_argument("--image", nargs="+", help="image files or folders")
  added_rows.add_argument("--features", help=".npy, .npz or .safetensors file")
  _encoder(found)

  found = command(
    commands.interpolate,
    "the bank with memories between two rows at its end",
    "banks/photos banks/between 3 17 --points=5 --method=spherical",
  )
  _edit(found)
  found.add_argument("first", metavar="A", type=int, help="a row")
  found.add_argument("second", metavar="B", type=int, help="another")
  found.add_argument(
    "--method",
    choices=sections.Interpolation.__args__,
    default="spherical",
    help="default: spherical",
  )
  found.add_argument(
    "--points",
    type=int,
    default=5,
    help="memories from A to B, evenly spaced, without A and B (default 5)",
  )
  found.add_argument("--seed", type=int, default=0, help="of random masks")

  found = command(
    commands.remove, "the bank without some rows", "banks/a banks/b --row 3 17"
  )
  _edit(found)
  found.add_argument("--row", type=int, nargs="+", required=True)

  found = command(
    commands.compress,
    "the bank in less memory, and what that loses",
    "banks/photos banks/small --storage=int8",
    "banks/photos banks/small --rank=64",
  )
  _edit(found)
  target = found.add_mutually_exclusive_group(required=True)
  target.add_argument("--storage", choices=("float32", "bfloat16", "int8"))
  target.add_argument("--rank", type=int, help="directions around the mean")

  found = command(
    commands.dedup,
    "the bank without repetitions",
    "banks/photos banks/once",
    "banks/photos banks/apart --threshold=0.98",
  )
  _edit(found)
  found.add_argument(
    "--threshold",
    type=float,
    help="cosine from which a row repeats one before it that stays (default:"
    " rows that are equal bit for bit)",
  )
  return parser


def _out(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("out", metavar="OUT", help="directory to write")


def _edit(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("bank", metavar="BANK")
  _out(parser)


def _encoder(parser: argparse.ArgumentParser, required: bool = False) -> None:
  parser.add_argument(
    "--config",
    required=required,
    help="FILE.py[:OPTION] whose section `encoder` says how images become"
    " features",
  )
  parser.add_argument(
    "--weights", help="converted weights instead of encoder.features_weights"
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program.

  Args:
    argv: Arguments, by default those of the process.

  Returns:
    Exit code: 0, or 1 with one line on standard error. Wrong usage exits with
    2.
  """
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 1
  return 0
