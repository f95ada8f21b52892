"""What bad input looks like: one line, one prefix, exit status 2."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from gmem_jax.files import bucket

# Of every command. Launch scripts start a command again on every status but 0
# and this one.
BAD_INPUT = 2
# What the user can mend raises one of these everywhere in the package; the last
# of them where an extra is not installed.
MENDABLE = (ValueError, OSError, ModuleNotFoundError)
SEEDS = range(2**32)
# Characters of a message: names out of a file have any length.
_LONGEST = 4000


class Parser(argparse.ArgumentParser):
  """Says what is wrong with an argument as `fail` does, without the usage."""

  def error(self, message: str) -> NoReturn:
    """Ends the process."""
    sys.exit(fail(f"{message}; see {self.prog} --help"))

  def pairs(
    self, flag: str, given: Sequence[str], names: Collection[str], what: str
  ) -> dict[str, str]:
    """Reads NAME=VALUE of a flag; ends the process on others.

    Args:
      flag: Begins the message.
      given: The flag's values.
      names: What NAME may be.
      what: What VALUE is called.
    """
    found = {}
    for pair in given:
      name, _, value = pair.partition("=")
      if name not in names or not value:
        self.error(
          f"{flag} {pair}: expected NAME={what}, NAME one of {', '.join(names)}"
        )
      found[name] = value
    return found


def seed(text: str) -> int:
  """The type of an argument that is a seed."""
  if not text.isdecimal() or int(text) not in SEEDS:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no integer in [0, {SEEDS.stop:,})"
    )
  return int(text)


def path(text: str) -> pathlib.Path:
  """The type of an argument that is a path: no shell expands --out=~/x."""
  return pathlib.Path(text).expanduser()


def run(work: Callable[[], int | None]) -> int:
  """Does a command's work; returns its exit status, 0 unless it gives another.

  What is not `MENDABLE` is a fault of ours and keeps its traceback.
  """
  try:
    return work() or 0
  except MENDABLE as error:
    return fail(describe(error))
  except Exception as error:
    if not bucket.is_of_library(error):
      raise
    return fail(describe(error))


def describe(error: BaseException) -> str:
  """What an error says, for any terminal; the system's begin with the file."""
  if bucket.is_of_library(error):
    return printable(bucket.describe(error))
  if isinstance(error, OSError) and error.filename and error.strerror:
    return printable(f"{error.filename}: {error.strerror}")
  return printable(str(error))


def fail(message: str) -> int:
  """Says what is wrong, without a traceback; returns the exit status."""
  if len(message) > _LONGEST:
    message = f"{message[:_LONGEST]} ..."
  say(f"gmem_jax: {message}", sys.stderr)
  return BAD_INPUT


def printable(text: str) -> str:
  """Text from a file, whose names could otherwise drive the terminal."""
  return "".join(
    c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text
  )


def say(text: str, stream: Any = None) -> None:
  """Prints text that may come from a file, made `printable`."""
  print(printable(text), file=stream or sys.stdout, flush=True)
