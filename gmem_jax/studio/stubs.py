"""Spares Gradio's import what it does for editors."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

# Where Gradio writes a stub for each of its classes.
_WRITER = "gradio.component_meta"


@contextlib.contextmanager
def unwritten() -> Iterator[None]:
  """Keeps Gradio from writing stubs while it is imported.

  At each import it parses its sources again and renders stubs of its classes,
  which are the same as before: half of the time that importing it takes.
  """
  getfile = inspect.getfile

  def none_of_gradio(thing: Any) -> str:
    # What it takes for a class without a file, which needs no stub.
    if sys._getframe(1).f_globals.get("__name__") == _WRITER:
      raise OSError
    return getfile(thing)

  inspect.getfile = none_of_gradio
  try:
    yield
  finally:
    inspect.getfile = getfile
