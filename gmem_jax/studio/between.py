"""The tab Between: the way from one memory to another."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from gmem_jax.config import sections
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

METHODS = sections.Interpolation.__args__
POINTS = 16


def build(studio: context.Studio, visit: gr.State) -> dict[str, Any]:
  """Builds the tab; returns the controls that a link holds."""
  made = gr.State(None)
  with gr.Row():
    with gr.Column(scale=1, min_width=280):
      ends = [_end(name, row) for name, row in (("first", 0), ("second", 1))]
      method = gr.Radio(
        list(METHODS), value=studio.generator.config.sample.interpolation,
        label="Way",
        info="concat and mask do not divide it: they put features together.",
      )  # fmt: skip
      points = gr.Slider(
        2, POINTS, value=6, step=1, label="Points", elem_id="between-points"
      )
      seed = gr.Number(0, label="Seed", min_width=90)
      with gr.Row():
        start = gr.Button("Go", variant="primary", elem_id="between-start")
        stop = gr.Button("Stop")
    with gr.Column(scale=2, min_width=300):
      wait = context.waiting("between")
      status = gr.HTML(
        pictures.hint("Two memories: a row, or a picture."),
        elem_id="between-status",
      )
      strip = gr.HTML(elem_id="between-strip")
      place = gr.Slider(
        1, POINTS, value=1, step=1, label="Look at point", visible=False,
        elem_id="between-place",
      )  # fmt: skip
      large = gr.HTML(elem_id="between-large")

  def go(stopped, visit, *values) -> Iterator[tuple[Any, ...]]:
    quiet = gr.skip(), gr.skip(), gr.skip()
    look = None
    try:
      generator = studio.current(visit)
      work, count = _work(generator, values)
      found = None
      for look in streaming.looks(work, count, stopped):
        found, text = look.made, results.status(look)
        yield text, results.growing(look), *quiet
      assert found is not None
      slide = gr.update(maximum=max(2, count), value=1, visible=count > 1)
      yield (
        text,
        _strip(generator, found),
        slide,
        found.pixels,
        _large(found.pixels, 1),
      )
    except streaming.TOLD as error:
      yield *results.ended(studio, error, look), *quiet

  inputs = [*ends[0], *ends[1], method, points, seed]
  context.runs(
    studio,
    start,
    stop,
    wait,
    go,
    [visit, *inputs],
    [status, strip, place, made, large],
  )
  refusals.tell(status, ends[0][1], ends[1][1])
  place.change(
    _large, [made, place], large, js=controls.within("between-place"),
    show_progress="hidden", queue=False, **context.PRIVATE,
  )  # fmt: skip
  return {
    "between_a": ends[0][0], "between_b": ends[1][0], "between_way": method,
    "between_points": points, "between_seed": seed,
  }  # fmt: skip


def _end(name: str, row: int) -> tuple[gr.Number, gr.File]:
  """The controls of an end: a picture wins over a row."""
  number = gr.Number(row, label=f"Row of the {name} memory")
  file = gr.File(
    file_types=["image"], type="filepath", height=120,
    label=f"or a picture, {name}", elem_id=f"between-{name}",
  )  # fmt: skip
  return number, file


def _work(
  generator: Generator, values: tuple[Any, ...]
) -> tuple[streaming.Work, int]:
  """What to do for the values of the controls, and how many images that makes.

  Raises:
    ValueError: Naming what does not fit.
  """
  row_a, file_a, row_b, file_b, method, points, seed = values
  ends: list[Any] = []
  for name, row, file in (("first", row_a, file_a), ("second", row_b, file_b)):
    if file:
      ends.append(uploads.check([file])[0].path)
    else:
      key = f"row of the {name} memory"
      size = len(generator.source.require_bank().rows)
      ends.append(controls.whole(key, row))
      if not 0 <= ends[-1] < size:
        raise ValueError(f"{key}: the bank has rows 0 to {size - 1:,}")
  points = controls.whole("points", points)
  if not 2 <= points <= POINTS:
    raise ValueError(f"points={points}: from 2 to {POINTS}")
  generator = generator.with_config(f"sample.interpolation={method}")
  settings: dict[str, Any] = {
    "points": points, "per_row": 1, "seed": controls.seed(seed),
  }  # fmt: skip
  return (
    lambda look: generator.interpolate(*ends, **settings, on_step=look),
    # A concatenation is one memory, and no way.
    1 if method == "concat" else points,
  )


def _strip(generator: Generator, made) -> str:
  """From one memory to the other along a line."""
  line = made.lines[0]
  side = generator.config.encoder.image_size
  first, _, second = line.label.partition("\nto ")
  count = len(line.numbers)
  cards = [
    pictures.figure(
      results.picture(line.before, side), f"first memory: {first}", first
    ),
    *(
      pictures.figure(
        made.pixels[number], f"point {i} of {count}", f"point {i}"
      )
      for i, number in enumerate(line.numbers, 1)
    ),
    pictures.figure(
      results.picture(line.after, side), f"second memory: {second}", second
    ),
  ]
  return f'<div class="gm-strip" tabindex="0">{"".join(cards)}</div>'


def _large(pixels, place) -> str:
  """One of the images, large."""
  if pixels is None:
    return ""
  index = min(max(1, int(place or 1)), len(pixels)) - 1
  figure = pictures.figure(pixels[index], f"point {index + 1}, large")
  return f'<div class="gm-detail gm-large">{figure}</div>'
