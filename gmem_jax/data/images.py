"""PNG files, and grids of images with labels.

Shapes: n images, H W pixels, one channel (grey) or three.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from gmem_jax.files import atomic

# Width of a contact sheet's labels, in pixels.
LABEL_WIDTH = 160


def save_png(
  path: pathlib.Path, pixels: UInt8[np.ndarray, "H W channels"]
) -> None:
  """Writes an image, whole or not at all."""
  # Pillow knows no axis of one channel.
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  with atomic.replacing(path) as temporary:
    image.save(temporary, format="PNG")


def read_png(path: pathlib.Path) -> UInt8[np.ndarray, "H W channels"]:
  """Reads what `save_png` wrote."""
  with Image.open(path) as image:
    pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def make_grid(
  images: UInt8[np.ndarray, "n H W channels"],
  columns: int,
  *,
  scale: int = 1,
  gap: int = 2,
) -> UInt8[np.ndarray, "height width channels"]:
  """Arranges images in rows on a white ground, each pixel `scale` times as big.

  The gap, in pixels, is between the images and around them.
  """
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  n, h, w, channels = images.shape
  rows = -(-n // columns)
  grid = np.full(
    (rows * (h + gap) + gap, columns * (w + gap) + gap, channels),
    255,
    np.uint8,
  )
  for i, image in enumerate(images):
    y, x = i // columns * (h + gap) + gap, i % columns * (w + gap) + gap
    grid[y : y + h, x : x + w] = image
  return grid


def label_rows(
  grid: UInt8[np.ndarray, "H W channels"], labels: Sequence[str]
) -> UInt8[np.ndarray, "H width channels"]:
  """Writes a label to the left of each row of a grid; one for each row."""
  column = Image.new("L", (LABEL_WIDTH, len(grid)), 255)
  draw, font = ImageDraw.Draw(column), ImageFont.load_default()
  for i, label in enumerate(labels):
    # File names may be in any script, Pillow's own font has Latin-1 alone.
    text = label.encode("latin-1", "replace").decode("latin-1")
    draw.text((4, i * len(grid) // len(labels) + 4), text, 0, font)
  pixels = np.asarray(column)[..., None].repeat(grid.shape[-1], axis=-1)
  return np.concatenate([pixels, grid], axis=1)
