"""Checks of single keys, which each section of the config calls.

Each takes the section's name, the section and its keys to check, and raises
ValueError with the key, its value and what is allowed.
"""

from typing import Annotated, Any

from gmem_jax.files import errors

# The type of keys that are paths: `resolve` expands a leading ~ in them.
FilePath = Annotated[str, "path"]


def positive(name: str, section: Any, *keys: str) -> None:
  """Values from 1 on."""
  for key in keys:
    value = getattr(section, key)
    if value < 1:
      raise ValueError(f"config.{name}.{key}={value}: must be positive")


def not_negative(name: str, section: Any, *keys: str) -> None:
  """Values from 0 on."""
  for key in keys:
    value = getattr(section, key)
    if value < 0:
      raise ValueError(f"config.{name}.{key}={value}: must not be negative")


def fraction(name: str, section: Any, *keys: str) -> None:
  """Values from 0 on and below 1."""
  for key in keys:
    value = getattr(section, key)
    if not 0 <= value < 1:
      raise ValueError(f"config.{name}.{key}={value}: must lie in [0, 1)")


def seed(key: str, value: int) -> None:
  """A seed: larger ones and negative ones would repeat others."""
  if value not in errors.SEEDS:
    raise ValueError(
      f"config.{key}={value}: must lie in [0, {errors.SEEDS.stop:,})"
    )
