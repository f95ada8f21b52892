"""Time and memory to convert a checkpoint of the published XL size.

Makes a file of random weights with the names and shapes of LightningDiT-XL/1
(2.7 GB), converts it with the command line in a process of its own, and writes
it back. The peer is a plain copy of the same file, which is what "disk speed"
means on the machine. The limit on memory is 1.3 times the output.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from gmem_jax.convert import torch_export, transformer
from gmem_jax.files import errors
from gmem_jax.models import dit

_MEMORY_LIMIT = 1.3


def make_checkpoint(path: pathlib.Path, size: str) -> int:
  """Writes a plain state dict of random float32 weights.

  Returns:
    The bytes of its tensors.
  """
  network = dit.LightningDiT(channels=32, **dit.LIGHTNING_DIT_SIZES[size])
  shapes = transformer.state_dict_shapes(network, grid=16)
  largest = max(int(np.prod(shape)) for shape in shapes.values())
  noise = np.random.default_rng(0).standard_normal(largest, np.float32)
  # Views of the same noise: the file is large, this process is not.
  value = {
    name: noise[: int(np.prod(shape))].reshape(shape)
    for name, shape in shapes.items()
  }
  torch_export.save(value, path)
  return sum(tensor.nbytes for tensor in value.values())


def _run(*arguments: str | pathlib.Path) -> tuple[float, int]:
  """Seconds and peak bytes of resident memory of the command line."""
  # The peak of a process counts for its parent's next: one worker, one run.
  worker = (
    "import resource, subprocess, sys, time;"
    "start = time.perf_counter();"
    "subprocess.run([sys.executable, '-m', 'gmem_jax.convert', *sys.argv[1:]],"
    " check=True, stdout=subprocess.DEVNULL);"
    "print(time.perf_counter() - start,"
    " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
  )
  out = subprocess.run(
    [sys.executable, "-c", worker, *map(str, arguments)],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  unit = 1 if sys.platform == "darwin" else 1024
  return float(out[0]), int(out[1]) * unit


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its table.

  Returns:
    0, or 1 where the limit on memory is exceeded.
  """
  parser = errors.Parser(prog="python -m gmem_jax.bench convert")
  parser.add_argument(
    "--size",
    choices=dit.LIGHTNING_DIT_SIZES,
    default="XL/1",
    help="of the network",
  )
  parser.add_argument(
    "--dir", type=errors.path, help="where to write (three times the file)"
  )
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=args.dir) as name:
    root = pathlib.Path(name)
    source = root / "checkpoint.pth"
    nbytes = make_checkpoint(source, args.size)
    start = time.perf_counter()
    shutil.copyfile(source, root / "copy")
    copy = time.perf_counter() - start
    (root / "copy").unlink()
    rows = []
    for what, *arguments in (
      ("convert to orbax", source, root / "orbax"),
      ("back to PyTorch", root / "orbax", root / "back.pth", "--to-torch"),
      ("to safetensors", source, root / "st", "--format=safetensors"),
    ):
      seconds, peak = _run(*arguments)
      rows.append((what, seconds, peak))
      if what == "back to PyTorch":
        shutil.rmtree(root / "orbax")
        (root / "back.pth").unlink()
  print(f"LightningDiT-{args.size}, {nbytes / 1e9:.2f} GB of tensors")
  print(f"{'':18}{'s':>7}{'MB/s':>8}{'copy s':>8}{'ratio':>7}{'peak/out':>10}")
  for what, seconds, peak in rows:
    print(
      f"{what:18}{seconds:7.1f}{nbytes / seconds / 1e6:8.0f}{copy:8.1f}"
      f"{seconds / copy:7.1f}{peak / nbytes:10.2f}"
    )
  print(f"limit of peak memory / output: {_MEMORY_LIMIT}")
  return int(rows[0][2] > _MEMORY_LIMIT * nbytes)
