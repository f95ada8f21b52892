"""The tab Compare: the same memories and seeds, in two ways."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from gmem_jax.sample import images as images_lib
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  context,
  controls,
  own_banks,
  pictures,
  results,
  streaming,
)

OWN, NETWORKS_OWN = "the studio's own", "the network's own"
LOADED = "as loaded"
EDITED = "mine, from the tab Edit"


class _Side(NamedTuple):
  """Controls of a side, or their values."""

  network: Any
  checkpoint: Any
  weights: Any
  bank: Any
  memory: Any
  method: Any
  steps: Any
  scale: Any
  start: Any
  end: Any


def build(
  studio: context.Studio, visit: gr.State, tab: gr.Tab
) -> dict[str, Any]:
  """Builds what is in the tab; returns the controls that a link holds."""
  with gr.Row():
    rows = gr.Textbox(
      "0, 1, 2", label="Rows of the bank", min_width=140,
      elem_id="compare-rows",
    )  # fmt: skip
    per_row = gr.Slider(
      1, 8, value=2, step=1, label="Images of each", min_width=140
    )
    seed = gr.Number(0, label="Seed", min_width=90)
  with gr.Row(equal_height=False):
    sides = []
    for name in "AB":
      with gr.Column(min_width=260):
        sides.append(_side(studio, name))
  with gr.Row():
    start = gr.Button("Compare", variant="primary", elem_id="compare-start")
    stop = gr.Button("Stop")
  wait = context.waiting("compare")
  status = gr.HTML(
    pictures.hint("Change one side, then Compare."), elem_id="compare-status"
  )
  shown = gr.HTML(elem_id="compare-images")

  def compare(
    stopped, visit, rows, per_row, seed, *values
  ) -> Iterator[tuple[Any, Any]]:
    size = len(_Side._fields)
    text, made, first, look = "", [], None, None
    try:
      for name, part in (("A", values[:size]), ("B", values[size:])):
        # One after the other: two networks need not fit the device.
        try:
          generator = _generator(studio, visit, _Side(*part))
          work, count = _work(generator, rows, per_row, seed)
        except ValueError as error:
          raise ValueError(f"{name}: {error}") from None

        half = functools.partial(_half_done, stopped, len(made))
        for look in streaming.looks(work, count, half):
          text = results.status(look, f"{name}: ")
          yield text, gr.skip() if made else results.growing(look)
          if look.made is not None:
            made.append((look.made, generator))
            first = first or look
      yield text, _table(*made)
    except streaming.TOLD as error:
      said, shown = results.ended(studio, error, look)
      if first is not None:
        # A alone is no comparison, but it is finished.
        shown = results.growing(first, "A, finished")
        if isinstance(error, streaming.StoppedError):
          said = pictures.hint("Stopped in B: these are A's images.", live=True)
      yield said, shown

  context.runs(
    studio,
    start,
    stop,
    wait,
    compare,
    [visit, rows, per_row, seed, *sides[0], *sides[1]],
    [status, shown],
  )
  _keep_steps(studio, tab, sides)
  named = {
    f"{name}_{key}": control
    for name, side in zip("ab", sides, strict=True)
    for key, control in side._asdict().items()
  }
  return {
    "compare_rows": rows, "compare_per_row": per_row, "compare_seed": seed,
    **named,
  }  # fmt: skip


def _half_done(
  stopped: Callable[[float], bool], before: int, done: float
) -> bool:
  """Tells how far both sides are; `before` of them are finished."""
  return stopped((before + done) / 2)


def _side(studio: context.Studio, name: str) -> _Side:
  """The controls of a side."""
  network = gr.Dropdown(
    [OWN, *studio.others], value=OWN, label=f"{name}: network",
    filterable=False, visible=bool(studio.others),
  )  # fmt: skip
  checkpoint = gr.Dropdown(
    [LOADED, *map(str, studio.steps(None))], value=LOADED,
    label=f"{name}: checkpoint", allow_custom_value=True,
    visible=studio.has_run or bool(studio.others),
    info="The step of its training; it is loaded when it is first compared.",
  )  # fmt: skip
  weights = gr.Radio(
    ["ema", "params"], value=studio.generator.config.sample.weights,
    label=f"{name}: weights", visible=studio.has_run,
    info="The moving average, or the parameters themselves.",
  )  # fmt: skip
  bank = gr.Dropdown(
    [NETWORKS_OWN, *studio.banks, EDITED], value=NETWORKS_OWN,
    label=f"{name}: bank", filterable=False,
  )  # fmt: skip
  memory = gr.Checkbox(
    True, label=f"{name}: with memory",
    info="Without, the network sees the null condition; it knows that from"
    " training with snippet dropout alone.",
  )  # fmt: skip
  with gr.Accordion(f"{name}: sampler", open=False):
    sampling = controls.sampling(studio.generator, f", {name}")
  return _Side(network, checkpoint, weights, bank, memory, *sampling)


def _keep_steps(
  studio: context.Studio, tab: gr.Tab, sides: list[_Side]
) -> None:
  """Offers the checkpoints of the chosen network, as training writes them."""

  def offer(network):
    kept = studio.steps(None if network == OWN else network)
    return gr.update(choices=[LOADED, *map(str, kept)])

  for side in sides:
    gr.on(
      [tab.select, side.network.change], offer, side.network, side.checkpoint,
      queue=False, show_progress="hidden", **context.PRIVATE,
    )  # fmt: skip


def _step(checkpoint: Any) -> int | None:
  """The step of a checkpoint that was chosen or typed; None for no other.

  Raises:
    ValueError: If it is no step.
  """
  text = str(checkpoint or LOADED).strip()
  if text == LOADED:
    return None
  if not text.isdecimal() or len(text) > 12:
    raise ValueError(f"checkpoint: {text[:40]!r} is no step")
  return int(text)


def _generator(
  studio: context.Studio, visit: Generator | None, side: _Side
) -> Generator:
  """The generator of a side.

  Raises:
    ValueError: Naming what does not fit.
  """
  generator = studio.generator
  if side.network != OWN:
    generator = studio.other(side.network)
  changes = controls.changes(
    side.method, side.steps, side.scale, side.start, side.end
  )
  if not side.memory:
    # Scale 0 leaves the unconditional prediction alone, at all times.
    changes += [
      "sampler.guidance.scale=0.0",
      "sampler.guidance.start=0.0",
      "sampler.guidance.end=1.0",
    ]
  step = _step(side.checkpoint)
  if not generator.config.sample.network:
    generator = context.with_weights(generator, side.weights, step)
  elif step is not None:
    raise ValueError("checkpoint: converted weights have only one")
  if side.bank == EDITED:
    if visit is None:
      raise ValueError("bank: none is edited yet")
    own = generator is studio.generator
    generator = visit if own else own_banks.use(visit, generator)
  elif side.bank != NETWORKS_OWN:
    # Before the settings, which change more often.
    generator = context.with_bank(generator, studio.banks[side.bank])
  return generator.with_config(*changes)


def _work(
  generator: Generator, rows: Any, per_row: Any, seed: Any
) -> tuple[streaming.Work, int]:
  bank = generator.source.require_bank()
  found = controls.parse_rows(rows, len(bank.rows), 16)
  if not found:
    raise ValueError("rows: name some")
  per_row = controls.whole("images of each", per_row)
  settings: dict[str, Any] = {
    "rows": found, "per_row": per_row, "seed": controls.seed(seed),
  }  # fmt: skip
  count = len(found) * per_row
  return lambda look: generator.sample(**settings, on_step=look), count


def _table(
  a: tuple[images_lib.SampledImages, Generator],
  b: tuple[images_lib.SampledImages, Generator],
) -> str:
  """A line for each memory: A's images, then B's.

  Rows of two banks are two memories, each beside its images.
  """
  lines = []
  for one, other in zip(a[0].lines, b[0].lines, strict=True):
    memories = [
      results.picture(line.before, made.config.encoder.image_size)
      for line, (_, made) in ((one, a), (other, b))
    ]
    halves = [
      _half(name, made.pixels, line.numbers)
      for name, (made, _), line in (("A", a, one), ("B", b, other))
    ]
    if _same(*memories):
      lines.append([_memory("", memories[0], one.label), *halves])
    else:
      lines.append(
        [
          _memory(name, memory, line.label) + half
          for name, memory, line, half in zip(
            "AB", memories, (one, other), halves, strict=True
          )
        ]
      )
  return "".join(
    f'<section class="gm-two{" gm-apart" if len(line) == 2 else ""}">'
    + "".join(f"<div>{part}</div>" for part in line)
    + "</section>"
    for line in lines
  )


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
  if a is None or b is None:
    return a is b
  return np.array_equal(a, b)


def _memory(name: str, picture: np.ndarray | None, label: str) -> str:
  whose = f"memory of {name}" if name else "memory"
  return pictures.figure(picture, f"{whose}: {label}", label, kind="gm-memory")


def _half(name: str, pixels: np.ndarray, numbers: Any) -> str:
  cards = [
    pictures.figure(pixels[number], f"{name}, image {number}")
    for number in numbers
  ]
  return f'<div><b>{name}</b><div class="gm-grid">{"".join(cards)}</div></div>'
