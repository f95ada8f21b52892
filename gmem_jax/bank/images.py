"""The source images of a bank's rows: their names, beside the rows on disk.

Shapes: m bank rows.
"""

import dataclasses
import pathlib

from gmem_jax.files import atomic, paths

FILE = "images.json"
# Bytes of the file, besides those of each name.
_LARGEST, _NAME = 1 << 20, 256


@dataclasses.dataclass(frozen=True)
class SourceImages:
  """The source images of a bank's rows.

  Attributes:
    folder: Where they were when the bank was built.
    names: m paths, relative to the folder or absolute; "" for a row without an
      image.
  """

  folder: str
  names: tuple[str, ...]

  def path(self, row: int, folder: str | None = None) -> pathlib.Path | None:
    """The file of a row's image, or None; `folder` is where images are now."""
    if not self.names[row]:
      return None
    return pathlib.Path(folder or self.folder) / self.names[row]


def write(directory: paths.Path, images: SourceImages) -> None:
  """Writes the names to the directory that has the rows."""
  atomic.write_json(directory / FILE, dataclasses.asdict(images))


def read(directory: paths.Path, size: int) -> SourceImages | None:
  """Reads the names of `size` rows, if the directory has any.

  Raises:
    ValueError: If they are damaged, or of another number of rows.
  """
  path = directory / FILE
  if not path.exists():
    return None
  value = atomic.read_json(
    path, {"folder": str, "names": list}, largest=_LARGEST + _NAME * size
  )
  if not all(isinstance(name, str) for name in value["names"]):
    raise ValueError(f"{path} is damaged: not all of its names are text")
  images = SourceImages(value["folder"], tuple(value["names"]))
  if len(images.names) != size:
    raise ValueError(f"{FILE} names {len(images.names)} images for {size} rows")
  return images
