"""The converter: published files to weights that gmem_jax loads, and back."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gmem_jax.convert import (
  detect,
  identify,
  read,
  torch_export,
  torch_import,
  uses,
)
from gmem_jax.files import atomic, errors, hub, paths, weights
from gmem_jax.progress import Progress

_SRC = (
  "the file to convert; of weights in shards their index (.index.json), or the"
  " directory that holds it"
)
_EXAMPLES = """\
examples:
  What is in a file, and whether it is complete (nothing is written):
    python -m gmem_jax.convert checkpoint.pt --dry-run
  A trainer's checkpoint, its averaged weights (the default where there are any)
  or those of the last step:
    python -m gmem_jax.convert 0200000.pt weights/xl --weights=ema
    python -m gmem_jax.convert 0200000.pt weights/xl_last --weights=model
  The autoencoder and the memory bank:
    python -m gmem_jax.convert vavae-imagenet256-f16d32-dinov2.pt weights/va_vae
    python -m gmem_jax.convert bank.pth weights/bank
  A network of unpublished width without rotary embedding, whose number of heads
  is in no file:
    python -m gmem_jax.convert small.pt weights/small --model num_heads=2
  Back to PyTorch, bit for bit:
    python -m gmem_jax.convert weights/xl xl.pth --to-torch
Two more commands, each with its own --help:
  All that the published samples need:
    python -m gmem_jax.convert fetch
  Converted weights, a bank or a run to the Hugging Face Hub:
    python -m gmem_jax.convert push weights/xl hf://me/gmem-xl --license=mit
"""


def _parser() -> errors.Parser:
  parser = errors.Parser(
    prog="python -m gmem_jax.convert",
    description=(
      "Converts published PyTorch files to weights that gmem_jax loads,"
      " without PyTorch and without running anything in them. A file is"
      " recognised by its contents, and every name and shape is checked."
    ),
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  # No shell expands a ~ that a script has quoted.
  path: Any = {"type": os.path.expanduser}
  parser.add_argument("src", metavar="SRC", help=_SRC, **path)
  parser.add_argument(
    "out",
    metavar="OUT",
    nargs="?",
    help="what to write; must not exist",
    **path,
  )
  parser.add_argument(
    "--weights",
    choices=("ema", "model"),
    help="which weights of a trainer's file (default: ema, if it has them)",
  )
  parser.add_argument(
    "--format",
    choices=weights.FORMATS,
    default="orbax",
    help="orbax: a directory (default); safetensors: one file",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="check and report, write nothing"
  )
  parser.add_argument(
    "--allow-nonfinite",
    action="store_true",
    help="convert weights that hold NaN or infinity, which are refused else",
  )
  parser.add_argument(
    "--to-torch",
    action="store_true",
    help="SRC is what this program wrote; write a PyTorch file",
  )
  parser.add_argument(
    "--model",
    metavar="NAME=N",
    nargs="+",
    action="extend",
    default=[],
    help=(
      "what the tensors do not tell: num_heads, encoder_depth, num_groups"
      " (default: as published for that width); position_grid=16 for DINOv2"
      " whose positions are resampled twice, as GMem's code does for images of"
      " 512 pixels"
    ),
  )
  return parser


def _settings(parser: errors.Parser, given: Sequence[str]) -> dict[str, int]:
  """Parses --model num_heads=2 .. ."""
  settings = {}
  pairs = parser.pairs("--model", given, identify.SETTINGS, "N")
  for name, number in pairs.items():
    if not number.isdecimal() or not int(number):
      parser.error(f"--model {name}={number}: must be a positive integer")
    settings[identify.SETTINGS[name]] = int(number)
  return settings


@dataclasses.dataclass(frozen=True)
class Choices:
  """What the flags of the command say; the defaults are the command's.

  Attributes:
    weights: "ema" or "model" of a trainer's file; None for the first it has.
    format: One of `weights.FORMATS`.
    settings: What the tensors do not tell, see `identify.identify`.
    allow_nonfinite: Whether NaN and infinity are converted.
    kinds: What the file may be; () for anything.
  """

  weights: str | None = None
  format: str = "orbax"
  settings: Mapping[str, int] = dataclasses.field(default_factory=dict)
  allow_nonfinite: bool = False
  kinds: Sequence[str] = ()


def convert(src: str, out: str | None, choices: Choices = Choices()) -> None:
  """Converts a published file, and says what it is.

  Args:
    src: A path, or an address of the hub.
    out: What to write; None: nothing, and only say what it is.
    choices: What the flags say.

  Raises:
    OSError: If `out` is there already, or `src` is not.
    ValueError: If it is of another kind, damaged, or cannot be had.
  """
  # First: what is on the hub may take an hour to come.
  if out is not None:
    atomic.new_path(out, directory=choices.format == "orbax")
  path = paths.local(src)
  # Else it would be refused as a directory, or as names of no network.
  if weights.is_converted(path):
    raise ValueError(f"{src} is converted already (--to-torch goes back)")
  source = _open(src, path)
  try:
    result = _convert(source, choices, out is None)
  except read.WrongFile as e:
    raise ValueError(f"{src} {e}") from e
  except ValueError as e:
    raise ValueError(f"{src}: {e}") from e
  if out is None or result is None:
    errors.say("complete; nothing written (--dry-run)")
    return
  weights.save_converted(out, *result, choices.format)
  next_ = uses.USES[result[1]["kind"]].format(out)
  errors.say(f"Wrote {out} ({choices.format})\nNext: {next_}")


def _open(src: str, path: pathlib.Path) -> read.OpenFile:
  """Opens a file, or what an address of the hub has brought."""
  try:
    return read.open_source(path)
  except ValueError as e:
    if not hub.is_remote(src):
      raise
    # The error names a file of the cache.
    raise ValueError(f"{src}: {e}") from e


def _convert(
  source: read.OpenFile, choices: Choices, dry_run: bool
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Recognises, reports, and unless it is a dry run checks and converts."""
  contents = detect.detect(source, choices.weights)
  if choices.kinds:
    weights.check_kind(contents.kind, choices.kinds)
  identity = identify.identify(contents, choices.settings)
  # Before the long part, so that a wrong file can be stopped.
  errors.say(_report(source, contents, identity))
  if dry_run:
    return None
  with contextlib.closing(
    Progress("checksums", 0, source.nbytes, "B")
  ) as progress:
    source.verify(progress.advance)
  size = sum(tensor.nbytes for tensor in contents.tensors.values())
  with contextlib.closing(Progress("convert", 0, size, "B")) as progress:
    result = torch_import.convert(
      source,
      contents,
      identity,
      progress.advance,
      allow_nonfinite=choices.allow_nonfinite,
    )
  nonfinite = result[1]["nonfinite"]
  if nonfinite:
    named = torch_import.describe_nonfinite(nonfinite)
    errors.say(f"  note        NaN or infinity in {named}")
  return result


