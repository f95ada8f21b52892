"""The only reader of image files: any file to RGB or grey pixels, cropped.

Data sets from the wild hold every kind of file under every extension. What
Pillow reads is taken as the published code takes it: the extension means
nothing, transparency is dropped, the first frame stands for an animation, and
the orientation that EXIF asks for is applied only where the caller says so.

Two square crops are in use and differ in nearly every pixel: training data,
features and the memory bank come from `center_crop`; the published code reads
external images through `bilinear_crop`. Resampling is Pillow's, to the bit.
"""

import concurrent.futures
import contextlib
import io
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

# Formats by contents, not by extension. Pillow knows forty more; some of their
# readers start programs (EPS starts Ghostscript), so they are never opened.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ANIMATED = ("PNG", "WEBP", "GIF")

# Pixels that an image may claim to have, or may grow to while it is cropped: a
# file of a few kilobytes can ask for gigabytes. Where Pillow begins to warn; so
# many take up to a gigabyte on the way. Of WebP and CMYK, half as many do.
# ImageNet's largest image has 61 million.
MAX_PIXELS = 89_478_485
MAX_COSTLY = MAX_PIXELS // 2
# Rows of large images that become RGB at a time.
_ROWS, _LARGE = 256, 4_000_000
MIN_SIDE = 2
MAX_THREADS = 16
# What is noted of a truncated image, and the marker that it lacks. Of the other
# markers, those that may stand within a scan begin no segment.
FILLED = "truncated: what is missing was filled in"
_JPEG_END = b"\xff\xd9"
_JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")


class BadImageError(Exception):
  """An image cannot be used; the message says why."""


class Decoded(NamedTuple):
  """An image that was read.

  Attributes:
    pixels: RGB.
    note: What is odd about it; "" for nothing.
    rotated: Whether EXIF asks to turn or mirror it, which was not done.
  """

  pixels: UInt8[np.ndarray, "h w 3"]
  note: str
  rotated: bool


def read(
  file: pathlib.Path | io.BytesIO,
  size: int | None = None,
  *,
  upright: bool = False,
  fill: bool = False,
) -> Decoded:
  """Reads an image as it is.

  Args:
    file: A file, or its contents.
    size: Side in pixels of the square that will be cut from it, to refuse
      images that cannot give one; None to accept any size.
    upright: Turn the image as its EXIF orientation says. Data sets are read
      without, as published.
    fill: Take a JPEG that ends too soon: what is missing is grey, or coarse if
      it is progressive.

  Raises:
    BadImageError: If it is damaged, no image, or of an impossible size.
  """
  try:
    return _decode(file, size, FORMATS, upright)
  except BadImageError:
    raise
  # Damage shows as anything from OSError to SyntaxError or MemoryError.
  except Exception as error:
    reason = _reason(error)
  filled = _fill(file, size, upright) if fill else None
  if filled is None:
    raise BadImageError(reason)
  return filled


def _decode(
  file: pathlib.Path | io.BytesIO,
  size: int | None,
  formats: tuple[str, ...],
  upright: bool,
) -> Decoded:
  with Image.open(file, formats=formats) as image:
    # The header is enough to refuse a bomb: no pixel is decoded yet.
    costly = image.format == "WEBP" or image.mode == "CMYK"
    _check_size(image.size, size, MAX_COSTLY if costly else MAX_PIXELS)
    note = ""
    if image.format in ANIMATED and getattr(image, "is_animated", False):
      note = "animated: its first frame was taken"
    rotated = _is_rotated(image)
    if rotated and upright:
      ImageOps.exif_transpose(image, in_place=True)
      return Decoded(_to_rgb(image), note, False)
    return Decoded(_to_rgb(image), note, rotated)


def _fill(
  file: pathlib.Path | io.BytesIO, size: int | None, upright: bool
) -> Decoded | None:
  """Reads a truncated JPEG, or gives None if it is something else."""
  data = file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
  # Libjpeg makes up for what is missing before an end marker. So does Pillow
  # under LOAD_TRUNCATED_IMAGES, but that is of the whole process, and gives a
  # black image where the tables of a scan are cut: here they are left out.
  segments = [match.start() for match in _JPEG_SEGMENT.finditer(data)]
  for end in (len(data), *segments[-1:]):
    with contextlib.suppress(Exception):
      whole = io.BytesIO(data[:end] + _JPEG_END)
      found = _decode(whole, size, ("JPEG",), upright)
      return found._replace(note=FILLED)
  return None


def _is_rotated(image: Image.Image) -> bool:
  """Whether EXIF asks for another orientation than the pixels have."""
  try:
    return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
  # Broken EXIF, of which Pillow raises anything, is no reason to lose an image.
  except Exception:
    return False


def format_of(file: pathlib.Path) -> str:
  """The format of an image, by its contents: one of `FORMATS`.

  Raises:
    BadImageError: If it is no image.
  """
  try:
    with Image.open(file, formats=FORMATS) as image:
      return str(image.format)
  except Exception as error:
    raise BadImageError(_reason(error)) from None


