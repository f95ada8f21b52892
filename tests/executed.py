"""Prints the files whose functions run inside one call of the command line.

  python tests/executed.py gmem_jax.train.loop:train \\
    --config=configs/digits.py --workdir=runs/digits
  python tests/executed.py gmem_jax.commands.sample:sample_mode \\
    --config=configs/digits.py --workdir=runs/digits --mode=sample

What runs when a module is imported does not count.
"""

import collections
import importlib
import inspect
import pathlib
import sys
import threading

import gmem_jax

PACKAGE = pathlib.Path(gmem_jax.__file__).parent


def main() -> None:
  """Replaces the named function by one that traces, and runs the command."""
  module_name, function_name = sys.argv.pop(1).split(":")
  module = importlib.import_module(module_name)
  function = getattr(module, function_name)
  codes = set()

  def trace(frame, event, argument):
    if event == "call":
      codes.add(frame.f_code)

  def traced(*args, **kwargs):
    # Threads too: the loader and the writers of images have some.
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
      return function(*args, **kwargs)
    finally:
      sys.setprofile(None)
      threading.setprofile(None)

  setattr(module, function_name, traced)
  from gmem_jax import main as command_line

  try:
    command_line.run()
  finally:
    show(codes)


def show(codes) -> None:
  """Prints each file with its functions."""
  functions = collections.defaultdict(set)
  for code in codes:
    path = pathlib.Path(code.co_filename)
    # Bodies of modules and classes, and comprehensions, are no functions.
    is_function = code.co_flags & inspect.CO_OPTIMIZED
    if PACKAGE in path.parents and is_function and code.co_name[0] != "<":
      functions[str(path.relative_to(PACKAGE))].add(code.co_qualname)
  for path, names in sorted(functions.items()):
    print(f"{path}: {' '.join(sorted(names))}")
  print(f"{len(functions)} files")


if __name__ == "__main__":
  main()
