"""Converted weights that a key of the config names."""

from collections.abc import Sequence
from typing import Any

from gmem_jax.files import weights


def read(
  key: str, path: str, kinds: Sequence[str], tree: str = "params"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads converted weights.

  Args:
    key: The config key that names them.
    path: The key's value.
    kinds: What they may be.
    tree: Which of their trees.

  Returns:
    (tree, metadata).

  Raises:
    ValueError: Naming the key: there is nothing, or something else.
  """
  if not path:
    raise ValueError(
      f"config.{key} is empty: it must name a {' or '.join(kinds)} that"
      " `python -m gmem_jax.convert` wrote"
    )
  try:
    metadata = weights.read_metadata(path)
    if metadata["kind"] not in kinds:
      raise ValueError(
        f"it is a {metadata['kind']}, not a {' or '.join(kinds)}"
      )
    return weights.load_converted(path, tree)
  except (ValueError, OSError) as error:
    raise ValueError(f"config.{key}={path!r}: {error}") from None


def origin(metadata: dict[str, Any]) -> dict[str, Any]:
  """What identifies converted weights in a record of samples.

  Args:
    metadata: Of the converted weights.
  """
  source = metadata["source"]
  return {
    "title": metadata["title"],
    "file": source["file"],
    "sha256": source["sha256"],
    "weights": metadata["weights"],
    "step": metadata["step"],
  }