def _report(
  source: read.OpenFile, contents: detect.Contents, identity: identify.Identity
) -> str:
  """What the file is, one fact a line."""
  tensors = contents.tensors.values()
  dtypes = sorted({str(tensor.dtype) for tensor in tensors})
  split = f" in {len(source.shards)} shards" if source.shards else ""
  facts = {
    "kind": f"{identity.title} [{contents.kind}]",
    "file": f"{source.format}, {source.nbytes:,} bytes{split}",
    "tensors": f"{len(contents.tensors)} of {', '.join(dtypes)}",
    "parameters": f"{identity.parameters(contents.tensors):,}",
  }
  if contents.weights:
    facts["weights"] = contents.weights
  if contents.step is not None:
    facts["step"] = f"{contents.step:,}"
  rows = contents.bank.get("memorybank")
  if isinstance(rows, np.ndarray):
    facts["bank"] = f"{len(np.atleast_1d(rows))} rows"
  if contents.ignored:
    facts["left out"] = ", ".join(contents.ignored)
  lines = [str(source.path)]
  lines += [f"  {key:<11} {value}" for key, value in facts.items()]
  lines += [f"  note        {note}" for note in identity.notes]
  return "\n".join(lines)


def _export(args: argparse.Namespace) -> None:
  metadata = weights.read_metadata(args.src)
  title, kind = metadata["title"], metadata["kind"]
  errors.say(f"{args.src}\n  kind        {title} [{kind}]")
  if not args.dry_run:
    atomic.new_path(args.out)
  trees = {
    name: weights.load_converted(args.src, name)[0]
    for name in metadata["trees"]
  }
  try:
    value = torch_export.published_value(trees, metadata)
  except ValueError as e:
    raise ValueError(f"{args.src}: {e}") from e
  if args.dry_run:
    errors.say("complete; nothing written (--dry-run)")
    return
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
  with contextlib.closing(Progress("write", 0, size, "B")) as progress:
    torch_export.save(value, args.out, progress.advance)
  errors.say(
    f"Wrote {args.out} (PyTorch)\nNext, in PyTorch: torch.load({args.out!r})"
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit status, 2 for bad input."""
  parser = _parser()
  args = parser.parse_args(argv)
  settings = _settings(parser, args.model)
  if args.out is None and not args.dry_run:
    parser.error("OUT is missing (or give --dry-run)")
  if args.to_torch and (
    args.weights or args.model or args.allow_nonfinite or args.format != "orbax"
  ):
    parser.error(
      "--to-torch takes no --weights, --model, --format or --allow-nonfinite"
    )
  if args.to_torch:
    return errors.run(lambda: _export(args))
  choices = Choices(args.weights, args.format, settings, args.allow_nonfinite)
  out = None if args.dry_run else args.out
  return errors.run(lambda: convert(args.src, out, choices))
