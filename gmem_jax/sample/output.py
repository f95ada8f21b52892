"""A directory of samples: numbered PNG files, a contact sheet, ADM's file."""

import concurrent.futures
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gmem_jax import progress
from gmem_jax.data import images as images_lib
from gmem_jax.files import atomic
from gmem_jax.parallel import processes

# Threads that encode PNG files beside the device; zlib releases the
# interpreter's lock.
THREADS = min(8, os.cpu_count() or 1)


def claim(directory: pathlib.Path, settings: dict[str, Any]) -> None:
  """Makes a directory these settings', or checks that it already is.

  The settings (JSON) are all that the images depend on.

  Raises:
    ValueError: If it holds images of other settings; lists them.
  """
  path = directory / "sample.json"
  if path.exists():
    differing = atomic.differences(atomic.read_json(path), settings)
    if differing:
      raise ValueError(
        f"{directory} holds images of other settings:\n"
        + "\n".join(differing)
        + "\nMove it away, or set sample.output or another sample.seed."
      )
  processes.check_shared(directory, "the images' directory")
  if processes.is_main():
    atomic.write_json(path, settings)


def png_path(directory: pathlib.Path, number: int) -> pathlib.Path:
  """The file of an image."""
  return directory / f"{number:06d}.png"


def write_images(
  directory: pathlib.Path,
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
        pool.submit(images_lib.save_png, png_path(directory, i), image)
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


def _missing(directory: pathlib.Path, count: int) -> np.ndarray:
  """Numbers of the images without a file.

  As process 0 sees them: a shared file system may show others less, and all
  must make the same images.
  """
  stored = np.array([png_path(directory, i).exists() for i in range(count)])
  return np.flatnonzero(~processes.agree(stored)).astype(np.int32)


def write_grid(
  directory: pathlib.Path,
  shown: int,
  per_row: int = 1,
  labels: Sequence[str] = (),
) -> None:
  """Shows the first images of a directory in one picture, grid.png.

  Args:
    directory: Holds 000000.png and so on.
    shown: How many to show, at most.
    per_row: With labels, the images of a row; without, the grid is square.
    labels: Of the rows.
  """
  columns = math.ceil(math.sqrt(shown))
  if labels:
    rows = max(shown // per_row, 1)
    shown, columns, labels = rows * per_row, per_row, labels[:rows]
  images = np.stack(
    [images_lib.read_png(png_path(directory, i)) for i in range(shown)]
  )
  scale = max(1, 64 // images.shape[1])  # Digits of 8 pixels are enlarged.
  grid = images_lib.make_grid(images, columns, scale=scale)
  if labels:
    grid = images_lib.label_rows(grid, labels)
  images_lib.save_png(directory / "grid.png", grid)


def adm_file(directory: pathlib.Path, count: int) -> pathlib.Path:
  """Where `write_adm` puts a number of images."""
  return directory / f"samples_{count}.npz"


def write_adm(directory: pathlib.Path, count: int) -> None:
  """Packs the first images of a directory for the ADM evaluation suite.

  The result is `adm_file`, with arr_0, uint8 [count H W 3]; grey images become
  RGB.
  """
  height, width, _ = images_lib.read_png(png_path(directory, 0)).shape
  header = {
    "descr": "|u1",
    "fortran_order": False,
    "shape": (count, height, width, 3),
  }
  # One by one: np.savez would hold all in memory, 10 GB for 50,000 of 256 px.
  with (
    atomic.replacing(adm_file(directory, count)) as temporary,
    zipfile.ZipFile(temporary, "w") as archive,
    archive.open("arr_0.npy", "w", force_zip64=True) as array,
  ):
    np.lib.format.write_array_header_1_0(array, header)
    for i in range(count):
      pixels = images_lib.read_png(png_path(directory, i))
      array.write(np.broadcast_to(pixels, (height, width, 3)).tobytes())


def remove_pngs(directory: pathlib.Path, count: int) -> None:
  """Removes the first images of a directory, once they are packed."""
  for i in range(count):
    png_path(directory, i).unlink(missing_ok=True)
