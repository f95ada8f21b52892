"""Controls that several tabs have, and what they stand for in the config."""

import math
import re
from typing import Any, NamedTuple

import gradio as gr
import jax.numpy as jnp
import numpy as np

from gmem_jax.diffusion import schedule
from gmem_jax.sample import draw_rows
from gmem_jax.sample.generator import Generator

METHODS = schedule.Method.__args__
# Images of one click, whatever is asked for.
MAX_IMAGES = 64
_ROWS = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?")


class Sampling(NamedTuple):
  """Controls of the sampler."""

  method: gr.Dropdown
  steps: gr.Slider
  scale: gr.Slider
  start: gr.Slider
  end: gr.Slider


def sampling(generator: Generator, where: str = "") -> Sampling:
  """Makes the controls of the sampler, at the generator's own settings."""
  own = generator.config.sampler
  method = gr.Dropdown(
    list(METHODS), value=own.method, label=f"Sampler{where}", filterable=False
  )
  steps = gr.Slider(
    2, max(1000, own.steps), value=own.steps, step=1,
    label=f"Points of the time grid{where}",
    info="Steps are one fewer.",
  )  # fmt: skip
  scale = gr.Slider(
    0, max(8, own.guidance.scale), value=own.guidance.scale, step=0.05,
    label=f"Guidance{where}",
    info="1 is none; it needs a network trained with snippet dropout.",
  )  # fmt: skip
  start, end = (
    gr.Slider(0, 1, value=value, step=0.01, label=f"Guidance {name}{where}")
    for name, value in (
      ("from t", own.guidance.start),
      ("to t", own.guidance.end),
    )
  )
  return Sampling(method, steps, scale, start, end)


def changes(method: str, steps: Any, scale: Any, start: Any, end: Any) -> list:
  """Keys of the config that the controls of `sampling` stand for.

  Raises:
    ValueError: If a number is missing, or guidance ends before it begins.
  """
  guidance = {
    name: float(number(f"guidance {said}", value))
    for name, said, value in (
      ("scale", "scale", scale),
      ("start", "from t", start),
      ("end", "to t", end),
    )
  }  # fmt: skip
  if guidance["start"] > guidance["end"]:
    raise ValueError(
      f"guidance from t={guidance['start']} to t={guidance['end']}: the first"
      " must not be above the second"
    )
  return [
    f"sampler.method={method}",
    f"sampler.steps={whole('points of the time grid', steps)}",
    *(f"sampler.guidance.{name}={each}" for name, each in guidance.items()),
  ]


def number(name: str, value: Any) -> float | int:
  """A number that a visitor gave.

  Raises:
    ValueError: If there is none.
  """
  if not isinstance(value, int | float) or not math.isfinite(value):
    raise ValueError(f"{name}: a number is needed")
  return value


def whole(name: str, value: Any) -> int:
  """A whole number that a visitor gave.

  Raises:
    ValueError: If there is none.
  """
  found = number(name, value)
  if found != int(found):
    raise ValueError(f"{name}={value}: a whole number is needed")
  return int(found)


def within(slider: str) -> str:
  """JavaScript that puts an event's last value within its slider's bounds.

  Gradio refuses what lies outside, as numbers do while they are typed. Of a
  slider that is not shown the value stays as it is.

  Args:
    slider: Its elem_id.
  """
  return f"""(...values) => {{
    const shown = document.querySelector("#{slider} input[type=range]");
    if (!shown) return values.length > 1 ? values : values[0];
    const {{min, max}} = shown;
    const value = Math.round(values.pop()) || 0;
    const kept = Math.min(Math.max(value, Number(min)), Number(max));
    return values.length ? [...values, kept] : kept;
  }}"""


def seed(value: Any) -> int:
  """The seed that a visitor gave.

  Raises:
    ValueError: If it is none.
  """
  found = number("seed", value)
  if found != int(found) or not 0 <= found < 2**32:
    raise ValueError(f"seed={value}: an integer from 0 to {2**32 - 1:,}")
  return int(found)


def parse_rows(
  text: str | None, size: int, limit: int = MAX_IMAGES
) -> list[int]:
  """Rows of a bank of `size` from text like "3, 7, 10-12".

  Raises:
    ValueError: Naming what is no row.
  """
  rows: list[int] = []
  text = re.sub(r"\s*[-\u2013]\s*", "-", text or "")
  for part in re.split(r"[,;\s]+", text.strip()):
    if not part:
      continue
    match = _ROWS.fullmatch(part)
    if match is None:
      raise ValueError(f"rows: {part[:40]!r} is no row: write 3, 7, 10-12")
    first = int(match[1])
    last = int(match[2] or first)
    if max(first, last) >= size:
      raise ValueError(f"rows: {part}: the bank has rows 0 to {size - 1:,}")
    if last < first or len(rows) + last - first >= limit:
      raise ValueError(f"rows: {part}: at most {limit} rows, in order")
    rows += range(first, last + 1)
  return rows


def random_rows(generator: Generator, value: int, count: int) -> list[int]:
  """The rows that `Generator.sample(count)` draws for a seed."""
  size = len(generator.source.require_bank().rows)
  drawn = draw_rows.draw_rows(value, jnp.arange(count), size)
  return np.asarray(drawn).tolist()


def parse_weights(text: str | None, count: int) -> list[float]:
  """Weights of `count` memories from text like "2, 1"; equal ones from "".

  Raises:
    ValueError: If it is another number of them, or one is no number.
  """
  parts = [part for part in re.split(r"[,;\s]+", (text or "").strip()) if part]
  if not parts:
    return [1.0] * count
  try:
    weights = [float(part) for part in parts]
  except ValueError:
    raise ValueError(f"weights: {text!r}: write numbers, as 2, 1") from None
  if len(weights) != count:
    raise ValueError(f"weights: {len(weights)} for {count} memories")
  return weights
