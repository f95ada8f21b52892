"""To the hub: converted weights, a bank or a run, with a model card."""

import argparse
import hashlib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gmem_jax.bank import files as bank_files
from gmem_jax.convert import uses
from gmem_jax.files import atomic, errors, hub, paths, weights
from gmem_jax.models import dit
from gmem_jax.parallel import sharding
from gmem_jax.sample import prior as prior_lib
from gmem_jax.train import (
  checkpoint,
  directory as directory_lib,
  fitted,
  prior_rows,
)

_CARD = "README.md"
# Where a bank's images are, and where Orbax wrote, is of this machine alone;
# nothing that is loaded from a directory needs them.
_PRIVATE = {"images.json", "commit_success.txt", _CARD}
# What pictures are made with; a bank, a tokenizer or an encoder makes none.
_MAKING = {"pipeline_tag": "unconditional-image-generation"}
_LOAD = """\
```python
import gmem_jax

{0}
```"""


class _Cargo(NamedTuple):
  """What is taken to the hub.

  Attributes:
    title: What it is.
    facts: Name -> value, for its card.
    files: Path there -> file here.
    use: How to use it; {0} is its address.
    tags: Of the card's head, besides the usual ones.
  """

  title: str
  facts: Mapping[str, Any]
  files: Mapping[str, pathlib.Path]
  use: str
  tags: Mapping[str, str]


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog="python -m gmem_jax.convert push",
    description=(
      "Takes converted weights, a bank, or a run with its newest checkpoint and"
      " its bank to the Hugging Face Hub, with a model card. Log in first: hf"
      " auth login, or the variable HF_TOKEN."
    ),
    epilog=(
      "examples:\n"
      "  python -m gmem_jax.convert push runs/digits hf://me/digits"
      " --license=apache-2.0\n"
      "  python -m gmem_jax.convert push banks/dogs hf://me/banks/dogs"
      " --license=cc-by-4.0 --private"
    ),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "path", metavar="DIR", type=os.path.expanduser, help="what is taken there"
  )
  parser.add_argument(
    "address", metavar="hf://OWNER/NAME[/FOLDER]", help="made if need be"
  )
  parser.add_argument(
    "--license",
    required=True,
    help="the hub's name of a licence: mit, apache-2.0, cc-by-4.0, other",
  )
  parser.add_argument(
    "--scores",
    metavar="JSON",
    nargs="+",
    default=[],
    type=os.path.expanduser,
    help="results of an evaluation, for the card",
  )
  parser.add_argument(
    "--private", action="store_true", help="a new repository is yours alone"
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print the card, and send nothing"
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit status, 2 for bad input."""
  args = _parser().parse_args(argv)
  return errors.run(lambda: _push(args))


def _push(args: argparse.Namespace) -> None:
  # Before gigabytes are read.
  hub.check_destination(args.address, log_in=not args.dry_run)
  path = paths.local(args.path)
  cargo = _cargo(path)
  address = args.address.rstrip("/") + (f"/{path.name}" * path.is_file())
  card = make_card(cargo, address, args.license, args.scores)
  size = sum(path.stat().st_size for path in cargo.files.values())
  errors.say(
    f"{args.path}: {cargo.title}, {len(cargo.files)} files, {size:,} B"
  )
  if args.dry_run:
    errors.say(f"{card}nothing was sent (--dry-run)")
    return
  page = hub.upload(
    args.address,
    {**cargo.files, _CARD: card.encode()},
    f"{cargo.title}, by gmem_jax",
    private=args.private,
  )
  errors.say(f"Wrote {args.address}: {page}\n{_advice(cargo, address)}")


def _cargo(path: pathlib.Path) -> _Cargo:
  """What a path holds.

  Raises:
    ValueError: If it is neither converted weights, nor a bank, nor a run.
  """
  if weights.is_converted(path):
    return _converted(path)
  if (path / directory_lib.RECORD).exists():
    return _run(path)
  raise ValueError(
    f"{path}: expected is the directory of a run, or output of"
    " `python -m gmem_jax.convert` or `python -m gmem_jax.bank`"
  )


def _converted(path: pathlib.Path) -> _Cargo:
  metadata = weights.read_metadata(path)
  source, shapes = metadata["source"], metadata.get("tensors", ())
  facts = {
    "numbers": sum(math.prod(shape) for _, shape in shapes),
    "made from": source["file"],
    "its SHA-256": source["sha256"],
    "weights": metadata["weights"],
    "step": metadata["step"],
  }
  use = uses.USES.get(metadata["kind"], "")
  files = _files(path, path if path.is_dir() else path.parent)
  tags = _MAKING if metadata["kind"] in dit.FAMILIES else {}
  return _Cargo(metadata["title"], facts, files, use, tags)


def _run(path: pathlib.Path) -> _Cargo:
  """A run's record, newest readable checkpoint, bank, encoders and prior."""
  config = directory_lib.config_of(path)
  mesh = sharding.make_mesh(config.mesh)
  step, params = checkpoint.load_part(
    path / "checkpoints",
    config.sample.weights,
    lambda shapes: sharding.state_shardings(shapes, mesh),
  )
  bank = bank_files.read(path).info
  facts = {
    "network": f"{config.model.family}, {config.model.depth} blocks of width"
    f" {config.model.width}",
    "parameters": _count(params),
    "step": step,
    "tokenizer": config.encoder.tokenizer,
    "feature encoder": bank.encoder,
    "bank": f"{bank.size:,} rows of {bank.width}, SHA-256 {bank.digest}",
    "made from": bank.source,
  }
  files = {directory_lib.RECORD: path / directory_lib.RECORD}
  parts = [f"checkpoints/{step}", "memory", fitted.FOLDER]
  if checkpoint.exist(path / prior_rows.FOLDER / "checkpoints"):
    prior = prior_lib.load(path, bank.width)
    facts["prior"] = f"{_count(prior.params):,} parameters, step {prior.step}"
    kept = prior_rows.RECORD, f"checkpoints/{prior.step}"
    parts += [f"{prior_rows.FOLDER}/{part}" for part in kept]
  for part in parts:
    files |= _files(path / part, path)
  use = 'gmem_jax.load("{0}")'
  return _Cargo("GMem, a trained run", facts, files, use, _MAKING)


def _count(tree: Any) -> int:
  if isinstance(tree, Mapping):
    return sum(map(_count, tree.values()))
  return tree.size


def _files(path: pathlib.Path, root: pathlib.Path) -> dict[str, pathlib.Path]:
  """All files of a path, by their path below `root`."""
  every = [path] if path.is_file() else sorted(path.rglob("*"))
  return {
    each.relative_to(root).as_posix(): each
    for each in every
    if each.is_file() and each.name not in _PRIVATE
  }


def make_card(
  cargo: _Cargo, address: str, licence: str, scores: Sequence[str]
) -> str:
  """The model card: what it is, where it comes from, how to use it."""
  data = hub.library(address).ModelCardData(
    license=licence,
    library_name="gmem_jax",
    tags=["gmem", "jax", "memory-bank"],
    **cargo.tags,
  )
  facts = {k: v for k, v in cargo.facts.items() if v not in (None, "", 0)}
  parts = [
    f"---\n{data.to_yaml()}\n---",
    f"# {cargo.title}",
    "Of [GMem](https://arxiv.org/abs/2412.08781), an image model with a memory"
    " bank, for gmem_jax.",
    _advice(cargo, address),
    _table(("", ""), ((k, _shown(v)) for k, v in facts.items())),
  ]
  parts += map(_scores, scores)
  digests = ((f"`{n}`", _shown(p.stat().st_size), f"`{_digest(p)}`")
             for n, p in cargo.files.items())  # fmt: skip
  parts.append(_table(("file", "bytes", "SHA-256"), digests))
  return "\n\n".join(parts) + "\n"


def _scores(path: str) -> str:
  """The table of what an evaluation has written."""
  try:
    result = atomic.read_json(
      pathlib.Path(path), {"scores": dict, "images": dict}
    )
    images = atomic.check_keys(result["images"], {"count": int}, path)
  except (ValueError, OSError) as error:
    raise ValueError(f"--scores: {errors.describe(error)}") from None
  scores = result["scores"].items()
  rows = [(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in scores]
  return _table(("score", f"{images['count']:,} images"), rows)


def _advice(cargo: _Cargo, address: str) -> str:
  """How to use it."""
  use = cargo.use.format(address)
  return _LOAD.format(use) if use.startswith("gmem_jax.") else f"Next: {use}"


def _table(head: Sequence[str], rows: Any) -> str:
  lines = (head, ["---"] * len(head), *rows)
  return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(value: Any) -> str:
  return f"{value:,}" if isinstance(value, int) else str(value)


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
