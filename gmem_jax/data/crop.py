"""Square crops of images, as the published numbers were computed on.

Two crops are in use and differ in nearly every pixel: training data, features
and the memory bank come from `center_crop`; the published manipulation of
external images reads them through `bilinear_crop`. Resampling is Pillow's, to
the bit.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def center_crop(
  image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Scales an image until its short side is `size` and cuts out the centre.

  While the short side is at least twice `size`, both sides are halved with a
  box filter; a bicubic filter does the rest, also for images that are too
  small.

  Args:
    image: RGB pixels; no side is empty.
    size: Side of the result in pixels, at least 1.

  Returns:
    The crop. An odd pixel left over goes below or to the right of it.

  Raises:
    ValueError: If `size` or a side of the image is less than 1.

  Source: Dhariwal and Nichol, arXiv 2105.05233 (the data loading published
    with it, since then common to diffusion models on ImageNet).
  """
  _check(image, size)
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
  """As `center_crop`, but by one antialiased bilinear resize.

  Args:
    image: RGB pixels; no side is empty.
    size: Side of the result in pixels, at least 1.

  Returns:
    The crop. Half an odd pixel left over is rounded to the even offset.

  Raises:
    ValueError: If `size` or a side of the image is less than 1.

  Source: torchvision's Resize followed by its CenterCrop, with which the
    published code of GMem reads external images.
  """
  _check(image, size)
  height, width = image.shape[:2]
  short = min(height, width)
  height, width = size * height // short, size * width // short
  scaled = Image.fromarray(image).resize(
    (width, height), Image.Resampling.BILINEAR
  )
  top, left = round((height - size) / 2), round((width - size) / 2)
  return np.array(scaled)[top : top + size, left : left + size]


def _check(image: UInt8[np.ndarray, "h w 3"], size: int) -> None:
  if size < 1 or 0 in image.shape:
    raise ValueError(
      f"cannot crop an image of shape {image.shape} to a side of {size}: "
      "both must be at least one pixel"
    )
