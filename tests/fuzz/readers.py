"""What users do with files of each kind, by the commands' own functions."""

import contextlib
import io
import pathlib
import random
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gmem_jax.bank import features, files as bank_files
from gmem_jax.commands import bank as bank_command
from gmem_jax.convert import __main__ as convert, read as convert_read
from gmem_jax.data import decode_image, schema, store, upstream
from gmem_jax.evaluate import sources, statistics
from gmem_jax.files import atomic, weights
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint, directory, metrics, setup
from tests import tiny
from tests.fuzz import originals

# How bad input shows in the package: commands make one line of these.
CLEAN = (ValueError, OSError, decode_image.BadImageError)
# Characters of such a line.
_LONGEST = 4000

# Reads a path; a scratch directory is there to write to.
Reader = Callable[[pathlib.Path, pathlib.Path], object]


def _command(main: Callable[[Sequence[str]], int], *arguments: object) -> None:
  """Runs a command; holds it to status 0, or 2 after one clear line."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = main([str(argument) for argument in arguments])
  text = err.getvalue()
  assert status in (0, 2), f"status {status}"
  assert "Traceback" not in text, text
  assert (out.getvalue() + text).replace("\n", "").isprintable(), repr(text)
  if status:
    raise ValueError(text)


def _convert(path: pathlib.Path, scratch: pathlib.Path) -> None:
  out = scratch / "out"
  _command(convert.main, path, out, "--format=safetensors")


def _dry_run(path: pathlib.Path, scratch: pathlib.Path) -> None:
  _command(convert.main, path, "--dry-run")


def _to_torch(path: pathlib.Path, scratch: pathlib.Path) -> None:
  _command(convert.main, path, scratch / "out.pth", "--to-torch")


def _info(path: pathlib.Path, scratch: pathlib.Path) -> None:
  _command(bank_command.main, "info", path)


def _remove(path: pathlib.Path, scratch: pathlib.Path) -> None:
  _command(bank_command.main, "remove", path, scratch / "out", "--row", 0)


def _features(path: pathlib.Path, scratch: pathlib.Path) -> None:
  features.read(str(path), originals.WIDTH)


def _upstream(path: pathlib.Path, scratch: pathlib.Path) -> None:
  records = upstream.UpstreamRecords(path.parent)
  records.bank_rows()
  records.statistics()
  records.read(0, schema.Flips(True, True, True))


def _batch(path: pathlib.Path, scratch: pathlib.Path) -> None:
  images = sources.Npz(path)
  images.read(np.arange(min(images.count, 4)))


def _records(path: pathlib.Path, scratch: pathlib.Path) -> None:
  records = store.PreparedRecords(store.open_store(path))
  flips = schema.Flips(True, False, True)
  for index in {0, len(records) - 1}:
    records.read(index, flips)
  records.store.bank_rows()[:4].sum()


def _part(path: pathlib.Path, scratch: pathlib.Path) -> None:
  one = sharding.replicated(_mesh())
  checkpoint.load_part(
    path / "checkpoints", "ema", lambda tree: jax.tree.map(lambda _: one, tree)
  )


def _mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(tiny.make_config().mesh)


def _restore(path: pathlib.Path, scratch: pathlib.Path) -> None:
  one = sharding.replicated(_mesh())
  leaf = {"kernel": (4, 8), "bias": (8,)}
  part = {
    name: jax.ShapeDtypeStruct(shape, np.float32, sharding=one)
    for name, shape in leaf.items()
  }
  step = jax.ShapeDtypeStruct((), np.int32, sharding=one)
  config = tiny.make_config().checkpoint
  with checkpoint.opened(path / "checkpoints", config) as kept:
    kept.restore({"step": step, "params": part, "ema": part})


def _memory(path: pathlib.Path, scratch: pathlib.Path) -> None:
  setup.load_memory(path / "memory", _mesh(), None)


def _record(path: pathlib.Path, scratch: pathlib.Path) -> None:
  directory.check_training(tiny.make_config(), path)
  metrics.read_jsonl(path / "metrics.jsonl")


def _pixels(path: pathlib.Path, scratch: pathlib.Path) -> None:
  decode_image.load(path, 3, 32)


def _grey(path: pathlib.Path, scratch: pathlib.Path) -> None:
  decode_image.load(path, 1, upright=True, fill=True)


READERS: dict[str, tuple[Reader, ...]] = {
  "torch": (_convert, _convert, _dry_run),
  "safetensors": (_convert, _features, _upstream, _info, _to_torch),
  "numpy": (
    _convert, _features, _batch, lambda path, _: statistics.load(path)
  ),
  "bank": (
    _info, _remove, _to_torch,
    lambda path, _: weights.load_kind(str(path), bank_files.KINDS, "bank"),
  ),
  "prepared": (_info, _records),
  "run": (_info, _part, _restore, _memory, _record),
  "image": (_pixels, _grey),
  "json": (
    lambda path, _: convert_read.open_source(path),
    lambda path, _: atomic.read_json(path),
  ),
}  # fmt: skip


def read(
  kind: str, path: pathlib.Path, scratch: pathlib.Path, rng: random.Random
) -> str:
  """Reads a path as one of its readers does; returns "read" or "refused".

  Raises:
    Exception: Anything but what the package means by bad input.
  """
  reader = rng.choice(READERS[kind])
  try:
    reader(path, scratch)
  except CLEAN as error:
    text = str(error)
    assert len(text) < _LONGEST, f"a message of {len(text):,} characters"
    return "refused"
  return "read"