def center_crop(
  image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Scales an image until its short side is `size` and cuts out the centre.

  While the short side is at least twice `size`, both sides are halved with a
  box filter; a bicubic filter does the rest, also for images that are too
  small.

  Returns:
    The crop. An odd pixel left over goes below or to the right of it.

  Raises:
    ValueError: If `size` or a side of the image is less than 1.

  Source: Dhariwal and Nichol, arXiv 2105.05233 (the data loading published
    with it, since then common to diffusion models on ImageNet).
  """
  _check_crop(image, size)
  scaled = Image.fromarray(image)
  while min(scaled.size) >= 2 * size:
    width, height = scaled.size
    scaled = scaled.resize((width // 2, height // 2), Image.Resampling.BOX)
  scale = size / min(scaled.size)
  width, height = (round(side * scale) for side in scaled.size)
  scaled = scaled.resize((width, height), Image.Resampling.BICUBIC)
  top, left = (height - size) // 2, (width - size) // 2
  return np.array(scaled)[top : top + size, left : left + size]


def bilinear_crop(
  image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Crops as `center_crop` does, after one antialiased bilinear resize.

  Returns:
    The crop. Half an odd pixel left over is rounded to the even offset.

  Raises:
    ValueError: If `size` or a side of the image is less than 1.

  Source: torchvision's Resize followed by its CenterCrop, with which the
    published code of GMem reads external images.
  """
  _check_crop(image, size)
  height, width = image.shape[:2]
  short = min(height, width)
  # torchvision truncates the long side; `center_crop` rounds it.
  height, width = size * height // short, size * width // short
  scaled = Image.fromarray(image).resize(
    (width, height), Image.Resampling.BILINEAR
  )
  # Python rounds halves to even, as torchvision does.
  top, left = round((height - size) / 2), round((width - size) / 2)
  return np.array(scaled)[top : top + size, left : left + size]


def to_grey(
  image: UInt8[np.ndarray, "h w 3"],
) -> UInt8[np.ndarray, "h w 1"]:
  """Converts to grey by Pillow's weights (ITU-R 601)."""
  return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def load(
  file: pathlib.Path | io.BytesIO,
  channels: int,
  size: int | None = None,
  crop: Callable[[np.ndarray, int], np.ndarray] = center_crop,
  *,
  upright: bool = False,
  fill: bool = False,
) -> UInt8[np.ndarray, "h w {channels}"]:
  """Reads an image as networks take it.

  Args:
    file: Of one of `FORMATS`, by its contents, not by its name; or these
      contents.
    channels: 3 for RGB, 1 for grey.
    size: Side in pixels of the square to cut from it; None to leave it whole.
    crop: How to cut the square.
    upright: See `read`.
    fill: See `read`.

  Raises:
    BadImageError: See `read`.
  """
  pixels = read(file, size, upright=upright, fill=fill).pixels
  if size:
    pixels = crop(pixels, size)
  # Cropped in colour, then turned grey: both round, so the order matters.
  return to_grey(pixels) if channels == 1 else pixels


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps away the warnings of Pillow of which `read` takes care.

  Filters belong to the whole process, so this begins before threads that read
  images start, and ends after they have.
  """
  with warnings.catch_warnings():
    # `_check_size` has its own limit, and refuses instead of warning.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # Transparency is dropped on purpose.
    warnings.filterwarnings("ignore", "Palette images with Transparency")
    # It changes no pixel.
    warnings.filterwarnings("ignore", "Corrupt EXIF data")
    yield


@contextlib.contextmanager
def threads() -> Iterator[concurrent.futures.Executor]:
  """Threads to read images in, without the warnings of Pillow."""
  # Pillow decodes and resizes without Python's lock.
  count = min(os.cpu_count() or 1, MAX_THREADS)
  with quiet(), concurrent.futures.ThreadPoolExecutor(count) as pool:
    yield pool


def _check_size(sides: tuple[int, int], size: int | None, most: int) -> None:
  short, long = min(sides), max(sides)
  if size is not None and short < MIN_SIDE:
    raise BadImageError(f"{sides[0]} x {sides[1]} pixels: nothing to see")
  if short * long > most:
    raise BadImageError(
      f"{sides[0]} x {sides[1]} pixels: more than {most:,}, taken for a"
      " decompression bomb"
    )
  # The long side of a narrow image grows with the short one.
  if size is not None and long * size * size // short > MAX_PIXELS:
    raise BadImageError(
      f"{sides[0]} x {sides[1]} pixels: too narrow to enlarge to {size}"
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
  """All modes to RGB; 16-bit grey is scaled, which Pillow would clip."""
  width, height = image.size
  image.load()
  if width * height <= _LARGE:
    return _small_to_rgb(image)
  # Piece by piece: the copies on the way would take as much again as the image.
  pixels = np.empty((height, width, 3), np.uint8)
  for top in range(0, height, _ROWS):
    bottom = min(top + _ROWS, height)
    piece = image.crop((0, top, width, bottom))
    pixels[top:bottom] = _small_to_rgb(piece)
  return pixels


def _small_to_rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):
    grey = np.asarray(image, np.int64).clip(0, 65535) // 257
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
  return np.array(image.convert("RGB"))


def _reason(error: Exception) -> str:
  """One line that says what is wrong, without a path."""
  if isinstance(error, Image.UnidentifiedImageError):
    return "no image: none of " + ", ".join(FORMATS)
  if isinstance(error, OSError) and error.errno is not None:
    return f"cannot be read: {os.strerror(error.errno)}"
  if isinstance(error, Image.DecompressionBombError):
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return f"more than {most:,} pixels, taken for a decompression bomb"
  text = " ".join(str(error).split()) or type(error).__name__
  return f"damaged: {text}"


def _check_crop(image: UInt8[np.ndarray, "h w 3"], size: int) -> None:
  if size < 1 or 0 in image.shape:
    raise ValueError(
      f"cannot crop an image of shape {image.shape} to a side of {size}:"
      " both must be at least one pixel"
    )
