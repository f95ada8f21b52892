"""Images beside their memories and their nearest training images, as HTML."""

import html
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from gmem_jax.sample import images as images_lib, sheet
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import context, pictures, streaming

# A sample is taken for a copy if it is nearer to a training image than so many
# of these are to each other.
_COPY = 0.99


class Near(NamedTuple):
  """The training image that is nearest to a sample.

  Attributes:
    score: Cosine of their features.
    share: Part of real images that are not so near to each other.
  """

  row: int
  score: float
  share: float


def picture(memory: sheet.Picture, side: int) -> np.ndarray | None:
  """The image of a memory, as the network's encoder sees it, if it is there."""
  return sheet.load(memory, side)


def nearest(generator: Generator, pixels: np.ndarray) -> list[Near]:
  """Looks up images in a generator's bank; by the features that it is of."""
  bank = generator.source.require_bank()
  scores, rows = generator.search(generator.features([*pixels]), k=1)
  real = context.closeness(bank)
  shares = np.searchsorted(real, scores[:, 0]) / len(real)
  return [
    Near(int(row), float(score), float(share))
    for row, score, share in zip(rows[:, 0], scores[:, 0], shares, strict=True)
  ]


def growing(look: streaming.Look, caption: str = "") -> str:
  """Images while they are made, or what they were when that ended."""
  if look.pixels is None:
    return ""
  state = "unfinished" if look.made is None else "finished"
  cards = [
    pictures.figure(pixels, f"image {number}, {state}", caption, quick=True)
    for number, pixels in zip(look.numbers, look.pixels, strict=True)
  ]
  return f'<div class="gm-grid">{"".join(cards)}</div>'


def ended(
  studio: context.Studio, error: Exception, look: streaming.Look | None
) -> tuple[str, Any]:
  """What is told and shown of work that did not come to its end.

  Args:
    studio: Explains errors.
    error: One of `streaming.TOLD`.
    look: The last one, or None if the work had not begun.

  Returns:
    (status, images): the last previews say that they are unfinished.
  """
  shown: Any = gr.skip() if look is None else growing(look, "unfinished")
  if not isinstance(error, streaming.StoppedError):
    return studio.explain(error), shown
  text = "Stopped before there was an image."
  if look is not None and look.pixels is not None:
    text = f"Stopped at {look.done:.0%}: these images are unfinished."
  return pictures.hint(text, live=True), shown


def status(look: streaming.Look, name: str = "") -> str:
  """A progress bar with words."""
  seconds = f"{look.seconds:.1f} s"
  if look.made is not None:
    count = len(look.made)
    noun = "image" if count == 1 else "images"
    return pictures.bar(1, f"{name}{count} {noun} in {seconds}")
  if look.pixels is None:
    return pictures.bar(
      0, f"{name}{seconds}; settings not used before compile first"
    )
  return pictures.bar(look.done, f"{name}{look.done:.0%}, {seconds}")


def lines(
  made: images_lib.SampledImages,
  generator: Generator,
  near: Sequence[Near] | None = None,
) -> str:
  """A line for each memory: its image, and what was made from it.

  Args:
    made: The images.
    generator: Its bank has the images that `near` are rows of.
    near: Of each image, or None while it is not known.
  """
  catalogue = context.catalogue(generator)
  parts = []
  for line in made.lines:
    label = line.label or "memory"
    memory = pictures.figure(
      sheet.load(line.before, catalogue.side), f"memory: {label}", label,
      kind="gm-memory",
    )  # fmt: skip
    cards = [
      pictures.figure(
        made.pixels[number], f"image {number} from {label}",
        below=_near(catalogue, near[number]) if near else "",
      )
      for number in line.numbers
    ]  # fmt: skip
    parts.append(
      f'<section class="gm-line" aria-label="{html.escape(label)}">{memory}'
      f'<div class="gm-grid">{"".join(cards)}</div></section>'
    )
  return "".join(parts)


def _near(catalogue, near: Near) -> str:
  """The strip below an image."""
  picture = pictures.tag(
    pictures.thumbnail(catalogue.thumbnail(near.row, 36), 36),
    f"nearest training image, row {near.row}",
  )
  copy = near.share >= _COPY
  verdict = "a copy?" if copy else f"nearer than {near.share:.0%} of real pairs"
  kind = ' class="gm-copy"' if copy else ""
  return (
    f'<div class="gm-near">{picture}<span>nearest: row {near.row}<br>'
    f"cosine <b>{near.score:.3f}</b><br><span{kind}>{verdict}</span></span>"
    "</div>"
  )


def pack(made: images_lib.SampledImages, folder: str) -> tuple[str, str]:
  """Writes images to download: a zip of PNG files, and an npz.

  Returns:
    The paths; both have sample.json, and the npz arr_0, uint8 [n h w c].
  """
  directory = pathlib.Path(tempfile.mkdtemp(dir=folder))
  made.save(directory / "images")
  with zipfile.ZipFile(directory / "images.zip", "w") as file:
    for path in sorted((directory / "images").iterdir()):
      file.write(path, f"images/{path.name}")
  record = (directory / "images" / "sample.json").read_text()
  np.savez_compressed(
    directory / "images.npz", arr_0=made.pixels, sample_json=np.array(record)
  )
  shutil.rmtree(directory / "images")
  return str(directory / "images.zip"), str(directory / "images.npz")
