"""GMem in JAX: a latent flow transformer that remembers in a bank.

From Python; see docs/python.md:

  generator = gmem_jax.load("runs/digits")
  images = generator.sample(rows=[3, 7], per_row=4)
"""

import importlib
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from gmem_jax.commands.fit import fit
  from gmem_jax.config.resolve import get_config
  from gmem_jax.sample.generator import Generator
  from gmem_jax.sample.load import load

__version__ = "0.1.0"
__all__ = ["Generator", "fit", "get_config", "load"]

# Imported when first asked for: they need JAX, and the command line may not.
_HOMES = {
  "Generator": "gmem_jax.sample.generator",
  "fit": "gmem_jax.commands.fit",
  "get_config": "gmem_jax.config.resolve",
  "load": "gmem_jax.sample.load",
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'gmem_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
