"""python -m gmem_jax.bench NAME [options]: runs one benchmark."""

import importlib
import pkgutil
import sys

from gmem_jax import bench
from gmem_jax.commands import startup
from gmem_jax.files import errors

# These time what the command line runs, so have their memory as it has.
_AS_MAIN = ("sample", "train")


def main() -> int:
  """Runs the benchmark that the first argument names."""
  names = sorted(
    module.name
    for module in pkgutil.iter_modules(bench.__path__)
    if not module.name.startswith("_")
  )
  usage = f"usage: python -m gmem_jax.bench {{{','.join(names)}}} [options]"
  name, *rest = sys.argv[1:] or [""]
  if name in ("-h", "--help"):
    print(usage)
    return 0
  if name not in names:
    return errors.fail(f"{name!r} is no benchmark; {usage}")
  startup.skip_libtpu()
  if name in _AS_MAIN:
    startup.restart()
  module = importlib.import_module(f"gmem_jax.bench.{name}")
  return errors.run(lambda: module.main(rest))


if __name__ == "__main__":
  sys.exit(main())
