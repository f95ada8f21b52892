"""The tab Edit: own pictures join the bank, rows leave it; downloads."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  bank_tab,
  context,
  controls,
  own_banks,
  pictures,
  refusals,
  uploads,
)

# Rows that are taken out at a time, and new ones that are shown.
MOST_ROWS, SHOWN = 1000, 48


def build(
  studio: context.Studio, visit: gr.State
) -> tuple[list[Any], gr.Textbox, gr.Button]:
  """Builds the tab.

  Returns:
    The events after which the visitor's bank is another; rows, as text, that
    are new in it; and the button that takes these to the tab Make.
  """
  with gr.Row():
    with gr.Column(scale=1, min_width=280):
      files = gr.File(
        file_count="multiple", file_types=["image"], type="filepath",
        height=140, label=f"Own pictures, up to {uploads.MAX_FILES}",
        elem_id="edit-files",
      )  # fmt: skip
      append = gr.Button("Append", variant="primary", elem_id="edit-append")
      rows = gr.Textbox(
        label="Rows to take out", placeholder="3, 7, 10-12",
        elem_id="edit-rows",
      )  # fmt: skip
      remove = gr.Button("Remove", elem_id="edit-remove")
      back = gr.Button("Back to the studio's bank", elem_id="edit-back")
    with gr.Column(scale=2, min_width=300):
      wait = context.waiting("edit")
      said = gr.HTML(_about(studio, None), elem_id="edit-said")
      new_rows = gr.Textbox("", visible=False)
      shown = gr.Gallery(
        label="New rows", columns=8, height="auto", format="png",
        allow_preview=False, object_fit="contain", visible=False,
        elem_id="edit-shown", elem_classes="gm-pixels", buttons=[],
      )  # fmt: skip
      take = gr.Button(
        "Make images from the new rows", visible=False, elem_id="edit-take"
      )
      packed = gr.DownloadButton(
        "Download the bank", visible=False, elem_id="edit-download"
      )

  def edit(
    work: Callable[[Generator | None, Any], Generator],
  ) -> Callable[..., Iterator[tuple[Any, ...]]]:
    def run(key, visit, value):
      try:
        size = len(studio.current(visit).source.require_bank().rows)
        other = work(visit, value)
      except (ValueError, OSError) as error:
        yield (
          *(gr.skip() for _ in range(2)),
          studio.explain(error),
          *(gr.skip() for _ in range(4)),
        )
        return
      added = range(size, len(other.source.require_bank().rows))
      tiles = bank_tab.tiles(context.catalogue(other), [*added[:SHOWN]])
      yield (
        other,
        None,
        _about(studio, other),
        f"{added[0]}-{added[-1]}" if added else "",
        gr.update(value=tiles, visible=bool(added)),
        gr.update(visible=bool(added)),
        gr.update(value=own_banks.pack(studio, other), visible=True),
      )
      studio.line.tell(key, 1.0)

    return run

  def forget(visit):
    own_banks.discard(studio, visit)
    hidden = gr.update(visible=False)
    return None, None, _about(studio, None), "", hidden, hidden, hidden

  def take_out(visit, text):
    size = len(studio.current(visit).source.require_bank().rows)
    found = controls.parse_rows(text, size, MOST_ROWS)
    if not found:
      raise ValueError("rows: name some")
    return own_banks.remove(studio, visit, found)

  refusals.tell(said, files)
  events = []
  for button, control, work in (
    (append, files, lambda *given: own_banks.append(studio, *given)),
    (remove, rows, take_out),
  ):
    outputs = [visit, control, said, new_rows, shown, take, packed]
    events.append(
      context.busy(studio, button, wait, edit(work), [visit, control], outputs)
    )
  events.append(
    back.click(
      forget, visit, [visit, files, said, new_rows, shown, take, packed],
      show_progress="hidden", **context.DEVICE, **context.PRIVATE,
    )
  )  # fmt: skip
  return events, new_rows, take


def _about(studio: context.Studio, visit: Generator | None) -> str:
  """What a visitor's bank is."""
  if visit is None:
    size = len(studio.generator.source.require_bank().rows)
    return pictures.hint(
      f"The studio's bank, {size:,} rows. An edit makes a new one, which you"
      " alone see, in all tabs; it goes when you do, so download it."
    )
  info = own_banks.describe(visit)
  return pictures.facts(
    {
      "your bank": f"{info.size:,} rows of {info.width}",
      "edit": info.edit,
      "sha256": info.digest[:16],
      "parent": info.parent[:16],
      "encoder": info.encoder or "unknown",
      "source": info.source,
    }
  )
