"""The fetcher: all that the published samples need, from the hub."""

import argparse
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gmem_jax.commands import convert
from gmem_jax.files import errors, hub, paths, weights

_GMEM = "hf://Tangentone/GMem"
_VAVAE = "hf://hustvl/vavae-imagenet256-f16d32-dinov2"
# Where configs/xl_in1k.py has them.
_USUAL = "weights"
_NEXT = (
  "python -m gmem_jax.main --config=xl_in1k --workdir=runs/xl --mode=sample"
)


class _Part(NamedTuple):
  """One of the files.

  Attributes:
    about: What it is.
    kinds: What its weights are, once converted.
    key: Of the config, that names them.
    source: Where it is on the hub; "" where its authors have it elsewhere.
  """

  about: str
  kinds: Sequence[str]
  key: str
  source: str = ""


# Directory in weights/, as the recipes name it -> what becomes of which file.
PARTS = {
  "gmem_xl": _Part(
    "network, GMem-XL",
    ("lightning_dit",),
    "sample.network",
    f"{_GMEM}/GMem_XL_160Epoch_in1k256_network.pth",
  ),
  "bank_in1k": _Part(
    "memory bank of ImageNet",
    ("bank", "low_rank_bank"),
    "sample.bank",
    f"{_GMEM}/Memory_bank_in1*",
  ),
  "va_vae": _Part(
    "tokenizer, VA-VAE",
    ("vae",),
    "encoder.tokenizer_weights",
    f"{_VAVAE}/vavae-imagenet256-f16d32-dinov2.pt",
  ),
  "latent_stats": _Part(
    "latent statistics",
    ("latent_stats",),
    "encoder.latent_stats",
    f"{_VAVAE}/latents_stats.pt",
  ),
  "dinov2": _Part(
    "feature encoder, for images of your own",
    ("dinov2",),
    "encoder.features_weights",
  ),
  "inception": _Part(
    "network of FID, for scores", ("inception",), "eval.inception_weights"
  ),
}


def _parser() -> errors.Parser:
  parser = errors.Parser(
    prog="python -m gmem_jax.convert fetch",
    description=(
      "Brings the published network, bank, tokenizer and latent statistics from"
      " the Hugging Face Hub, converted to what configs/xl_in1k.py names. It"
      " lists sizes and licences first, and asks. What is there already is"
      " not fetched again; what was cut off goes on. What was fetched stays in"
      " the hub's cache beside what was made of it; `hf cache` shows it."
    ),
    epilog=(
      "examples:\n"
      "  python -m gmem_jax.convert fetch\n"
      "  python -m gmem_jax.convert fetch weights --yes"
      " --source dinov2=dinov2_vitb14_pretrain.pth"
      " inception=pt_inception-2015-12-05-6726825d.pth"
    ),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "out", metavar="OUT", nargs="?", default=_USUAL,
    type=os.path.expanduser, help="directory of all parts (default: weights)",
  )  # fmt: skip
  parser.add_argument(
    "--yes", action="store_true", help="do not ask whether to begin"
  )
  parser.add_argument(
    "--source",
    metavar="NAME=SRC",
    nargs="+",
    action="extend",
    default=[],
    help=(
      "take a part from another file or hf://OWNER/NAME/FILE; dinov2 and"
      " inception are taken only so, as their authors have them elsewhere."
      f" NAME is one of {', '.join(PARTS)}"
    ),
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit status, 2 for bad input."""
  parser = _parser()
  args = parser.parse_args(argv)
  sources = {name: part.source for name, part in PARTS.items()}
  given = parser.pairs("--source", args.source, PARTS, "SRC")
  for name, source in given.items():
    sources[name] = os.path.expanduser(source)
    if not paths.exists(sources[name]):
      parser.error(f"--source {name}={source}: there is no such file")
  return errors.run(lambda: _fetch(_place(args.out), sources, args.yes))


def _place(text: str) -> paths.Path:
  """Where the parts go; what was given as relative is shown so."""
  return paths.of(text) if paths.is_remote(text) else pathlib.Path(text)


def _fetch(out: paths.Path, sources: Mapping[str, str], yes: bool) -> None:
  missing = {
    name: source
    for name, source in sources.items()
    if source and not _is_there(out / name, PARTS[name].kinds)
  }
  found, total = {}, 0
  for name, source in missing.items():
    found[name], size, licence = _look_up(source)
    total += size * hub.is_remote(source)
    errors.say(
      f"{name:13} {PARTS[name].about}\n{'':13} {found[name]},"
      f" {_megabytes(size)}, licence: {licence}"
    )
  if not found:
    errors.say(f"{out} has all of {', '.join(filter(sources.get, sources))}")
  elif total and not yes and not _agreed(f"Fetch {_megabytes(total)} in all?"):
    raise ValueError("nothing was fetched; --yes does not ask")
  for name, source in found.items():
    choices = convert.Choices(kinds=PARTS[name].kinds)
    convert.convert(source, str(out / name), choices)
  errors.say(f"Next: {_NEXT}{_elsewhere(out, filter(sources.get, sources))}")


def _elsewhere(out: paths.Path, names: Iterable[str]) -> str:
  """The flags that name parts which are not where the recipe has them."""
  if out == pathlib.Path(_USUAL):
    return ""
  flags = (f" --config.{PARTS[name].key}={out / name}" for name in names)
  return "".join(flags)


def _is_there(path: paths.Path, kinds: Sequence[str]) -> bool:
  """Whether a part was converted.

  Raises:
    ValueError: If something else is in its place.
  """
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return False
  try:
    weights.check_kind(weights.read_metadata(path)["kind"], kinds)
  except ValueError as error:
    raise ValueError(f"{path}: {error}; move it away") from None
  errors.say(f"{path} is there")
  return True


def _look_up(source: str) -> tuple[str, int, str]:
  """Address, size in bytes and licence of a file."""
  if not hub.is_remote(source):
    path = pathlib.Path(source)
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return source, size, "see where you have it from"
  about = hub.find(source)
  return about.address, about.size, about.licence or f"see {about.page}"


def _megabytes(size: int) -> str:
  return f"{size / 1e6:,.1f} MB"


def _agreed(question: str) -> bool:
  """Asks whoever sits there; nobody does not agree."""
  if not sys.stdin.isatty():
    return False
  return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
