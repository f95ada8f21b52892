"""The tab Make: images from rows, from own or drawn pictures, from mixtures."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  context,
  controls,
  pictures,
  refusals,
  results,
  streaming,
  uploads,
)

RANDOM, ROWS, PICTURES, MIXTURE = SOURCES = (
  "random rows",
  "rows",
  "pictures",
  "a mixture",
)


class Memories(NamedTuple):
  """Controls that say what images are made from, or their values."""

  source: Any
  rows: Any
  count: Any
  files: Any
  weights: Any
  per_row: Any
  seed: Any


def build(studio: context.Studio, visit: gr.State) -> dict[str, Any]:
  """Builds the tab; returns the controls that a link holds."""
  with gr.Row():
    with gr.Column(scale=1, min_width=280):
      memories, drawing = _memories(studio)
      with gr.Accordion("Sampler", open=False):
        sampling = controls.sampling(studio.generator)
      with gr.Row():
        start = gr.Button("Make", variant="primary", elem_id="make-start")
        stop = gr.Button("Stop", elem_id="make-stop")
    with gr.Column(scale=2, min_width=300):
      wait = context.waiting("make")
      status = gr.HTML(
        pictures.hint("Choose memories, then Make."), elem_id="make-status"
      )
      shown = gr.HTML(elem_id="make-images", label="Images")
      with gr.Row():
        packed = [
          gr.DownloadButton(name, visible=False, elem_id=f"make-{kind}")
          for name, kind in (("Download zip", "zip"), ("Download npz", "npz"))
        ]

  def make(stopped, visit, *values) -> Iterator[tuple[Any, ...]]:
    hidden = [gr.update(visible=False)] * 2
    kept = [gr.skip()] * 2
    look = None
    try:
      generator = studio.current(visit)
      work, count = _work(generator, values)
      made = None
      for look in streaming.looks(work, count, stopped):
        made, text = look.made, results.status(look)
        yield text, results.growing(look), *hidden
      assert made is not None
      yield text, results.lines(made, generator), *hidden
      # Copies are of what was trained on, whatever bank was sampled from.
      near = results.nearest(studio.generator, made.pixels)
      html = results.lines(made, studio.generator, near)
      paths = results.pack(made, studio.folder)
      yield text, html, *(gr.update(value=p, visible=True) for p in paths)
    except streaming.TOLD as error:
      # Where nothing began, the images of before stay, and what has them.
      yield (
        *results.ended(studio, error, look),
        *(kept if look is None else hidden),
      )

  context.runs(
    studio,
    start,
    stop,
    wait,
    make,
    [visit, *memories, *sampling],
    [status, shown, *packed],
  )
  refusals.tell(status, memories.files)
  _react(studio, memories, drawing)
  return {
    **{f"make_{name}": value for name, value in memories._asdict().items()
       if name != "files"},
    **sampling._asdict(),
  }  # fmt: skip


def _memories(studio: context.Studio) -> tuple[Memories, tuple[Any, ...]]:
  """The controls that say what images are made from."""
  source = gr.Radio(list(SOURCES), value=RANDOM, label="Memories")
  count = gr.Slider(1, 16, value=4, step=1, label="Random rows")
  rows = gr.Textbox(
    label="Rows of the bank", placeholder="3, 7, 10-12", visible=False
  )
  files = gr.File(
    file_count="multiple", file_types=["image"], type="filepath", height=120,
    label=f"Own pictures, up to {uploads.MAX_FILES}", visible=False,
    elem_id="make-files",
  )  # fmt: skip
  with gr.Accordion("Draw one", open=False, visible=False) as draw:
    canvas = gr.Sketchpad(
      type="numpy", canvas_size=(256, 256), label="A drawing", height=330,
      brush=gr.Brush(default_size=14, colors=[
        "#000000", "#ffffff", "#e11d48", "#f59e0b", "#16a34a", "#2563eb",
      ]),
    )  # fmt: skip
    take = gr.Button("Add the drawing", size="sm")
    said = gr.HTML()
  weights = gr.Textbox(
    label="Weights", placeholder="2, 1, 1: rows first; empty: equal ones",
    visible=False,
  )  # fmt: skip
  per_row = gr.Slider(1, 16, value=2, step=1, label="Images of each memory")
  seed = gr.Number(studio.generator.config.sample.seed, label="Seed")
  memories = Memories(source, rows, count, files, weights, per_row, seed)
  return memories, (draw, canvas, take, said)


def _react(
  studio: context.Studio, memories: Memories, drawing: tuple[Any, ...]
) -> None:
  """Shows the controls that a choice needs, and takes drawings."""
  draw, canvas, take, said = drawing

  def choose(source):
    takes_rows, takes_files = source in (ROWS, MIXTURE), source in SOURCES[2:]
    return (
      gr.update(visible=source == RANDOM),
      gr.update(visible=takes_rows),
      gr.update(visible=takes_files),
      gr.update(visible=takes_files),
      gr.update(visible=source == MIXTURE),
    )

  memories.source.change(
    choose,
    memories.source,
    [memories.count, memories.rows, memories.files, draw, memories.weights],
    queue=False,
    show_progress="hidden",
    **context.PRIVATE,
  )

  def add(drawn, files):
    try:
      path = uploads.keep_drawing(drawn, studio.folder)
    except ValueError as error:
      return gr.skip(), pictures.error(str(error))
    return [*(files or ()), path], pictures.hint("Added.")

  take.click(
    add,
    [canvas, memories.files],
    [memories.files, said],
    show_progress="hidden",
    **context.PRIVATE,
  )


def _work(
  generator: Generator, values: tuple[Any, ...]
) -> tuple[streaming.Work, int]:
  """What to do for the values of the controls, and how many images that makes.

  Raises:
    ValueError: Naming what does not fit.
  """
  size = len(Memories._fields)
  given = Memories(*values[:size])
  generator = generator.with_config(*controls.changes(*values[size:]))
  seed = controls.seed(given.seed)
  per_row = controls.whole("images of each memory", given.per_row)
  bank = len(generator.source.require_bank().rows)
  settings: dict[str, Any] = {"per_row": per_row, "seed": seed}
  rows: list[int] = []
  if given.source == RANDOM:
    count = controls.whole("random rows", given.count)
    rows = controls.random_rows(generator, seed, count)
  elif given.source != PICTURES:
    rows = controls.parse_rows(given.rows, bank)
  files = []
  if given.source in (PICTURES, MIXTURE):
    files = [upload.path for upload in uploads.check(given.files)]
  if not rows and not files:
    raise ValueError(f"memories: choose {given.source or 'some'} first")
  memories = [*rows, *files]
  if given.source == MIXTURE:
    weights = controls.parse_weights(given.weights, len(memories))
    return (
      lambda look: generator.mix(memories, weights, **settings, on_step=look),
      per_row,
    )
  count = len(memories) * per_row
  if not 1 <= count <= controls.MAX_IMAGES:
    raise ValueError(f"{count} images: at most {controls.MAX_IMAGES} at a time")
  what: dict[str, Any] = {"rows": rows} if rows else {"images": files}
  return (
    lambda look: generator.sample(**what, **settings, on_step=look),
    count,
  )
