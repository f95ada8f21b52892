"""Keys of dicts and sets that a pickle makes: cheap to hash and to find.

Hashing a key runs methods of it, overflows the stack on deep tuples, and takes
as long as a tuple or an integer is. Python hashes strings with a secret, and
few integers of 64 bits alike. Of other keys, a file can have as many as it
likes with one hash: each is compared with all before it, so that a megabyte of
them takes hours.
"""

from collections.abc import Iterable
from typing import Any

_SCALARS = (str, bytes, int, float, bool, complex, type(None))
# Bounds of a key: its characters or parts, and its bits as an integer.
_KEY_LENGTH, _KEY_PARTS, _KEY_BITS = 4096, 16, 64
# Keys of one container whose hash a file can choose at will.
_CHOSEN = 256


class PickleError(ValueError):
  """The pickle is damaged, or contains what this reader does not accept."""


def _checked_key(value: Any, size: int) -> Any:
  """Returns a key that may join a dict or set of `size` others."""
  parts = value if isinstance(value, tuple) else (value,)
  if len(parts) > _KEY_PARTS or not all(isinstance(p, _SCALARS) for p in parts):
    raise PickleError(f"a {type(value).__name__} as a key of a dict or set")
  for part in parts:
    if isinstance(part, int) and part.bit_length() > _KEY_BITS:
      raise PickleError(f"an integer of {part.bit_length()} bits as a key")
    if isinstance(part, (str, bytes)) and len(part) > _KEY_LENGTH:
      raise PickleError(f"a key of {len(part)} characters")
  if isinstance(value, (tuple, float, complex)) and size >= _CHOSEN:
    raise PickleError(
      f"more than {_CHOSEN} keys, one of them a {type(value).__name__}"
    )
  return value


def checked_keys(values: Iterable[Any], size: int = 0) -> list[Any]:
  """Checks keys that are added to a dict or set of some size.

  Raises:
    PickleError: If one of them could cost more than its bytes.
  """
  return [_checked_key(v, i) for i, v in enumerate(values, size)]
