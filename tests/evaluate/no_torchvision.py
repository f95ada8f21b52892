"""What the oracles import of torchvision and never call, where it is missing.

torch-fidelity and pytorch-fid import it for data sets and file transforms; the
networks and metrics that the tests compare with are their own.
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

_MODULES = (
  "torchvision",
  "torchvision.datasets",
  "torchvision.transforms",
  "torchvision.transforms.functional",
  "torchvision.models",
  "torchvision.models.inception",
)


class _Module(types.ModuleType):
  """A module in which every name is an empty class."""

  __path__ = ()

  def __getattr__(self, name: str):
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (), {})


@contextlib.contextmanager
def installed() -> Iterator[None]:
  """Puts empty modules in the place of torchvision, if there is none.

  For the time of the oracles' import alone: other libraries ask whether there
  is a torchvision, and take these for one.
  """
  if importlib.util.find_spec("torchvision"):
    yield
    return
  try:
    for name in _MODULES:
      sys.modules[name] = module = _Module(name)
      parent, _, child = name.rpartition(".")
      if parent:
        setattr(sys.modules[parent], child, module)
    yield
  finally:
    for name in _MODULES:
      sys.modules.pop(name, None)
