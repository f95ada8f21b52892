"""Contact sheets: queries and their nearest memories as images.

Shapes: q queries, k neighbours.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from gmem_jax.data import image_files, images

# Side of an image on the sheet, in pixels.
SIDE = 96


def draw(
  queries: Sequence[pathlib.Path | None],
  neighbours: Sequence[Sequence[pathlib.Path | None]],
  labels: Sequence[str],
) -> tuple[np.ndarray, int]:
  """Draws a sheet: in each row a query and its neighbours, best first.

  Args:
    queries: q image files; None where there is none.
    neighbours: q times k image files.
    labels: q names of the queries.

  Returns:
    (uint8 [H, W, 3], how many files could not be read; their places are white).
  """
  missing = 0
  tiles = []
  for query, others in zip(queries, neighbours, strict=True):
    for path in (query, *others):
      tile = np.full((SIDE, SIDE, 3), 255, np.uint8)
      if path is not None:
        try:
          tile = image_files.load(path, 3, SIDE)
        except image_files.BadImageError:
          missing += 1
      tiles.append(tile)
  grid = images.make_grid(np.stack(tiles), 1 + len(neighbours[0]), gap=4)
  return images.label_rows(grid, labels), missing
