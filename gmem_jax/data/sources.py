"""Sources of images: what each has to offer, and those held in memory."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from gmem_jax import rngs


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image of a source.

  Attributes:
    name: Names it for people.
    label: Its class, -1 where there is none.
    pixels: uint8 [H, W, channels], or None if it cannot be used.
    note: Why not, or what is odd about it; "" for nothing.
  """

  name: str
  label: int
  pixels: np.ndarray | None
  note: str = ""


@runtime_checkable
class Source(Protocol):
  """Images in a fixed order, read one by one, from several threads at once."""

  @property
  def channels(self) -> int:
    """Channels of an image."""
    ...

  @property
  def ignored(self) -> Mapping[str, int]:
    """Extension -> number of files that are no images of the source."""
    ...

  def __len__(self) -> int:
    """Number of images, damaged ones included."""
    ...

  def read(self, index: int) -> Picture:
    """Reads an image; damage is told in its note, never raised."""
    ...

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order; JSON."""
    ...


@dataclasses.dataclass(frozen=True)
class Images:
  """A set of images in memory.

  Attributes:
    pixels: uint8 [n, H, W, channels].
    labels: int32 [n], -1 where there is none.
    name: Where they come from.
  """

  pixels: np.ndarray
  labels: np.ndarray
  name: str

  def __len__(self) -> int:
    return len(self.pixels)

  @property
  def channels(self) -> int:
    """Channels of an image."""
    return self.pixels.shape[-1]

  @property
  def ignored(self) -> Mapping[str, int]:
    """None."""
    return {}

  def read(self, index: int) -> Picture:
    """One image.

    Args:
      index: Its position.
    """
    return Picture(
      f"{self.name}/{index}", int(self.labels[index]), self.pixels[index]
    )

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order."""
    digest = hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes())
    return {"name": self.name, "sha256": digest.hexdigest()}

  def take(self, index: np.ndarray, name: str) -> "Images":
    """The images at some positions, under another name."""
    return Images(self.pixels[index], self.labels[index], name)


def digits() -> Images:
  """The 1,797 handwritten digits (8 x 8) that scikit-learn ships.

  Returns:
    Images of 8 x 8 x 1 pixels; the sixteen grey levels stretched to 0 … 255.

  Raises:
    ModuleNotFoundError: If scikit-learn is not installed.

  Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI.
  """
  try:
    from sklearn import datasets
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      "data.source='digits' reads scikit-learn's digits:"
      " pip install 'gmem_jax[demo]'"
    ) from e
  flat, labels = datasets.load_digits(return_X_y=True)
  pixels = np.round(flat * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  return Images(pixels, labels.astype(np.int32), "digits")


def split(images: Images, holdout: int, seed: int) -> tuple[Images, Images]:
  """Holds images out of training and of the bank.

  Args:
    images: All images.
    holdout: How many to hold out, drawn at random.
    seed: The run's seed.

  Returns:
    (images to train on, held-out images).

  Raises:
    ValueError: If that leaves nothing to train on.
  """
  if not 0 <= holdout < len(images):
    raise ValueError(
      f"data.holdout={holdout}: {images.name} has {len(images)} images"
    )
  order = np.asarray(
    jax.random.permutation(rngs.key(seed, "data/holdout"), len(images))
  )
  held, kept = np.sort(order[:holdout]), np.sort(order[holdout:])
  return images.take(kept, f"{images.name}/train"), images.take(
    held, f"{images.name}/held-out"
  )
