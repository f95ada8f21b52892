"""The tab Watch: a run that is being trained, read again and again."""

import html
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from gmem_jax.data import write_images
from gmem_jax.files import paths
from gmem_jax.studio import context, controls, pictures
from gmem_jax.train import metrics

# Seconds between two looks; and points of a curve.
EVERY, POINTS = 5, 500
LOSS = "train/loss"


def build(workdir: paths.Path, is_run: bool, tab: gr.Tab) -> dict[str, Any]:
  """Builds what is in the tab; returns the event that looks.

  Args:
    workdir: What is looked at.
    is_run: Whether it is a run; converted weights have no training.
    tab: Looks at it when it is opened.
  """
  with gr.Row():
    curve = gr.Dropdown(
      [LOSS], value=LOSS, label="Curve", filterable=False, min_width=160,
      elem_id="watch-curve",
    )  # fmt: skip
    again = gr.Button("Look again", size="sm", scale=0, min_width=110)
  said = gr.HTML(elem_id="watch-said")
  plot = gr.LinePlot(
    x="step", y="value", height=260, label="Curve", elem_id="watch-plot",
    buttons=[],
  )  # fmt: skip
  numbers = gr.HTML(elem_id="watch-numbers")
  sheet = gr.Slider(
    1, 2, value=1, step=1, label="Sheet of samples", visible=False,
    elem_id="watch-sheet",
  )  # fmt: skip
  grid = gr.HTML(elem_id="watch-grid")
  timer = gr.Timer(EVERY)

  def look(chosen):
    records = read(workdir)
    names = sorted({name for each in records for name in each} - {"step"})
    chosen = chosen if chosen in names else LOSS
    frame = series(records, chosen)
    sheets = len(_sheets(workdir))
    return (
      gr.update(choices=names or [LOSS], value=chosen),
      pictures.hint(describe(workdir.name, records, is_run)),
      gr.update(value=frame, visible=bool(records)),
      latest(records),
      gr.update(maximum=max(2, sheets), visible=sheets > 1),
    )

  def show(number):
    return draw(workdir, number) if is_run else ""

  outputs = [curve, said, plot, numbers, sheet]
  quiet: dict[str, Any] = {"show_progress": "hidden", **context.PRIVATE}
  drawn = {
    "fn": show, "inputs": sheet, "outputs": grid,
    "js": controls.within("watch-sheet"), **quiet,
  }  # fmt: skip
  looked = {"fn": look, "inputs": curve, "outputs": outputs, **quiet}
  for event in (tab.select, timer.tick, again.click, curve.input):
    event(**looked).then(**drawn)
  sheet.input(**drawn)
  return looked


def describe(name: str, records: list[dict[str, Any]], is_run: bool) -> str:
  """What is watched, and how far it is."""
  if records:
    return f"{name}, step {records[-1]['step']:,}"
  if is_run:
    return (
      f"{name} has no numbers yet: they show here once training has written the"
      " first"
    )
  return f"{name} has converted weights: there is no training to watch"


def read(workdir: paths.Path) -> list[dict[str, Any]]:
  """The records of metrics.jsonl; a line that is being written is left out."""
  try:
    return metrics.read_jsonl(workdir / "metrics.jsonl")
  except (OSError, ValueError):
    return []


def series(records: list[dict[str, Any]], name: str) -> pd.DataFrame:
  """A curve, thinned to what can be seen."""
  found = [
    (each["step"], each[name])
    for each in records
    if isinstance(each.get(name), int | float) and np.isfinite(each[name])
  ]
  if len(found) > POINTS:
    found = [
      found[i]
      for i in np.linspace(0, len(found) - 1, POINTS).astype(int).tolist()
    ]
  return pd.DataFrame(found, columns=["step", "value"], dtype=float)


def latest(records: list[dict[str, Any]]) -> str:
  """The newest value of each number."""
  found: dict[str, tuple[int, float]] = {}
  for each in records:
    for name, value in each.items():
      if name != "step" and isinstance(value, int | float):
        found[name] = each["step"], value
  return pictures.facts(
    {
      name: f"{value:.4g} at step {step:,}"
      for name, (step, value) in sorted(found.items())
    }
  )


def draw(workdir: paths.Path, number: Any) -> str:
  """A sheet of samples, the newest first."""
  sheets = _sheets(workdir)
  if not sheets:
    return pictures.hint("No samples yet.")
  path = sheets[min(max(1, int(number or 1)), len(sheets)) - 1]
  try:
    pixels = write_images.read_png(path)
  except (OSError, ValueError):  # Removed, or not yet whole.
    return pictures.hint("No samples yet.")
  text = f"samples/{path.name}"
  return (
    f'<figure class="gm-sheet">{pictures.tag(pixels, text)}'
    f"<figcaption>{html.escape(text)}</figcaption></figure>"
  )


def _sheets(workdir: paths.Path) -> list[paths.Path]:
  """The pictures of samples, the newest first."""
  return sorted((workdir / "samples").glob("*.png"), reverse=True)
