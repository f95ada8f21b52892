"""Which memories of a bank are nearest, and how near real images are."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

from gmem_jax.bank import lookup
from gmem_jax.data import write_images
from gmem_jax.files import atomic, paths
from gmem_jax.sample import host_bank, sheet


class Nearest(NamedTuple):
  """The memories of a bank that are nearest to an image.

  At the end of a notebook's cell, a picture of them, if any has one.

  Attributes:
    rows: Their rows [k], the nearest first.
    scores: Their cosines with the image's feature [k].
    images: Their source images, uint8 [h w 3]; None where there is none.
    names: The files of these, "" where they have none.
  """

  rows: Int[np.ndarray, " k"]
  scores: Float32[np.ndarray, " k"]
  images: list[UInt8[np.ndarray, "h w 3"] | None]
  names: list[str]

  def save(self, path: str | os.PathLike) -> None:
    """Writes their images in a row as a PNG file.

    Raises:
      ValueError: If none has an image.
    """
    if (png := self._repr_png_()) is None:
      raise ValueError("none of the memories has an image")
    where = paths.of(os.path.expanduser(path))
    with atomic.replacing(where) as temporary:
      temporary.write_bytes(png)

  def __repr__(self) -> str:
    """Rows and scores, and no pixels."""
    pairs = zip(self.rows.tolist(), self.scores.tolist(), strict=True)
    return (
      f"Nearest({', '.join(f'{row}: {score:.3f}' for row, score in pairs)})"
    )

  def _repr_png_(self) -> bytes | None:
    """Their images in a row, for notebooks."""
    found = [image for image in self.images if image is not None]
    if not found:
      return None
    white = np.full_like(found[0], 255)
    tiles = [white if image is None else image for image in self.images]
    return write_images.encode_png(sheet.draw_row(np.stack(tiles)))


def closeness(
  bank: host_bank.HostBank, count: int = 256
) -> Float32[np.ndarray, " n"]:
  """How near real images are to each other: what nearness of a sample means.

  Args:
    bank: Of two rows or more.
    count: Rows that are looked up, spread evenly over the bank.

  Returns:
    The cosine of each of these rows with the nearest other row, ascending.
  """
  size = len(bank.rows)
  rows = np.unique(np.linspace(0, size - 1, min(count, size)).astype(int))
  features = np.asarray(bank.rows[rows], np.float32)
  scores, found = lookup.nearest_by_cosine(features, bank.units, 2)
  # The row itself comes first, or after one that is equal to it.
  second = np.where(found[:, 0] == rows, scores[:, 1], scores[:, 0])
  return np.sort(second)
