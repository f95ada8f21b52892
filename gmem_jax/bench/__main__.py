"""python -m gmem_jax.bench NAME [options]: runs one benchmark."""

import importlib
import pkgutil
import sys

from gmem_jax import bench
from gmem_jax.commands import startup

# These time what the command line runs, so have their memory as it has.
_AS_MAIN = ("sample", "train")


def main() -> int:
  """Runs the benchmark that the first argument names."""
  names = sorted(
    module.name
    for module in pkgutil.iter_modules(bench.__path__)
    if not module.name.startswith("_")
  )
  if len(sys.argv) < 2 or sys.argv[1] not in names:
    print(f"usage: python -m gmem_jax.bench {{{','.join(names)}}} [options]")
    return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
  startup.skip_libtpu()
  if sys.argv[1] in _AS_MAIN:
    startup.restart()
  return importlib.import_module(f"gmem_jax.bench.{sys.argv[1]}").main(
    sys.argv[2:]
  )


if __name__ == "__main__":
  sys.exit(main())
