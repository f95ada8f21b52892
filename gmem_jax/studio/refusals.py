"""Says in the status line what the browser does not upload."""

from typing import Any

import gradio as gr

from gmem_jax.studio import context, pictures, uploads

# Gradio's page refuses large files by itself, and tells no server.
_WATCH = """
const tell = (files) => {
  const found = [...(files || [])].filter((each) => each.size > %(bytes)d);
  if (found.length)
    trigger("refused", {names: found.map((each) => each.name)});
};
const inside = (node) => node.closest?.("#%(id)s");
document.addEventListener("change", (event) => {
  if (event.target.type === "file" && inside(event.target))
    tell(event.target.files);
}, true);
document.addEventListener("drop", (event) => {
  if (inside(event.target)) tell(event.dataTransfer?.files);
}, true);
"""


def tell(said: gr.HTML, *controls: gr.File) -> None:
  """Connects controls for files with the line that says what is refused.

  Args:
    said: Gets the message.
    *controls: Files that are too large, or too many, are named; each control
      has an `elem_id`.
  """
  said.js_on_load = "".join(
    "{" + _WATCH % {"bytes": uploads.MAX_BYTES, "id": each.elem_id} + "}"
    for each in controls
  )

  def large(event: gr.EventData) -> str:
    names = ", ".join(str(each)[:80] for each in event.names[:3])
    return pictures.error(f"{uploads.too_large(names)}; nothing was uploaded")

  def many(files: Any) -> Any:
    count = len(files) if isinstance(files, list) else 1
    if count <= uploads.MAX_FILES:
      return gr.skip()
    return pictures.error(uploads.too_many(count))

  quiet: dict[str, Any] = {
    "queue": False, "show_progress": "hidden", **context.PRIVATE,
  }  # fmt: skip
  said.refused(large, None, said, **quiet)
  for each in controls:
    each.upload(many, each, said, **quiet)
