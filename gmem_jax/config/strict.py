"""Nested mappings to frozen dataclasses, every key and type checked."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


def build(cls: type, tree: Mapping[str, Any], prefix: str = "") -> Any:
  """Builds a dataclass from a mapping with exactly its keys.

  Args:
    cls: The dataclass; its fields may be dataclasses.
    tree: The mapping.
    prefix: What stands before its keys, with a dot at the end; for errors.

  Raises:
    ValueError: Naming the key, its value and what is allowed.
  """
  hints = typing.get_type_hints(cls)
  names = [f.name for f in dataclasses.fields(cls)]
  where = f" in config.{prefix[:-1]}" if prefix else " in the config"
  unknown = sorted(set(tree) - set(names))
  if unknown:
    raise ValueError(f"unknown key(s) {unknown}{where}; known: {names}")
  missing = [n for n in names if n not in tree]
  if missing:
    raise ValueError(f"missing key(s) {missing}{where}")
  return cls(
    **{n: _value(hints[n], tree[n], prefix + n) for n in names}  # type: ignore
  )


def _value(hint: Any, value: Any, key: str) -> Any:
  """Checks one value against its type hint."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping):
      raise ValueError(f"config.{key}={value!r}: a section is expected")
    return build(typing.cast(type, hint), value, key + ".")
  if origin is Literal:
    if value not in args:
      raise ValueError(f"config.{key}={value!r}: allowed are {list(args)}")
    return value
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (inner,) = (a for a in args if a is not type(None))
    return _value(inner, value, key)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(f"config.{key}={value!r}: a tuple is expected")
    return tuple(_value(args[0], v, key) for v in value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ValueError(
      f"config.{key}={value!r}: expected {hint.__name__},"
      f" got {type(value).__name__}"
    )
  return value
