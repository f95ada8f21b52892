"""Images on disk: numbered PNG files, contact sheets, one file for ADM."""

import concurrent.futures
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmem_jax import progress
from gmem_jax.files import atomic
from gmem_jax.parallel import processes

# Threads that encode PNG files beside the device; zlib lets go of the
# interpreter.
THREADS = min(8, os.cpu_count() or 1)
# Width of a contact sheet's labels, in pixels.
LABEL_WIDTH = 160


def save_png(path: pathlib.Path, pixels: np.ndarray) -> None:
  """Writes a picture, whole or not at all.

  Args:
    path: The PNG file.
    pixels: uint8 [H, W, channels], one channel or three.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
    temporary, format="PNG"
  )
  temporary.replace(path)


def read_png(path: pathlib.Path) -> np.ndarray:
  """Reads a picture.

  Args:
    path: The PNG file.

  Returns:
    uint8 [H, W, channels].
  """
  with Image.open(path) as image:
    pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def make_grid(
  images: np.ndarray, columns: int, *, scale: int = 1, gap: int = 2
) -> np.ndarray:
  """Arranges images in rows on a white ground.

  Args:
    images: uint8 [n H W channels].
    columns: Images a row.
    scale: Whole-number enlargement of each pixel.
    gap: Pixels between images.

  Returns:
    uint8 [H', W', channels].
  """
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
    count: Number of images in all.
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
      # The files of the batch before were written while this one was made.
      _wait(writing)
      writing = [
        pool.submit(save_png, directory / f"{i:06d}.png", image)
        for i, image in zip(part, pixels, strict=True)
        if i % jax.process_count() == jax.process_index()
      ]
      bar.update(count - len(missing) + start + len(part))
    _wait(writing)
  bar.close()
  processes.wait_for_all("images")
  return len(missing)


def _wait(writing: Sequence[concurrent.futures.Future[None]]) -> None:
  """Waits until files are written; raises what went wrong."""
  for future in writing:
    future.result()


def _missing(directory: pathlib.Path, count: int) -> np.ndarray:
  """Numbers of the images that are not there yet, as process 0 sees them."""
  there = np.array(
    [(directory / f"{i:06d}.png").exists() for i in range(count)]
  )
  return np.flatnonzero(~processes.agree(there)).astype(np.int32)


def claim_directory(directory: pathlib.Path, settings: dict[str, Any]) -> None:
  """Makes a directory these settings', or checks that it already is.

  Args:
    directory: Will hold the images.
    settings: All that the images depend on; JSON.

  Raises:
    ValueError: If it holds images of other settings; lists them.
  """
  path = directory / "sample.json"
  if path.exists():
    theirs = json.loads(path.read_text())
    ours = json.loads(json.dumps(settings))
    differing = [
      f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if differing:
      raise ValueError(
        f"{directory} holds images of other settings:\n"
        + "\n".join(differing)
        + "\nMove it away, or set sample.output or another sample.seed."
      )
  processes.check_shared(directory, "the images' directory")
  if processes.is_main():
    atomic.write_json(path, settings)


def write_grid(
  directory: pathlib.Path, count: int, columns: int, labels: Sequence[str] = ()
) -> None:
  """Shows the first images of a directory in one picture, grid.png.

  Args:
    directory: Holds 000000.png and so on.
    count: How many to show.
    columns: Images a row.
    labels: What stands on the left of each row; none by default.
  """
  images = np.stack(
    [read_png(directory / f"{i:06d}.png") for i in range(count)]
  )
  scale = max(1, 64 // images.shape[1])
  grid = make_grid(images, columns, scale=scale)
  if labels:
    grid = label_rows(grid, labels)
  save_png(directory / "grid.png", grid)


def label_rows(grid: np.ndarray, labels: Sequence[str]) -> np.ndarray:
  """Writes a label to the left of each row of a grid.

  Args:
    grid: uint8 [H, W, channels], of rows of equal height.
    labels: One for each row.

  Returns:
    uint8 [H, W', channels].
  """
  column = Image.new("L", (LABEL_WIDTH, len(grid)), 255)
  draw, font = ImageDraw.Draw(column), ImageFont.load_default()
  for i, label in enumerate(labels):
    text = label.encode("latin-1", "replace").decode("latin-1")
    draw.text((4, i * len(grid) // len(labels) + 4), text, 0, font)
  pixels = np.asarray(column)[..., None].repeat(grid.shape[-1], axis=-1)
  return np.concatenate([pixels, grid], axis=1)


def adm_file(directory: pathlib.Path, count: int) -> pathlib.Path:
  """Where `write_adm` puts a number of images."""
  return directory / f"samples_{count}.npz"


def write_adm(directory: pathlib.Path, count: int) -> pathlib.Path:
  """Packs the first images of a directory for the ADM evaluation suite.

  The images stream into the file one by one, so that 50,000 of them need no
  memory; grey ones become RGB.

  Args:
    directory: Holds 000000.png and so on.
    count: How many.

  Returns:
    The .npz file: arr_0, uint8 [count H W 3].
  """
  path = adm_file(directory, count)
  temporary = path.with_name(f".{path.name}.tmp")
  height, width, _ = read_png(directory / "000000.png").shape
  header = {
    "descr": "|u1",
    "fortran_order": False,
    "shape": (count, height, width, 3),
  }
  with (
    zipfile.ZipFile(temporary, "w") as archive,
    archive.open("arr_0.npy", "w", force_zip64=True) as array,
  ):
    np.lib.format.write_array_header_1_0(array, header)
    for i in range(count):
      pixels = read_png(directory / f"{i:06d}.png")
      array.write(np.broadcast_to(pixels, (height, width, 3)).tobytes())
  temporary.replace(path)
  return path


def remove_pngs(directory: pathlib.Path, count: int) -> None:
  """Removes the first images of a directory, once they are packed.

  Args:
    directory: Holds 000000.png and so on.
    count: How many.
  """
  for i in range(count):
    (directory / f"{i:06d}.png").unlink(missing_ok=True)
