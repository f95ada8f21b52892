"""Images that were made, with what they were made from."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gmem_jax.data import write_images
from gmem_jax.files import paths
from gmem_jax.sample import sheet


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SampledImages:
  """Images of a generator; at the end of a notebook's cell, a picture.

  Attributes:
    pixels: uint8 [n h w 3], or [n h w 1] for grey images.
    lines: Which memories they were made from: lines of the contact sheet.
    info: All that they depend on; JSON.
  """

  pixels: UInt8[np.ndarray, "n h w channels"]
  lines: Sequence[sheet.Line]
  info: dict[str, Any]

  def __repr__(self) -> str:
    """Number and size, and no pixels."""
    count, height, width, _ = self.pixels.shape
    return f"SampledImages({count} of {height} x {width} pixels)"

  def __len__(self) -> int:
    """Number of images."""
    return len(self.pixels)

  @functools.cached_property
  def picture(self) -> UInt8[np.ndarray, "H W channels"]:
    """The contact sheet: memories, as far as they have an image, and images."""
    return sheet.draw(lambda number: self.pixels[number], self.lines)

  def save(self, directory: str | os.PathLike) -> None:
    """Writes what `--mode=sample` does: PNG files, grid.png, sample.json.

    Args:
      directory: Made if need be; files that are there already stay.

    Raises:
      ValueError: If it holds images of other settings, or another process
        writes there.
    """
    path = paths.of(os.path.expanduser(directory))
    with write_images.claimed(path, self.info):
      write_images.write_folder(
        path, len(self), len(self), lambda numbers: self.pixels[numbers]
      )
      write_images.save_png(path / "grid.png", self.picture)

  def _repr_png_(self) -> bytes:
    """The contact sheet, for notebooks."""
    return write_images.encode_png(self.picture)
