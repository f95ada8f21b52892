"""Pictures that visitors bring: bounded, and read by the one image reader."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gmem_jax.data import decode_image, write_images

# Of a file; and pictures at a time.
MAX_BYTES, MAX_FILES = 16 << 20, 16
# Of all files that are kept at a time; what is older goes, see `app`.
MAX_KEPT = 1 << 30


class Upload(NamedTuple):
  """A picture that can be used.

  Attributes:
    path: Its file, among those that are deleted at the end.
    name: What the visitor calls it.
  """

  path: str
  name: str


def restrict_formats() -> None:
  """Makes Pillow forget all formats but those of the image reader.

  Gradio opens drawn pictures by itself; some readers of Pillow start programs.
  This is for the whole process, which the studio has for itself.
  """
  Image.init()
  for name in set(Image.OPEN) - set(decode_image.FORMATS):
    del Image.OPEN[name]


def too_large(name: str) -> str:
  """What is said of a file of more than `MAX_BYTES`."""
  return f"{name}: more than {MAX_BYTES >> 20} MB"


def too_many(count: int) -> str:
  """What is said of more than `MAX_FILES` pictures."""
  return f"{count} pictures: at most {MAX_FILES} at a time"


def check(files: Sequence[str] | None) -> list[Upload]:
  """Reads uploaded files.

  Raises:
    ValueError: If there are too many, or naming the first that is no picture.
  """
  files = list(files or ())
  if len(files) > MAX_FILES:
    raise ValueError(too_many(len(files)))
  found = []
  for file in files:
    name = pathlib.Path(file).name
    try:
      if os.path.getsize(file) > MAX_BYTES:
        raise ValueError(too_large(name))
      decode_image.read(pathlib.Path(file), decode_image.MIN_SIDE)
    except (decode_image.BadImageError, OSError) as error:
      reason = "it is gone: upload it again"
      if isinstance(error, decode_image.BadImageError):
        reason = str(error)
      raise ValueError(f"{name}: {reason}") from None
    found.append(Upload(file, name))
  return found


def keep_drawing(drawn: dict[str, Any] | None, folder: str) -> str:
  """Writes a drawn picture to a file, and returns its path.

  Args:
    drawn: What Gradio's editor gives: "composite" is uint8 [h w 3 or 4].
    folder: Where files are deleted at the end.

  Raises:
    ValueError: If nothing was drawn.
  """
  pixels = None if drawn is None else drawn.get("composite")
  if pixels is None or not len(pixels) or np.ptp(pixels[..., :3]) == 0:
    raise ValueError("nothing is drawn")
  pixels = np.asarray(pixels, np.uint8)
  if pixels.shape[2] == 4:
    # On white, which is the paper.
    alpha = pixels[..., 3:] / 255
    pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha))
  directory = pathlib.Path(tempfile.mkdtemp(dir=folder))
  write_images.save_png(directory / "drawing.png", pixels.astype(np.uint8))
  return str(directory / "drawing.png")


def size_of(folder: str) -> int:
  """Bytes of all files below a folder."""
  total = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      try:
        total += os.lstat(os.path.join(parent, name)).st_size
      except OSError:  # Deleted meanwhile.
        continue
  return total


@contextlib.contextmanager
def folder() -> Iterator[str]:
  """A folder for uploads and downloads, deleted at the end."""
  with tempfile.TemporaryDirectory(prefix="gmem_jax_studio_") as path:
    # Gradio keeps and serves files here alone; it reads this when it is
    # imported, and later.
    os.environ["GRADIO_TEMP_DIR"] = path
    pathlib.Path(path).chmod(0o700)
    yield path
