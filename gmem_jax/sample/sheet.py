"""The contact sheet: samples beside the memories that they are made from.

Shapes: l lines, n samples in a line, H W pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from gmem_jax.data import decode_image, write_images
from gmem_jax.files import paths

# In pixels: a picture's side at least, and about the sides of a small sheet.
PICTURE, WIDTH, HEIGHT = 64, 512, 1024
# Between memories and samples, besides the gaps around each.
GAP = 8

# Side in pixels -> the image of a memory, uint8 [side side 3]; None if it has
# none. Raises BadImageError, ValueError or OSError if it is gone.
Picture = Callable[[int], np.ndarray | None]


def no_picture(side: int) -> None:
  """The picture of a memory without an image."""
  del side


def load(picture: Picture, side: int) -> np.ndarray | None:
  """The image of a memory; None also where it is gone: memories outlive it."""
  try:
    return picture(side)
  except (decode_image.BadImageError, ValueError, OSError):
    return None


class Line(NamedTuple):
  """A memory, or two, and what is made from it.

  Attributes:
    numbers: The samples, by image number.
    label: Names the memories; "" to name none.
    before: Picture of the memory; of the first of two.
    after: Picture of the second.
  """

  numbers: Sequence[int]
  label: str = ""
  before: Picture = no_picture
  after: Picture = no_picture


def write(directory: paths.Path, lines: Sequence[Line]) -> None:
  """Writes grid.png into the directory of the samples; see `draw`."""

  def read(number):
    return write_images.read_png(write_images.png_path(directory, number))

  write_images.save_png(directory / "grid.png", draw(read, lines))


def draw(
  read: Callable[[int], np.ndarray], lines: Sequence[Line]
) -> UInt8[np.ndarray, "H W channels"]:
  """Draws the sheet.

  Args:
    read: The number of a sample -> its pixels.
    lines: Of as many samples each. With labels, each is a row of the sheet;
      without, several stand side by side.
  """
  samples = np.stack(
    [[read(number) for number in line.numbers] for line in lines]
  )
  shape, labels = samples.shape[2:], [line.label for line in lines]
  # Each [l n H W channels], with one memory in a line.
  parts = [
    *_pictures([line.before for line in lines], shape),
    samples,
    *_pictures([line.after for line in lines], shape),
  ]
  # Few pictures are enlarged, above all digits of 8 pixels.
  columns = 1 if any(labels) else write_images.best_columns(len(lines))
  width = columns * sum(part.shape[1] for part in parts)
  side = max(PICTURE, min(WIDTH // width, HEIGHT * columns // len(lines)))
  scale = max(1, side // shape[0])
  if any(labels):
    grids = [
      write_images.make_grid(
        part.reshape(-1, *shape), part.shape[1], scale=scale
      )
      for part in parts
    ]
    return write_images.label_rows(_join(grids), labels)
  # A memory touches its sample, and a gap is between the lines.
  tiles = np.concatenate([*np.concatenate(parts, 1).swapaxes(0, 1)], axis=2)
  return write_images.make_grid(tiles, columns, scale=scale)


def draw_row(
  images: UInt8[np.ndarray, "n h w channels"],
) -> UInt8[np.ndarray, "H W channels"]:
  """Draws images side by side, small ones enlarged."""
  scale = max(1, PICTURE // images.shape[1])
  return write_images.make_grid(images, len(images), scale=scale)


def _join(
  grids: Sequence[UInt8[np.ndarray, "H _ channels"]],
) -> UInt8[np.ndarray, "H W channels"]:
  """Grids side by side, with wider gaps between them than inside."""
  apart = np.full_like(grids[0][:, :GAP], 255)
  joined = [part for grid in grids for part in (apart, grid)]
  return np.concatenate(joined[1:], axis=1)


def _pictures(
  pictures: Sequence[Picture], shape: tuple[int, int, int]
) -> list[UInt8[np.ndarray, "l 1 H W channels"]]:
  """Pictures in the shape of samples; nothing if there is none at all."""
  height, _, channels = shape
  tiles, found = np.full((len(pictures), 1, *shape), 255, np.uint8), False
  for tile, picture in zip(tiles, pictures, strict=True):
    pixels = load(picture, height)
    if pixels is not None:
      found = True
      tile[0] = decode_image.to_grey(pixels) if channels == 1 else pixels
  return [tiles] if found else []
