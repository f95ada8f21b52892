"""A bank to draw snippets from and to search, with its source images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.data import row_images
from gmem_jax.sample import sheet


@dataclasses.dataclass(frozen=True)
class HostBank:
  """A bank to draw snippets from; on the host, as few rows are read.

  Attributes:
    rows: float32 [m, d].
    frequencies: How often each row occurred [m], or None.
    info: Where it comes from; JSON.
    find_images: Finds its source images.
  """

  rows: np.ndarray
  frequencies: np.ndarray | None
  info: dict[str, Any]
  find_images: Callable[[], row_images.RowImages | None]

  def picture(self, row: int) -> sheet.Picture:
    """The source image of a row."""
    return lambda side: self.images and self.images.load(row, side)

  @functools.cached_property
  def images(self) -> row_images.RowImages | None:
    """Its source images, or None where they are not known."""
    return self.find_images()

  @functools.cached_property
  def units(self) -> bank_lib.MemoryBank:
    """Its rows on a device, of unit length, for searches."""
    return lookup.unit(jax.device_put(bank_lib.MemoryBank(self.rows)))
