"""The square crop that every published number on ImageNet is computed on.

Source: Dhariwal and Nichol, arXiv 2105.05233 (their data loading, from which
later diffusion models took it, GMem included).
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def center_crop(
  image: UInt8[np.ndarray, "h w c"], size: int
) -> UInt8[np.ndarray, "size size c"]:
  """Scales an image so that its short side is `size` and cuts its centre out.

  The image is halved with a box filter while its short side is at least twice
  `size`, then resized with Pillow's bicubic filter, which is antialiased; so a
  small image is enlarged. The pixels are those of Pillow, to the bit.

  Args:
    image: Pixels, RGB.
    size: Side of the result in pixels, at least 1.

  Returns:
    The crop. Where the long side leaves an odd number of pixels, the extra one
    goes below or to the right.

  Raises:
    ValueError: If `size` is not positive or the image has no pixels.
  """
