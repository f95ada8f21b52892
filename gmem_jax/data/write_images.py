"""Images that we write: PNG files, grids with labels, folders of samples.

Shapes: n images, H W pixels, one channel (grey) or three.
"""

import concurrent.futures
import contextlib
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from gmem_jax import progress
from gmem_jax.data import batching
from gmem_jax.files import atomic, paths
from gmem_jax.parallel import lock, processes

# Threads that encode PNG files beside the device; zlib releases the
# interpreter's lock.
THREADS = min(8, os.cpu_count() or 1)
# Settings in sample.json that earlier ones lack, which had these values.
LATER = {"decode_dtype": "float32", "precision": "high"}
# The key beside the settings: on which devices images were made.
MADE_ON = "made_on"
# Width of a contact sheet's labels, in pixels.
LABEL_WIDTH = 160


def save_png(
  path: paths.Path, pixels: UInt8[np.ndarray, "H W channels"]
) -> None:
  """Writes an image, whole or not at all."""
  with atomic.replacing(path) as temporary:
    _image(pixels).save(temporary, format="PNG")


def encode_png(pixels: UInt8[np.ndarray, "H W channels"]) -> bytes:
  """An image as the content of a PNG file."""
  file = io.BytesIO()
  _image(pixels).save(file, format="PNG")
  return file.getvalue()


def _image(pixels: UInt8[np.ndarray, "H W channels"]) -> Image.Image:
  # Pillow knows no axis of one channel.
  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def read_png(path: paths.Path) -> UInt8[np.ndarray, "H W channels"]:
  """Reads what `save_png` wrote."""
  with path.open("rb") as file, Image.open(file) as image:
    pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def make_grid(
  images: UInt8[np.ndarray, "n H W channels"],
  columns: int = 0,
  *,
  scale: int = 1,
  gap: int = 2,
) -> UInt8[np.ndarray, "height width channels"]:
  """Arranges images in rows on a white ground, each pixel `scale` times as big.

  Without a number of columns the grid has as few empty places as possible. The
  gap, in pixels, is between the images and around them.
  """
  columns = columns or best_columns(len(images))
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


def best_columns(count: int) -> int:
  """Columns of a grid that is about square, or wider, with few empty places."""
  square = math.ceil(math.sqrt(count))
  # From a square to one of twice the width; the first of the best is chosen.
  return min(range(square, 2 * square + 1), key=lambda c: -count % c)


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


def differences(path: paths.Path, settings: dict[str, Any]) -> list[str]:
  """In what the settings of a `sample.json` differ, a line each."""
  stored = atomic.check_keys(atomic.read_json(path), {}, str(path))
  stored = {k: v for k, v in LATER.items() if k in settings} | stored
  return atomic.differences(stored, settings, ignored=(MADE_ON,))


@contextlib.contextmanager
def claimed(directory: paths.Path, settings: dict[str, Any]) -> Iterator[None]:
  """Makes a directory these settings', or checks that it already is.

  No other job writes there while the block runs, and what killed ones have left
  is removed. The settings (JSON) are all that the images depend on; on which
  devices they were made is noted beside them.

  Raises:
    ValueError: If another job writes there, or it holds images of other
      settings; lists them.
    OSError: If it cannot be written.
  """
  path = directory / "sample.json"
  made_on = [processes.hardware()]
  with lock.held(directory, "config.sample.output"):
    if path.exists():
      differing = differences(path, settings)
      if differing:
        raise ValueError(
          f"{directory} holds images of other settings:\n"
          + "\n".join(differing)
          + "\nMove it away, or set another sample.output."
        )
      before = atomic.read_json(path).get(MADE_ON, [])
      made_on = [*before, *(each for each in made_on if each not in before)]
      if processes.is_main():
        for leftover in atomic.leftovers(directory):
          leftover.unlink()
    processes.check_shared(directory, "the images' directory")
    if processes.is_main():
      atomic.write_json(path, {**settings, MADE_ON: made_on})
    yield


def png_path(directory: paths.Path, number: int) -> paths.Path:
  """The file of an image."""
  return directory / f"{number:06d}.png"


def write_folder(
  directory: paths.Path,
  count: int,
  batch_size: int,
  make: Callable[[np.ndarray], np.ndarray],
) -> int:
  """Fills a directory with images; those that exist are not made again.

  All processes make them together, and each writes its share of the files.

  Args:
    directory: Receives 000000.png and so on.
    count: Number of images in all, also of those that exist.
    batch_size: Images at a time.
    make: Image numbers -> uint8 [n H W channels].

  Returns:
    How many images were made now.
  """
  directory.mkdir(parents=True, exist_ok=True)
  missing = _missing(directory, count)
  bar = progress.Progress("sample", count - len(missing), count, unit="image")
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    writing: list[concurrent.futures.Future[None]] = []
    for start in range(0, len(missing), batch_size):
      part = missing[start : start + batch_size]
      pixels = make(part)
      # The files of the batch before were written while this one was made. To
      # wait for them bounds the images in memory to two batches.
      _wait(writing)
      writing = [
        pool.submit(save_png, png_path(directory, i), image)
        for i, image in zip(part.tolist(), pixels, strict=True)
        if i % jax.process_count() == jax.process_index()
      ]
      bar.update(count - len(missing) + start + len(part))
    _wait(writing)
  bar.close()
  # Process 0 reads all files for the contact sheet.
  processes.wait_for_all("images")
  return len(missing)


def _wait(writing: Iterable[concurrent.futures.Future[None]]) -> None:
  """Waits until files are written; raises what went wrong."""
  for future in writing:
    future.result()


def _missing(directory: paths.Path, count: int) -> np.ndarray:
  """Numbers of the images without a file.

  As process 0 sees them: a shared file system may show others less, and all
  must make the same images.
  """
  stored = np.array([png_path(directory, i).exists() for i in range(count)])
  return np.flatnonzero(~processes.agree(stored)).astype(np.int32)


def adm_file(directory: paths.Path, count: int) -> paths.Path:
  """Where `write_adm` puts a number of images."""
  return directory / f"samples_{count}.npz"


def write_adm(directory: paths.Path, count: int) -> None:
  """Packs the first images of a directory for the ADM evaluation suite.

  The result is `adm_file`, with arr_0, uint8 [count H W 3]; grey images become
  RGB.
  """
  height, width, _ = read_png(png_path(directory, 0)).shape
  header = {
    "descr": "|u1",
    "fortran_order": False,
    "shape": (count, height, width, 3),
  }
  # One by one: np.savez would hold all in memory, 10 GB for 50,000 of 256 px.
  with (
    concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
    atomic.replacing(adm_file(directory, count)) as temporary,
    zipfile.ZipFile(temporary, "w") as archive,
    archive.open("arr_0.npy", "w", force_zip64=True) as array,
  ):
    np.lib.format.write_array_header_1_0(array, header)
    files = (png_path(directory, i) for i in range(count))
    for pixels in batching.read_ahead(pool, read_png, files, 4 * THREADS):
      array.write(np.broadcast_to(pixels, (height, width, 3)).tobytes())


def remove_pngs(directory: paths.Path, count: int) -> None:
  """Removes the first images of a directory, once they are packed."""
  for i in range(count):
    png_path(directory, i).unlink(missing_ok=True)
