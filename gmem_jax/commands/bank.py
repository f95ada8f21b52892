"""python -m gmem_jax.bank: banks on disk, built, searched and edited."""

import argparse
import os
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from gmem_jax.commands import bank_commands as commands
from gmem_jax.config import networks, sections
from gmem_jax.files import errors

_PROGRAM = "python -m gmem_jax.bank"
_BANKS = (
  "BANK is a bank that this program or `python -m gmem_jax.convert` wrote, the"
  " directory of a run or its memory/, or prepared data. It is never changed:"
  " what makes a bank writes a new one to OUT, which must not exist, and names"
  " its parent."
)

# Adds an argument, or a group of them, to a parser.
_Argument = Callable[[Any], Any]


def _argument(*names: str, **settings: Any) -> _Argument:
  return lambda parser: parser.add_argument(*names, **settings)


def _path(*names: str, **settings: Any) -> _Argument:
  # No shell expands the ~ of --weights=~/dinov2.
  return _argument(*names, type=os.path.expanduser, **settings)


def _one_of(*arguments: _Argument) -> _Argument:
  """Exactly one of these must be given."""

  def add(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    for argument in arguments:
      argument(group)

  return add


_BANK = _path("bank", metavar="BANK")
_OUT = _path("out", metavar="OUT", help="directory to write")
_IMAGE = _path("--image", nargs="+", help="image files or folders")
_FEATURES = _path("--features", help=".npy, .npz or .safetensors file")
_CONFIG, _NEEDED_CONFIG = (
  _argument("--config", required=required, help="FILE.py[:OPTION] whose section"
            " `encoder` says how images become features")
  for required in (False, True)
)  # fmt: skip
_WEIGHTS = _path(
  "--weights", help="converted weights instead of encoder.features_weights"
)

# Each is named like its function: (function, summary, examples, arguments…).
_COMMANDS: tuple[tuple[Any, ...], ...] = (
  (
    commands.info, "what a bank holds and where it comes from",
    ("banks/dogs", "runs/digits"),
    _BANK,
  ),
  (
    commands.build, "a bank of the images of a folder",
    ("photos banks/photos --config=configs/xl_in1k.py"
     " --weights=weights/dinov2",),
    _path("folder", metavar="FOLDER", help="images in any nesting"),
    _OUT, _NEEDED_CONFIG, _WEIGHTS,
  ),
  (
    commands.search, "the nearest rows, by cosine",
    ("banks/photos --row 12 40 -k 5 --sheet=neighbours.png",
     "banks/photos --image dog.jpg --config=configs/xl_in1k.py",
     "banks/photos --features queries.npy"),
    _BANK,
    _one_of(_argument("--row", type=int, nargs="+", help="rows of the bank"),
            _IMAGE, _FEATURES),
    _argument("-k", type=int, default=10, help="neighbours (default 10)"),
    _path("--sheet", help="PNG file to draw the neighbours to"),
    _path("--images", metavar="FOLDER",
          help="where the source images are now"),
    _CONFIG, _WEIGHTS,
  ),
  (
    commands.append, "the bank with more memories at its end",
    ("banks/photos banks/more --image dog.jpg cats/"
     " --config=configs/xl_in1k.py",
     "banks/photos banks/more --features new.npy"),
    _BANK, _OUT, _one_of(_IMAGE, _FEATURES), _CONFIG, _WEIGHTS,
  ),
  (
    commands.interpolate, "the bank with memories between two rows at its end",
    ("banks/photos banks/between 3 17 --points=5 --method=spherical",),
    _BANK, _OUT,
    _argument("first", metavar="A", type=int, help="a row"),
    _argument("second", metavar="B", type=int, help="another"),
    _argument("--method", choices=sections.Interpolation.__args__,
              default="spherical", help="default: spherical"),
    _argument("--points", type=int, default=5, help="memories from A to B,"
              " evenly spaced, without A and B (default 5)"),
    _argument("--seed", type=errors.seed, default=0, help="of random masks"),
  ),
  (
    commands.remove, "the bank without some rows",
    ("banks/a banks/b --row 3 17",),
    _BANK, _OUT, _argument("--row", type=int, nargs="+", required=True),
  ),
  (
    commands.compress, "the bank in less memory, and what that loses",
    ("banks/photos banks/small --storage=int8",
     "banks/photos banks/small --rank=64"),
    _BANK, _OUT,
    _one_of(_argument("--storage", choices=networks.Storage.__args__),
            _argument("--rank", type=int, help="directions around the mean")),
  ),
  (
    commands.dedup, "the bank without repetitions",
    ("banks/photos banks/once", "banks/photos banks/apart --threshold=0.98"),
    _BANK, _OUT,
    _argument("--threshold", type=float, help="cosine from which a row repeats"
              " one before it that stays (default: rows that are equal bit for"
              " bit)"),
  ),
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog=_PROGRAM,
    description=f"Memory banks. {_BANKS}",
    epilog=f"{_PROGRAM} COMMAND --help shows examples.",
  )
  subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
  for run, summary, examples, *arguments in _COMMANDS:
    name, title = run.__name__, summary[0].upper() + summary[1:]
    lines = [f"  {_PROGRAM} {name} {example}" for example in examples]
    subparser = subparsers.add_parser(
      name,
      help=summary,
      # Wrapped here: the formatter that keeps the lines of the examples wraps
      # nothing.
      description=textwrap.fill(f"{title}. {_BANKS}", 79),
      epilog="\n".join(["examples:", *lines]),
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for argument in arguments:
      argument(subparser)
    subparser.set_defaults(run=run)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program with the process's arguments or others.

  Returns:
    The exit status: 0, or 2 after one line on standard error.
  """
  args = _parser().parse_args(argv)
  return errors.run(lambda: args.run(args))
