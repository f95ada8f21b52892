"""Image files to RGB pixels; whatever is wrong with one has a name.

Data sets from the wild hold every kind of file under every extension. What
Pillow reads is taken as it would be by the published code: the extension means
nothing, transparency is dropped, the first frame stands for an animation.
"""

import io
import os
import pathlib
import warnings

import numpy as np
from PIL import Image

# Formats by contents. Others, of which some start programs, are not opened.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ANIMATED = ("PNG", "WEBP", "GIF")

# Pixels that an image may claim to have, or grow to while it is cropped: a
# file of a few kilobytes can ask for gigabytes. ImageNet's largest has 61
# million.
MAX_PIXELS = 178_956_970
MIN_SIDE = 2


class BadImageError(Exception):
  """An image cannot be used; the message says why."""


def read(
  file: pathlib.Path | io.BytesIO, size: int | None = None
) -> tuple[np.ndarray, str]:
  """Reads an image.

  Args:
    file: Its file, or its bytes.
    size: Side in pixels of the square that will be cut from it; None to keep
      its size.

  Returns:
    (uint8 [H, W, 3], what is odd about it, "" for nothing).

  Raises:
    BadImageError: If it is damaged, no image, or of an impossible size.
  """
  try:
    with Image.open(file, formats=FORMATS) as image:
      _check_size(image.size, size)
      note = ""
      if image.format in ANIMATED and getattr(image, "is_animated", False):
        note = "animated: its first frame was taken"
      return _to_rgb(image), note
  except BadImageError:
    raise
  # Damage shows as anything from OSError to SyntaxError or MemoryError.
  except Exception as error:
    raise BadImageError(_reason(error)) from None


def silence_pillow() -> None:
  """Stops the warnings of Pillow that `read` expects.

  Call it inside `warnings.catch_warnings`, and before threads start: filters
  belong to the whole process.
  """
  warnings.simplefilter("ignore", Image.DecompressionBombWarning)
  # Transparency is dropped on purpose.
  warnings.filterwarnings("ignore", "Palette images with Transparency")


def _check_size(sides: tuple[int, int], size: int | None) -> None:
  short, long = min(sides), max(sides)
  if size is not None and short < MIN_SIDE:
    raise BadImageError(f"{sides[0]} x {sides[1]} pixels: nothing to see")
  if short * long > MAX_PIXELS:
    raise BadImageError(
      f"{sides[0]} x {sides[1]} pixels: more than {MAX_PIXELS:,}, taken for a"
      " decompression bomb"
    )
  if size is not None and long * size * size // short > MAX_PIXELS:
    raise BadImageError(
      f"{sides[0]} x {sides[1]} pixels: too narrow to enlarge to {size}"
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
  """All modes to RGB; 16-bit grey is scaled, which Pillow would clip."""
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
  text = " ".join(str(error).split()) or type(error).__name__
  return f"damaged: {text}"
