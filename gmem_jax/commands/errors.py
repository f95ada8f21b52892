"""What bad input looks like: one line, one prefix, exit status 2."""

import sys
from collections.abc import Callable
from typing import Any

# Of main, bank, convert, evaluate and argparse alike. Launch scripts start a
# command again on every status but 0 and this one.
BAD_INPUT = 2
# Characters of a message: names out of a file have any length.
_LONGEST = 4000


def run(work: Callable[[], Any]) -> int:
  """Does a command's work; returns its exit status.

  What the user can mend raises ValueError or OSError everywhere in the package.
  Anything else is a fault of ours and keeps its traceback.
  """
  try:
    work()
  except (ValueError, OSError) as error:
    return fail(str(error))
  return 0


def fail(message: str) -> int:
  """Says what is wrong, without a traceback; returns the exit status."""
  if len(message) > _LONGEST:
    message = f"{message[:_LONGEST]} ..."
  say(f"gmem_jax: {message}", sys.stderr)
  return BAD_INPUT


def say(text: str, stream: Any = None) -> None:
  """Prints text that may come from a file.

  Names inside a hostile file could otherwise drive the terminal.
  """
  safe = "".join(
    c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text
  )
  print(safe, file=stream or sys.stdout, flush=True)
