"""The tab Bank: thumbnails by page, searches, a map, and what a row is."""

from typing import Any

import gradio as gr
import numpy as np

from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  catalogue as catalogue_lib,
  context,
  pictures,
  refusals,
  uploads,
)

# Thumbnails of a page, and their side in pixels.
PAGE, SIDE = 60, 96
NEIGHBOURS = 12
EVERYTHING = "all"
# Gradio gives its images no words for those who do not see them.
_NAME_MAP = """() => {
  const name = (tries) => {
    const map = document.querySelector("#bank-map img");
    if (map) map.alt = "Map of the bank, for the mouse; without one, choose"
      + " a thumbnail above or write a number under Row";
    else if (tries) setTimeout(name, 100, tries - 1);
  };
  name(50);
}"""


# Counts pages in the browser, in the order of the clicks, whatever the server
# has answered so far.
_TURN = """(number, last) =>
  Math.min(Math.max(1, (number || 1) + %d), Math.max(1, last))"""


def build(
  studio: context.Studio, visit: gr.State
) -> tuple[
  dict[str, Any],
  dict[str, Any],
  dict[str, Any],
  tuple[gr.Textbox, gr.Button],
]:
  """Builds the tab.

  Returns:
    The controls that a link holds; the event that shows a page; the one that
    forgets rows of another bank; and the row that is looked at with the button
    that takes it to the tab Make.
  """
  shown = gr.State([])
  with gr.Row(equal_height=False):
    with gr.Column(scale=3, min_width=300):
      with gr.Row():
        classes = studio.catalogue(None).classes
        group = gr.Dropdown(
          [EVERYTHING, *classes], value=EVERYTHING, label="Class",
          visible=bool(classes), min_width=120,
        )  # fmt: skip
        text = gr.Textbox(
          label="Name has", placeholder="part of a file's name",
          visible=bool(studio.catalogue(None).names), min_width=120,
        )  # fmt: skip
        number = gr.Number(
          1, precision=0, label="Page", elem_id="bank-page",
          min_width=90,
        )  # fmt: skip
      with gr.Row():
        back = gr.Button("← Back", size="sm", min_width=80)
        forward = gr.Button("Next →", size="sm", min_width=80)
      pages = -(-len(studio.catalogue(None)) // PAGE)
      last = gr.Number(pages, visible=False)
      said = gr.HTML(elem_id="bank-said")
      thumbnails = gr.Gallery(
        label="Memories", columns=10, height="auto", allow_preview=False,
        object_fit="contain", format="png", elem_id="bank-thumbnails",
        elem_classes="gm-pixels", buttons=[],
      )  # fmt: skip
      with gr.Accordion("Search by a picture", open=False):
        search = gr.File(
          file_types=["image"], type="filepath", height=110,
          label="Pictures like this one", elem_id="bank-search",
        )  # fmt: skip
      parts = _map()
    with gr.Column(scale=2, min_width=280):
      # No gr.Number, which shows 0 where there is none.
      row = gr.Textbox(
        "", max_lines=1, label="Row", placeholder="none", elem_id="bank-row"
      )
      detail = gr.HTML(
        pictures.hint("Choose a memory to see what it is."),
        elem_id="bank-detail",
      )
      take = gr.Button("Make images from this row", elem_id="bank-take")
      near = gr.State([])
      neighbours = gr.Gallery(
        label="Nearest in the bank", columns=6, height="auto", format="png",
        allow_preview=False, object_fit="contain", elem_id="bank-neighbours",
        elem_classes="gm-pixels", buttons=[],
      )  # fmt: skip

  def look(visit, group, text, number):
    group = "" if group == EVERYTHING else group
    asked = 1 if number is None else int(number)
    found = look_at(studio.catalogue(visit), group, text or "", asked)
    rows, number, pages, line, thumbnails = found
    # One may have gone on meanwhile: nothing is written that was asked for.
    number = gr.skip() if number == asked else number
    return rows, number, pages, pictures.hint(line), thumbnails

  def describe(visit, row):
    try:
      return _describe(studio.current(visit), row or ""), [], []
    except ValueError as error:
      return studio.explain(error), [], []

  def neighbours_of(visit, row):
    try:
      return _neighbours(studio.current(visit), row or "")
    except ValueError:  # `describe` has said it.
      return [], []

  def like(visit, file):
    generator = studio.current(visit)
    catalogue = studio.catalogue(visit)
    if not file:
      return gr.skip(), gr.skip(), gr.skip()
    try:
      upload = uploads.check([file])[0]
      found = generator.nearest(upload.path, min(PAGE, len(catalogue)))
    except ValueError as error:
      return gr.skip(), studio.explain(error), gr.skip()
    rows = found.rows.tolist()
    line = f"The {len(rows)} rows that are nearest to {upload.name}, by cosine"
    return rows, pictures.hint(line), tiles(catalogue, rows, found.scores)

  page = {
    "fn": look,
    "inputs": [visit, group, text, number],
    "outputs": [shown, number, last, said, thumbnails],
    "show_progress": "hidden",
    # What is asked for while a page comes is shown after it, and not dropped.
    "trigger_mode": "always_last",
    **context.PRIVATE,
  }
  # A new choice begins at its first page; the browser says so, as letters come
  # faster than answers.
  for change in (group.input, text.input, text.submit):
    change(
      None, None, number, js="() => 1", trigger_mode="multiple",
      **context.PRIVATE,
    ).then(**page)  # fmt: skip
  # Gradio does not call it input where letters are taken away.
  text.change(**page)
  number.input(**page)
  number.submit(**page)
  for button, step in ((back, -1), (forward, 1)):
    button.click(
      None, [number, last], number, js=_TURN % step, trigger_mode="multiple",
      **context.PRIVATE,
    ).then(**page)  # fmt: skip
  search.upload(
    like, [visit, search], [shown, said, thumbnails],
    **context.DEVICE, **context.PRIVATE,
  )  # fmt: skip
  search.clear(**page)
  refusals.tell(said, search)
  for gallery, rows in ((thumbnails, shown), (neighbours, near)):
    gallery.select(_chosen, rows, row, **context.PRIVATE)
  # What a row is needs no device, and does not wait for it.
  row.change(
    describe, [visit, row], [detail, near, neighbours],
    show_progress="hidden", **context.PRIVATE,
  ).then(
    neighbours_of, [visit, row], [near, neighbours],
    show_progress="minimal", show_progress_on=neighbours,
    **context.DEVICE, **context.PRIVATE,
  )  # fmt: skip
  _connect_map(studio, visit, parts, row)
  # Not "page" alone, which Gradio reads itself.
  named = {
    "bank_class": group, "bank_name": text, "bank_page": number,
    "bank_row": row, "bank_map": parts[0],
  }  # fmt: skip
  _, _, canvas, cells, _ = parts
  forget = {
    "fn": lambda: ("", None, None),
    "outputs": [row, canvas, cells],
    "show_progress": "hidden",
    **context.PRIVATE,
  }
  return named, page, forget, (row, take)


def look_at(
  catalogue: catalogue_lib.Catalogue, group: str, text: str, number: int
) -> tuple[list[int], int, int, str, list[tuple[np.ndarray, str]]]:
  """A page of the rows that are looked for: see `catalogue.find` and `page`.

  Reads the images of the page alone, and no feature.

  Returns:
    (its rows, its number, number of pages, what to say, thumbnails).
  """
  found = catalogue.find(group, text)
  rows, number, pages = catalogue_lib.page(found, number, PAGE)
  line = f"{len(found):,} of {len(catalogue):,} rows, page {number} of {pages}"
  rows = rows.tolist()
  return rows, number, pages, line, tiles(catalogue, rows)


def _map() -> tuple[gr.Radio, gr.Button, gr.Image, gr.State, gr.HTML]:
  ways = catalogue_lib.ways()
  with gr.Accordion("Map of the bank", open=False):
    gr.HTML(
      pictures.hint(
        "Two principal components of the features, or, where umap-learn is"
        " installed, UMAP; a click chooses a memory. Without a mouse: choose"
        " one of the thumbnails above, or write its number under Row."
      )
    )
    way = gr.Radio(ways, value=ways[0], label="Map by", visible=len(ways) > 1)
    drawing = gr.Button("Draw the map", size="sm", elem_id="bank-draw")
    canvas = gr.Image(
      label="Map", show_label=False, interactive=False, format="png",
      elem_id="bank-map", height="auto", buttons=[],
    )  # fmt: skip
    said = gr.HTML(elem_id="bank-map-said")
  return way, drawing, canvas, gr.State(None), said


def _connect_map(studio, visit, parts, row) -> None:
  way, drawing, canvas, cells, said = parts

  def draw(visit, way, progress=gr.Progress()):  # noqa: B008
    slow = way == catalogue_lib.UMAP
    progress(0, f"{way}, up to a minute" if slow else way)
    try:
      canvas, cells = studio.catalogue(visit).draw_map(
        way, lambda done: progress(done, "reading images")
      )
    except ValueError as error:
      return gr.skip(), gr.skip(), studio.explain(error)
    return canvas, cells, ""

  def chosen(cells, event: gr.SelectData):
    x, y = (int(each) // catalogue_lib.CELL for each in event.index)
    if cells is None or not 0 <= x < cells.shape[1] or not 0 <= y < len(cells):
      return gr.skip()
    found = int(cells[y, x])
    return gr.skip() if found < 0 else found

  drawing.click(
    draw, [visit, way], [canvas, cells, said], show_progress_on=canvas,
    # It needs no device, and UMAP is slow.
    concurrency_id="map", concurrency_limit=1, **context.PRIVATE,
  ).then(None, None, None, js=_NAME_MAP, **context.PRIVATE)  # fmt: skip
  canvas.select(chosen, cells, row, **context.PRIVATE)


def _chosen(rows, event: gr.SelectData):
  index = event.index
  known = isinstance(index, int) and 0 <= index < len(rows)
  return rows[index] if known else gr.skip()


def tiles(
  catalogue: catalogue_lib.Catalogue,
  rows: list[int],
  scores: np.ndarray | None = None,
) -> list[tuple[np.ndarray, str]]:
  """Thumbnails of rows with captions, for a gallery."""
  captions = [str(row) for row in rows]
  if scores is not None:
    captions = [
      f"{row} · {score:.2f}" for row, score in zip(rows, scores, strict=True)
    ]
  return [
    (catalogue.thumbnail(row, SIDE), caption)
    for row, caption in zip(rows, captions, strict=True)
  ]


def _number(catalogue: catalogue_lib.Catalogue, text: str) -> int | None:
  """The row that a text names, or None if it is empty.

  Raises:
    ValueError: If there is no such row.
  """
  text = text.strip()
  if not text:
    return None
  if not text.isdecimal() or len(text) > 12 or int(text) >= len(catalogue):
    last = f"{len(catalogue) - 1:,}"
    raise ValueError(f"row {text[:40]}: the bank has rows 0 to {last}")
  return int(text)


def _describe(generator: Generator, text: str) -> str:
  """A row's image and facts; raises as `_number`."""
  catalogue = context.catalogue(generator)
  row = _number(catalogue, text)
  if row is None:
    return pictures.hint("Choose a memory to see what it is.")
  bank = generator.source.require_bank()
  facts = {
    "row": f"{row:,} of {len(catalogue):,}",
    "class": catalogue.class_of(row),
    "file": catalogue.name_of(row),
    "feature": f"{bank.rows.shape[1]} numbers, length"
    f" {float(np.linalg.norm(bank.rows[row])):.3g}",
    "encoder": generator.config.encoder.features,
  }
  facts = {name: value for name, value in facts.items() if value}
  picture = pictures.figure(
    catalogue.picture(row), f"memory, row {row}", kind="gm-card"
  )
  return f'<div class="gm-detail">{picture}{pictures.facts(facts)}</div>'


def _neighbours(generator: Generator, text: str) -> tuple[list[int], Any]:
  """The rows nearest to a row, and their thumbnails; raises as `_number`."""
  catalogue = context.catalogue(generator)
  row = _number(catalogue, text)
  if row is None:
    return [], []
  found = generator.nearest(row, min(NEIGHBOURS + 1, len(catalogue)))
  others = found.rows != row
  near = found.rows[others][:NEIGHBOURS].tolist()
  return near, tiles(catalogue, near, found.scores[others][:NEIGHBOURS])
