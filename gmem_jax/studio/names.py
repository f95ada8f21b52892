"""Names of uploaded pictures, as visitors typed them."""

import os
import pathlib
import re
from typing import Any

import gradio as gr
from gradio.data_classes import ListFiles

# Bytes of a name at most: file systems take 255, and some are prefixed.
_LONGEST = 200


def keep_typed() -> None:
  """Makes Gradio's files have the names that visitors typed.

  On their way browsers write a quotation mark as %22, and Gradio drops letters
  that a shell would read. This is for the whole process, which the studio has
  for itself.
  """
  # No class of its own: Gradio writes a .pyi beside the file of each.
  preprocess = gr.File.preprocess

  def named(self: gr.File, payload: Any) -> Any:
    if isinstance(payload, ListFiles):
      payload = ListFiles(root=[_named(each) for each in payload.root])
    elif payload is not None:
      payload = _named(payload)
    return preprocess(self, payload)

  gr.File.preprocess = named


def _named(file: Any) -> Any:
  path = as_typed(file.path, file.orig_name)
  return file.model_copy(update={"path": path})


def as_typed(path: str, name: str | None) -> str:
  """A path to an uploaded file that ends with its name as it was typed.

  Args:
    path: Where Gradio keeps it.
    name: What the page says that it is called: anything at all.

  Returns:
    A link beside the file, to be deleted with its folder; the file itself where
    it has this name, or where there can be none.
  """
  file, name = pathlib.Path(path), safe(name or "")
  if name in ("", file.name):
    return path
  link = file.parent / f"{file.name}.named" / name
  try:
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
      link.symlink_to(file.absolute())
  except OSError:
    # Another visitor was faster, or the file system has no links.
    return str(link) if link.is_symlink() else path
  return str(link)


def safe(name: str) -> str:
  """A name without folders and what cannot be seen; "" if nothing is left."""
  name = re.split(r"[/\\]", name)[-1]
  name = "".join(each for each in name if each.isprintable())
  if name in (".", ".."):
    return ""
  stem, suffix = os.path.splitext(name)
  suffix = suffix[:20]
  while len((stem + suffix).encode()) > _LONGEST:
    stem = stem[:-1]
  return stem + suffix
