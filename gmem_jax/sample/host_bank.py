"""A bank to draw snippets from and to search, with its source images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from gmem_jax.bank import bank as bank_lib, files as bank_files, lookup
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, row_images
from gmem_jax.sample import sheet


@dataclasses.dataclass(frozen=True, eq=False)
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
    return lookup.place_units(bank_lib.MemoryBank(self.rows))


def load(
  config: sections.Config, argument: str = "config.sample.bank"
) -> HostBank:
  """Reads `sample.bank`, whatever names a bank: see `bank_files.read`.

  Raises:
    ValueError: If it is not a bank, or of another feature encoder; the argument
      that gave it is named.
  """
  path = config.sample.bank
  bank, info = read(argument, path)
  encoder = load_encoders.features_name(config)
  if encoder is not None:
    bank_lib.check_encoder(info, encoder, f"{argument}={path!r}")
  return bank


def read(argument: str, path: str) -> tuple[HostBank, bank_lib.BankInfo]:
  """Reads the bank of an argument, with the first release's frequencies."""
  try:
    stored = bank_files.read(path)
  except ValueError as error:
    raise ValueError(f"{argument}={path!r}: {error}") from None
  find_images = functools.partial(row_images.find, path, stored)
  rows = bank_lib.decode(stored.bank)
  bank = HostBank(rows, stored.counts, dict(stored.origin), find_images)
  return bank, stored.info


def principal(
  features: Float[np.ndarray, "n d"], count: int = 2
) -> Float32[np.ndarray, "n {count}"]:
  """The first principal components of features, as a map of them.

  The sign of each is such that its largest entry is positive.
  """
  centred = np.asarray(features, np.float32)
  centred = centred - centred.mean(axis=0)
  u, s, _ = np.linalg.svd(centred, full_matrices=False)
  components = np.zeros((len(centred), count), np.float32)
  found = (u * s)[:, :count]
  components[:, : found.shape[1]] = found
  largest = np.abs(components).argmax(axis=0)
  sign = np.sign(components[largest, np.arange(count)])
  return components * np.where(sign == 0, 1, sign)
