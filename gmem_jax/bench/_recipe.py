"""What benchmarks of whole programs share: which config, at which size."""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from gmem_jax.config import recipe, resolve, sections

DIGITS = str(recipe.OURS / "digits.py")
XL = f"{recipe.OURS / 'xl_in1k.py'}:train"
XL_SAMPLE = f"{recipe.OURS / 'xl_in1k.py'}:guided"

# LightningDiT as on ImageNet (256 tokens, heads of 72), small enough for two
# cores: 9 M parameters, latents that are pixels.
SMALL: dict[str, Any] = {
  "encoder.tokenizer": "identity",
  "encoder.image_size": 16,
  "encoder.features": "random_conv",
  "data.latents": "sample",
  "model.width": 288,
  "model.depth": 6,
  "model.heads": 4,
  "model.projector_width": 512,
  "model.dtype": "float32",
  "train.batch_size": 16,
  "sample.device_batch": 4,
}


def add_arguments(
  parser: argparse.ArgumentParser,
  default: str = XL,
  small: str = "see below",
  *,
  apart: bool = False,
) -> None:
  """Adds what chooses the config.

  Args:
    parser: The benchmark's.
    default: The config file, with its options.
    small: How the size for a CPU is described.
    apart: Whether processes of their own do the work: this one then must not
      hold the device that they need.
  """
  parser.set_defaults(apart=apart)
  parser.add_argument(
    "--config", default=default, help="recipe, e.g. configs/xl_in1k.py:train"
  )
  parser.add_argument(
    "--change",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="a key of the config, e.g. train.batch_size=32; repeatable",
  )
  parser.add_argument(
    "--size",
    choices=("small", "config"),
    help=f"small: for a CPU, {small}; config: as the config says; by default"
    " what fits the device",
  )


def _is_small(args: argparse.Namespace) -> bool:
  """Whether the size for a CPU is wanted; looks at the device if unsaid."""
  if args.size is None:
    if args.apart:
      # Asked in a process of its own: jax here would take the device that the
      # benchmark's processes need.
      code = "import jax; print(jax.default_backend())"
      found = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True
      )
      backend = found.stdout.decode().strip()
    else:
      backend = jax.default_backend()
    args.size = "small" if backend == "cpu" else "config"
  return args.size == "small"


def describe(changes: Mapping[str, Any]) -> str:
  """Changes of a config in one line."""
  return ", ".join(f"{key}={value!r}" for key, value in changes.items())


def changes_of(
  args: argparse.Namespace, small: Mapping[str, Any]
) -> dict[str, Any]:
  """What differs from the config file.

  Returns:
    Dotted keys -> values; those given by --change come last.

  Raises:
    ValueError: If one is not KEY=VALUE.
  """
  found = dict(small) if _is_small(args) else {}
  for change in args.change:
    try:
      key, value = recipe.parse_change(change)
    except ValueError as error:
      raise ValueError(f"--change={error}") from None
    found[key] = value
  return found


def train_command(
  config: str, workdir: pathlib.Path, changes: Mapping[str, Any]
) -> list[str]:
  """The real command that trains."""
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  command = [sys.executable, "-m", "gmem_jax.main", f"--config={config}"]
  return [*command, f"--workdir={workdir}", *flags]


def load(args: argparse.Namespace, small: Mapping[str, Any]) -> sections.Config:
  """Reads the config that the arguments name.

  Raises:
    ValueError: If the file or a key is unknown, or a value does not fit.
  """
  tree = recipe.load(args.config)
  try:
    tree.update_from_flattened_dict(changes_of(args, small))
  except (KeyError, TypeError) as error:
    raise ValueError(f"--change: {str(error)[:300]}") from None
  return resolve.resolve(tree)
