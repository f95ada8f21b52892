"""Values and errors out of files, as one short line for a message.

`repr` follows what it is given: a pickle of 1 KB can name a list twice in the
next list sixty times over, and no program ever finishes writing that out.
"""

import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

# Of any one value in a message.
_LENGTH = 200
# Names of a list in a message.
_NAMES = 4
# Integers of more bits are described: their digits take quadratic time.
_BITS = 256


class _Bounded(reprlib.Repr):
  """The first few parts of the first two levels."""

  def __init__(self):
    super().__init__()
    self.maxlevel = 2
    self.maxdict = 8
    self.maxstring = self.maxother = _LENGTH // 2

  def repr_int(self, x: int, level: int) -> str:
    if x.bit_length() > _BITS:
      return f"<int of {x.bit_length()} bits>"
    return repr(x)

  def repr_bytes(self, x: bytes, level: int) -> str:
    return repr(x[: self.maxstring]) + "..." * (len(x) > self.maxstring)

  def repr_instance(self, x: Any, level: int) -> str:
    if isinstance(x, np.ndarray):
      return f"<{x.dtype} array of {x.ndim} axes>"
    if x is None or isinstance(x, (bool, float, complex, np.dtype)):
      return super().repr_instance(x, level)
    return f"<{type(x).__name__}>"


_BOUNDED = _Bounded()


def value(x: Any) -> str:
  """Short values as `repr` shows them; of others, how they begin."""
  return cut(_BOUNDED.repr(x))


def cause(error: BaseException) -> str:
  """The first line of the error at the start of a chain, and its type."""
  while error.__cause__ is not None:
    error = error.__cause__
  lines = str(error).strip().splitlines() or ["no message"]
  return f"{type(error).__name__}: {cut(lines[0])}"


def cut(text: str) -> str:
  """Text as it is, or how it begins."""
  return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def line(text: str) -> str:
  """A line as it is, or how it begins and ends: with a name, and a reason."""
  if len(text) <= _LENGTH:
    return text
  half = _LENGTH // 2
  return f"{text[: half - 3]}...{text[-half:]}"


def some(names: Iterable[Any]) -> str:
  """The first few of names out of a file, each as it is or how it begins."""
  names = [cut(str(name)) for name in names]
  return ", ".join(names[:_NAMES]) + ", .." * (len(names) > _NAMES)
