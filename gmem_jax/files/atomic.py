"""Small files, written whole or not at all."""

import json
import pathlib
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a small file whole or not at all.

  Args:
    path: The file.
    text: Its new content.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.write_text(text)
  temporary.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all.

  Args:
    path: The file.
    value: Its new content.
  """
  write_text(path, json.dumps(value, indent=2) + "\n")
