"""A folder of image files as a source."""

import collections
import hashlib
import os
import pathlib
from typing import Any

from gmem_jax.data import decode, sources

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Folder:
  """Image files in any nesting, in the order of their paths.

  The first folder below the root is an image's class, as in torchvision's
  ImageFolder, and the order is the same; files at the root have no class.

  Attributes:
    root: The folder.
    names: Paths of the images, relative to it.
    classes: Names of the classes, sorted; a label is a position in it.
    ignored: Extension, or "hidden" -> number of files that were left alone.
  """

  channels = 3

  def __init__(self, root: pathlib.Path, size: int):
    """Lists the files.

    Args:
      root: The folder; links are followed.
      size: Side of the squares that will be cut from the images.

    Raises:
      ValueError: If it is no folder, cannot be listed, or holds no image.
    """
    self.root, self._size = root, size
    try:
      self.names, self.ignored = list_images(root)
    except ValueError as error:
      raise ValueError(f"config.data.path={str(root)!r}: {error}") from None
    self.classes = sorted({_class(name) for name in self.names} - {""})
    self._labels = {name: i for i, name in enumerate(self.classes)} | {"": -1}

  def __len__(self) -> int:
    return len(self.names)

  def read(self, index: int) -> sources.Picture:
    """Reads an image.

    Args:
      index: Its position.
    """
    name = self.names[index]
    label = self._labels[_class(name)]
    try:
      pixels, note = decode.read(self.root / name, self._size)
    except decode.BadImageError as error:
      return sources.Picture(name, label, None, str(error))
    return sources.Picture(name, label, pixels, note)

  def info(self) -> dict[str, Any]:
    """What identifies the images and their order: all of their paths."""
    digest = hashlib.sha256(b"\0".join(os.fsencode(n) for n in self.names))
    return {
      "name": f"folder {self.root.name}",
      "sha256_of_paths": digest.hexdigest(),
      "classes": len(self.classes),
    }


def list_images(
  root: pathlib.Path,
) -> tuple[list[str], collections.Counter[str]]:
  """Lists the image files below a folder; the only lister of folders.

  Args:
    root: The folder; links are followed, hidden files are left out.

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
    if os.path.basename(path).startswith("."):
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
  return sorted(names, key=os.path.split), ignored


def _walk(root: pathlib.Path) -> list[str]:
  """All files below a folder, relative to it; a loop of links ends."""

  def fail(error: OSError) -> None:
    raise ValueError(f"cannot list {error.filename}: {error.strerror}")

  found, seen = [], set()
  for folder, below, files in os.walk(root, onerror=fail, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    below.sort()
    found += [os.path.relpath(os.path.join(folder, f), root) for f in files]
  return found


def _class(name: str) -> str:
  first, separator, _ = name.partition(os.sep)
  return first if separator else ""
