"""Sources of images: what each offers, folders of files, and digits."""

import collections
import contextlib
import copy
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gmem_jax.bank import images as bank_images
from gmem_jax.data import decode_image

# Of the files in a folder; others are counted and left alone.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Picture:
  """One image of a source.

  Attributes:
    name: Names it for people.
    label: Its class, -1 where there is none.
    pixels: uint8 [H, W, channels], or None if it cannot be used.
    note: Why not, or what is odd about it; "" for nothing.
    rotated: As `decode_image.Decoded.rotated`.
  """

  name: str
  label: int
  pixels: np.ndarray | None
  note: str = ""
  rotated: bool = False


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

  @property
  def files(self) -> bank_images.SourceImages | None:
    """The image files, or None where an image is no file of its own."""
    ...

  @property
  def name(self) -> str:
    """Names the source for people."""
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

  def fingerprint(self, images: Sequence[int]) -> str:
    """What tells some images from others of the same `info`; "" for nothing."""
    ...

  def classes_of_images(self) -> Sequence[str] | None:
    """The class of each image, "" for none; None if only reading tells it."""
    ...

  # Not Self, which the type checks of the tests cannot resolve here.
  def take(self, index: np.ndarray, name: str) -> Any:
    """The images at some positions, under another name: such a source, too."""
    ...


@dataclasses.dataclass(frozen=True)
class Images:
  """A source in memory.

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
    """Empty: there are no files."""
    return {}

  @property
  def files(self) -> None:
    """None: there are no files."""

  def read(self, index: int) -> Picture:
    """Reads an image."""
    name, label = f"{self.name}/{index}", int(self.labels[index])
    return Picture(name, label, self.pixels[index])

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order: a digest of all bytes."""
    digest = hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes())
    return {"name": self.name, "sha256": digest.hexdigest()}

  def fingerprint(self, images: Sequence[int]) -> str:
    """Nothing: `info` has all bytes."""
    return ""

  def classes_of_images(self) -> Sequence[str]:
    """The labels as text."""
    return ["" if label < 0 else str(label) for label in self.labels]

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
      "config.data.source='digits' reads scikit-learn's digits:"
      " pip install 'gmem_jax[demo]'"
    ) from e
  flat, labels = datasets.load_digits(return_X_y=True)
  pixels = np.round(flat * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  return Images(pixels, np.asarray(labels, np.int32), "digits")


def decode(
  name: str,
  label: int,
  file: pathlib.Path | io.BytesIO,
  size: int,
  *,
  fill: bool,
) -> Picture:
  """An image of a source, not yet cropped; see `decode_image.read`."""
  try:
    decoded = decode_image.read(file, size, fill=fill)
  except decode_image.BadImageError as error:
    return Picture(name, label, None, str(error))
  return Picture(name, label, *decoded)


class Folder:
  """Image files in any nesting, in the order of their paths.

  The first folder below the root is an image's class, as in torchvision's
  ImageFolder, and the order is the same; files at the root have no class.

  Attributes:
    name: Names the folder for people.
    names: Paths of the images, relative to the root.
    classes: Names of the classes, sorted; a label is a position in it.
    ignored: Extension, or "hidden" -> number of files that were left alone.
  """

  channels = 3

  def __init__(self, root: pathlib.Path, size: int, *, fill: bool = False):
    """Lists the files, whose images will be cropped to squares of side `size`.

    `fill` is as for `decode_image.read`.

    Raises:
      ValueError: If it is no folder, cannot be listed, or holds no image.
    """
    self.root, self._size, self._fill = root, size, fill
    self.name = f"folder {root.name}"
    try:
      self.names, self.ignored = list_images(root)
    except ValueError as error:
      raise ValueError(f"config.data.path={str(root)!r}: {error}") from None
    self.classes = sorted({_class(name) for name in self.names} - {""})
    self._labels = {name: i for i, name in enumerate(self.classes)} | {"": -1}

  def __len__(self) -> int:
    return len(self.names)

  @property
  def files(self) -> bank_images.SourceImages:
    """The image files."""
    return bank_images.SourceImages(
      str(self.root.absolute()), tuple(self.names)
    )

  def read(self, index: int) -> Picture:
    """Reads an image."""
    name = self.names[index]
    label, path = self._labels[_class(name)], self.root / name
    return decode(name, label, path, self._size, fill=self._fill)

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order: all of their paths."""
    # Not their contents: reading ImageNet takes longer than any check is worth.
    digest = hashlib.sha256(b"\0".join(os.fsencode(n) for n in self.names))
    return {
      "name": self.name,
      "sha256_of_paths": digest.hexdigest(),
      "classes": len(self.classes),
      **reading(fill=self._fill),
    }

  def fingerprint(self, images: Sequence[int]) -> str:
    """A digest of the files' sizes, and of the first one's contents."""
    paths = [self.root / self.names[image] for image in images]
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):
      digest.update(paths[0].read_bytes())
    for path in paths:
      try:
        size = path.stat().st_size
      except OSError:  # A link to nowhere.
        size = -1
      digest.update(f" {size}".encode())
    return digest.hexdigest()

  def classes_of_images(self) -> Sequence[str]:
    """The first folders."""
    return [_class(name) for name in self.names]

  def take(self, index: np.ndarray, name: str) -> "Folder":
    """The images at some positions; labels stay those of the whole folder."""
    part = copy.copy(self)
    part.name, part.names = name, [self.names[i] for i in index]
    return part


def reading(*, fill: bool) -> dict[str, str]:
  """What a source's `info` says of how its images are read."""
  # Nothing at the default, as in data from before there was a choice.
  return {"truncated": "fill"} if fill else {}


def list_images(
  root: pathlib.Path,
) -> tuple[list[str], collections.Counter[str]]:
  """Lists the image files below a folder; the only lister of folders.

  Returns:
    Paths relative to the folder, by class and then by name; and extension, or
    "hidden" -> number of files that were left out.

  Raises:
    ValueError: If it is not a folder, cannot be listed, or holds no image.
  """
  ignored: collections.Counter[str] = collections.Counter()
  names = []
  for path in _walk(root):
    extension = os.path.splitext(path)[1].lower() or "no extension"
    # Some systems put a companion ._x.jpg, which is no image, beside an x.jpg,
    # or an .AppleDouble/x.jpg; others copies, as in .ipynb_checkpoints.
    if any(part.startswith(".") for part in path.split(os.sep)):
      ignored["hidden"] += 1
    elif extension in EXTENSIONS:
      names.append(path)
    else:
      ignored[extension] += 1
  if not names:
    raise ValueError(
      "no image there, nor in its folders; extensions taken are"
      f" {', '.join(EXTENSIONS)}"
      + (f", found were {dict(ignored)}" if ignored else "")
    )
  # By folder first: sorting whole paths would put "a b/x" before "a/x".
  return sorted(names, key=os.path.split), ignored


def _walk(root: pathlib.Path) -> Iterator[str]:
  """All files below a folder, relative to it, through links."""

  def fail(error: OSError) -> None:
    raise ValueError(f"cannot list {error.filename}: {error.strerror}")

  seen = set()
  for folder, below, files in os.walk(root, onerror=fail, followlinks=True):
    # A link to a folder above would be followed without end.
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    below.sort()
    yield from (os.path.relpath(os.path.join(folder, f), root) for f in files)


def _class(name: str) -> str:
  first, separator, _ = name.partition(os.sep)
  return first if separator else ""
