"""What the oracles import of torchvision and never call, where it is missing.

torch-fidelity and pytorch-fid import it for data sets and file transforms; the
networks and metrics that the tests compare with are their own.
"""

import importlib.util
import sys
import types

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


def install() -> None:
  """Puts empty modules in the place of torchvision, if there is none."""
  if importlib.util.find_spec("torchvision"):
    return
  for name in _MODULES:
    sys.modules[name] = module = _Module(name)
    parent, _, child = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], child, module)
