"""python -m gmem_jax.commands.export: what others need to sample from a run.

A run's directory holds the optimizer's state and a checkpoint or two. This
writes the averaged weights alone, with the bank and what was fitted to the
run's images.
"""

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np

from gmem_jax.bank import (
  edit,
  files as bank_files,
  images as bank_images,
)
from gmem_jax.commands import interrupt, prepare, startup
from gmem_jax.config import networks, sections
from gmem_jax.files import atomic, errors, paths, weights
from gmem_jax.models import dit
from gmem_jax.parallel import sharding
from gmem_jax.sample import source
from gmem_jax.train import directory, fitted, setup

_EXAMPLES = """\
examples:
  All that samples depend on, in half the memory:
    python -m gmem_jax.commands.export runs/emoji weights/emoji --dtype=bfloat16
"""
# What is written, and the key that takes it.
_KEYS = {
  "network.safetensors": "sample.network",
  "latent_stats.safetensors": "encoder.latent_stats",
  "bank": "sample.bank",
  "tokenizer.safetensors": "encoder.tokenizer_weights",
  "snippet.safetensors": "encoder.snippet_weights",
}


def export_run(
  run: paths.Path,
  out: paths.Path,
  *,
  dtype: str = "float32",
  storage: networks.Storage = "float32",
) -> None:
  """Writes what sampling from a run needs to a new directory.

  Args:
    run: Directory of a run.
    out: It gets `network.safetensors` and `latent_stats.safetensors`, as the
      converter writes them; `bank`, and `heldout` of the images that were held
      out, if they are there; and of what was fitted to the run's images
      `tokenizer.safetensors` and `snippet.safetensors`.
    dtype: Of the weights, "float32" or "bfloat16".
    storage: Of the bank, as `bank.storage`.

  Raises:
    ValueError: If there is no run, or it has no checkpoint yet.
    OSError: If the directory exists, or cannot be written.
  """
  if not (run / directory.RECORD).exists():
    raise ValueError(f"{run}: there is no run")
  atomic.new_path(out, directory=True)
  config = fitted.own(directory.config_of(run), run)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  memory = setup.load_memory(run / "memory", mesh, None)
  step, params = source.load_params(config, run, mesh)
  with atomic.replacing(out) as temporary:
    temporary.mkdir()
    _write_network(temporary, config, memory, step, params, dtype)
    # The tokenizer is small, and its errors are seen in every pixel.
    for part, kind in (("tokenizer", "float32"), ("snippet", dtype)):
      if (kept := run / fitted.FOLDER / part).exists():
        params, metadata = weights.load_converted(kept)
        _save(temporary / f"{part}.safetensors", params, metadata, kind)
    stored = bank_files.of_run(run / "memory", memory.bank, memory.info)
    _write_bank(temporary / "bank", config, stored, storage)
    heldout = paths.of(config.data.prepared) / prepare.HELDOUT
    if config.data.prepared and heldout.exists():
      stored = bank_files.read(heldout)
      _write_bank(temporary / prepare.HELDOUT, config, stored, storage)
    if out.exists():
      out.rmdir()


def _write_bank(
  path: paths.Path,
  config: sections.Config,
  stored: bank_files.Stored,
  storage: networks.Storage,
) -> None:
  """Writes a bank; its images are where the config has them."""
  if stored.images and config.data.source == "folder":
    # Not the absolute path, which is of this machine alone.
    names = stored.images.names
    images = bank_images.SourceImages(config.data.path, names)
    stored = dataclasses.replace(stored, images=images)
  if storage != stored.bank.storage:
    new = edit.compress(stored.bank, stored.info, storage)
    stored = bank_files.edited(stored, new)
  bank_files.write(path, stored)


def _write_network(
  out: paths.Path,
  config: sections.Config,
  memory: setup.RunMemory,
  step: int,
  params: Any,
  dtype: str,
) -> None:
  """The network's weights and the statistics of its latents."""
  side, channels = memory.latent_shape[0], memory.latent_shape[-1]
  model = {
    key: value
    for key, value in dataclasses.asdict(config.model).items()
    if key not in dit.UNCHECKED
  } | {
    "channels": channels,
    "snippet_dim": memory.bank.width,
    "token_dim": memory.token_dim,
    "grid": side // config.model.patch,
  }
  params = jax.tree.map(np.asarray, params)
  metadata = {
    "kind": config.model.family,
    "exported": True,
    "title": f"network of a run, width {model['width']}, depth"
    f" {model['depth']}",
    "model": model,
    "weights": config.sample.weights,
    "step": step,
    "source": {"file": "", "sha256": _digest(params)},
  }
  _save(out / "network.safetensors", params, metadata, dtype)
  stats = {
    name: np.asarray(getattr(memory.stats, name)) for name in ("mean", "std")
  }
  weights.save_converted(
    out / "latent_stats.safetensors",
    {"stats": stats},
    {
      "kind": "latent_stats",
      "title": f"latent statistics of {channels} channels",
      "model": {},
      "weights": None,
      "step": None,
      "source": {"file": "", "sha256": _digest(stats)},
    },
    "safetensors",
  )


def _save(
  path: paths.Path, params: Any, metadata: dict[str, Any], dtype: str
) -> None:
  """Writes parameters of a type."""
  kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
  cast = jax.tree.map(lambda x: np.asarray(x).astype(kind), params)
  left = {k: v for k, v in metadata.items() if k != "trees"}
  weights.save_converted(path, {"params": cast}, left, "safetensors")


def _digest(tree: Any) -> str:
  """Identifies arrays; by names and bytes."""
  digest = hashlib.sha256()
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  for name, array in sorted(flat.items()):
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _next(out: paths.Path) -> str:
  """What samples from what was written."""
  keys = " ".join(
    f"--config.{key}={out / name}"
    for name, key in _KEYS.items()
    if (out / name).exists()
  )
  return f"Next, with the run's --config and --mode=sample: {keys}"


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns its exit status."""
  parser = errors.Parser(
    prog="python -m gmem_jax.commands.export",
    description=__doc__,
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  path: Any = {"type": os.path.expanduser}
  parser.add_argument("run", metavar="RUN", help="directory of a run", **path)
  parser.add_argument(
    "out", metavar="OUT", help="what to write; must not exist", **path
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of the weights (default: float32)",
  )
  parser.add_argument(
    "--storage",
    choices=("float32", "bfloat16", "int8"),
    default="float32",
    help="of the bank (default: float32)",
  )
  args = parser.parse_args(argv)

  def work() -> None:
    # Absolute: Orbax takes no other.
    run, out = paths.of(args.run), paths.of(args.out)
    export_run(run, out, dtype=args.dtype, storage=args.storage)
    size = sum(size for _, size in paths.files(out))
    names = ", ".join(sorted(p.name for p in out.iterdir()))
    errors.say(f"Wrote {out}: {names}; {size:,} bytes\n{_next(out)}")

  return errors.run(work)


if __name__ == "__main__":
  startup.skip_libtpu()
  sys.exit(interrupt.run(main))
