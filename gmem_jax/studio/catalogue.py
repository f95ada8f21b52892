"""A bank as it is looked through: pages, classes, names, a map.

Shapes: m bank rows, n rows of a page or a map.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from gmem_jax.sample import host_bank, sheet
from gmem_jax.studio import pictures

# Rows that the map's directions are computed from; more change nothing that one
# could see.
_MAPPED = 4096
# Cells of the map along a side, and pixels of one.
CELLS, CELL = 24, 32
# Ways to draw the map: the second where umap-learn is installed.
COMPONENTS, UMAP = "principal components", "UMAP"
# Rows that UMAP takes for neighbours: its default.
_NEIGHBOURS = 15


def ways() -> list[str]:
  """The ways to draw the map that this machine has."""
  known = importlib.util.find_spec("umap") is not None
  return [COMPONENTS, UMAP] if known else [COMPONENTS]


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
  """Reads a bank page by page; nothing here reads all of its images.

  Attributes:
    side: Pixels of an image as the network's encoder sees it.
  """

  bank: host_bank.HostBank
  side: int

  def __len__(self) -> int:
    return len(self.bank.rows)

  @functools.cached_property
  def names(self) -> Sequence[str]:
    """File of each row, or ()."""
    return self.bank.images.names if self.bank.images else ()

  @functools.cached_property
  def _classes(self) -> tuple[list[str], np.ndarray]:
    """The classes, and the number of each row's [m]."""
    found = self.bank.images.classes if self.bank.images else ()
    if not len(found):
      return [], np.zeros(len(self), int)
    names, numbers = np.unique(np.asarray(found), return_inverse=True)
    return names.tolist(), numbers

  @property
  def classes(self) -> list[str]:
    """The classes of rows; [] where none are known."""
    return self._classes[0]

  def class_of(self, row: int) -> str:
    """The class of a row, or ""."""
    names, numbers = self._classes
    return names[numbers[row]] if names else ""

  def name_of(self, row: int) -> str:
    """The file of a row, or ""; of one from elsewhere without its folder."""
    name = self.names[row] if self.names else ""
    # Where files are on this machine is nobody's business.
    return pathlib.Path(name).name if pathlib.Path(name).is_absolute() else name

  def find(self, group: str = "", text: str = "") -> Int[np.ndarray, " n"]:
    """The rows of a class whose file names have a text in them."""
    rows = np.arange(len(self))
    classes, numbers = self._classes
    if group:
      if group not in classes:
        return rows[:0]
      rows = np.flatnonzero(numbers == classes.index(group))
    if text:
      wanted = text.casefold()
      rows = [
        row for row in rows.tolist() if wanted in self.name_of(row).casefold()
      ]
    return np.asarray(rows, int)

  def picture(self, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The image of a row, if it is known and still there."""
    return sheet.load(self.bank.picture(int(row)), self.side)

  def thumbnail(self, row: int, side: int) -> UInt8[np.ndarray, "h w 3"]:
    """A small image of a row; grey where there is none."""
    pixels = self.picture(row)
    if pixels is None:
      return np.full((side, side, 3), 208, np.uint8)
    return pictures.thumbnail(pixels, side)

  def label(self, row: int) -> str:
    """A row in a few words."""
    what = self.name_of(row) or self.class_of(row)
    return f"row {row} · {what}" if what else f"row {row}"

  @functools.cached_property
  def _mapped(self) -> tuple[Int[np.ndarray, " n"], dict[str, np.ndarray]]:
    """Rows spread evenly over the bank, and their known places by way."""
    size = len(self)
    rows = np.linspace(0, size - 1, min(size, _MAPPED)).astype(int)
    return np.unique(rows), {}

  def places(
    self, way: str = COMPONENTS
  ) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n 2"]]:
    """Rows spread evenly over the bank, and where they are on its map.

    Raises:
      ValueError: If it has too few rows for UMAP.
    """
    rows, known = self._mapped
    if way not in known:
      place = _umap if way == UMAP else host_bank.principal
      known[way] = place(self.bank.rows[rows])
    return rows, known[way]

  def draw_map(
    self,
    way: str = COMPONENTS,
    on_row: Callable[[float], object] = lambda done: None,
  ) -> tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "c c"]]:
    """Draws the map: in each cell the image that is nearest to its middle.

    Args:
      way: One of `ways`.
      on_row: Is told the part that is done.

    Returns:
      The picture, and the row in each cell; -1 in empty ones.

    Raises:
      ValueError: See `places`.
    """
    rows, places = self.places(way)
    low, high = places.min(axis=0), places.max(axis=0)
    span = high - low
    at = np.where(span > 0, (places - low) / np.maximum(span, 1e-12), 0.5)
    at = at * (CELLS - 1)
    cells = np.rint(at).astype(int)
    away = np.square(at - cells).sum(axis=1)
    taken = np.full((CELLS, CELLS), -1)
    canvas = np.full((CELLS * CELL, CELLS * CELL, 3), 255, np.uint8)
    # The nearest last, so that it stays.
    for i in np.argsort(-away):
      taken[cells[i, 1], cells[i, 0]] = rows[i]
    found = np.argwhere(taken >= 0)
    for number, (y, x) in enumerate(found):
      tile = self.thumbnail(int(taken[y, x]), CELL - 2)
      height, width = tile.shape[:2]
      top, left = y * CELL + 1, x * CELL + 1
      canvas[top : top + height, left : left + width] = tile
      if not number % CELLS:
        on_row(number / len(found))
    return canvas, taken


def _umap(features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
  """Places that keep near what is near by cosine.

  L. McInnes, J. Healy, J. Melville: UMAP, 2018, arXiv:1802.03426.
  """
  if len(features) <= _NEIGHBOURS:
    raise ValueError(f"UMAP: more than {_NEIGHBOURS} rows are needed")
  import umap

  # With a seed it runs in one thread, and gives the same map again.
  mapper = umap.UMAP(
    metric="cosine", n_neighbors=_NEIGHBOURS, random_state=0, n_jobs=1
  )
  return np.asarray(mapper.fit_transform(features), np.float32)


def page(
  rows: Int[np.ndarray, " n"], number: int, size: int
) -> tuple[Int[np.ndarray, " k"], int, int]:
  """A page of rows.

  Args:
    rows: All of them.
    number: From 1; one that is not there becomes the nearest that is.
    size: Rows of a page.

  Returns:
    (rows of the page, its number, number of pages).
  """
  pages = max(1, -(-len(rows) // size))
  number = min(max(1, number), pages)
  return rows[(number - 1) * size : number * size], number, pages
