"""python -m gmem_jax.convert: see commands.convert, fetch and push."""

import sys
from collections.abc import Sequence

import jax

from gmem_jax.commands import convert, fetch, interrupt, push

# What a first word names; a file that is called so is ./fetch.
_COMMANDS = {"fetch": fetch.main, "push": push.main}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit status, 2 for bad input."""
  argv = sys.argv[1:] if argv is None else argv
  if argv and argv[0] in _COMMANDS:
    return _COMMANDS[argv[0]](argv[1:])
  return convert.main(argv)


if __name__ == "__main__":
  # Networks are only asked for their shapes: no accelerator is needed.
  jax.config.update("jax_platforms", "cpu")
  sys.exit(interrupt.run(main))
