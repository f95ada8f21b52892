"""Pictures of a bank's rows, from wherever their source images are."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from gmem_jax.bank import files as bank_files, images as images_lib
from gmem_jax.data import (
  decode_image,
  holdout,
  schema as schema_lib,
  sources,
  store,
)
from gmem_jax.files import atomic, paths


@dataclasses.dataclass(frozen=True)
class RowImages:
  """The source images of a bank's rows.

  Attributes:
    where: Where they are, for people.
    read: Row -> uint8 [h w 3] as it is there, or None if the row has no image.
      Raises BadImageError if it is gone.
    names: Their files by row, relative to where they are, "" for none; () where
      images have no files.
    find_classes: Makes `classes`, where they are not folders of the names.
  """

  where: str
  read: Callable[[int], np.ndarray | None]
  names: Sequence[str] = ()
  find_classes: Callable[[], Sequence[str]] | None = None

  @functools.cached_property
  def classes(self) -> Sequence[str]:
    """The class of each row, "" for none: of files, the first folder.

    () where no classes are known.
    """
    if self.find_classes is not None:
      return self.find_classes()
    return _folders(self.names)

  def load(self, row: int, side: int) -> UInt8[np.ndarray, "s s 3"] | None:
    """The image of a row, cropped to `side` pixels, or None if it has none."""
    pixels = self.read(row)
    return None if pixels is None else decode_image.center_crop(pixels, side)


def find(
  path: str | os.PathLike, stored: bank_files.Stored, folder: str | None = None
) -> RowImages | None:
  """Finds the images of a bank that was read from a path.

  Args:
    path: See `bank_files.read`.
    stored: What was read there.
    folder: Where image files are now, if not where they were.

  Returns:
    The images: files by name, those that prepared data keeps, or the digits; or
    None if they are not known.
  """
  if stored.images is not None:
    # The pictures are not in the package of the weights, but can be drawn.
    origin = stored.info.source.partition("/")[0]
    can_draw = folder is None and origin == "folder emoji"
    return _files(stored.images, folder, can_draw=can_draw)
  # A run in a bucket is not fetched for its images.
  directory = paths.resolve(path)
  if directory.name in ("memory", bank_files.PREPARED):
    directory = directory.parent
  prepared: paths.Path | None = directory
  if (directory / "config.json").exists():
    memory = directory / "memory"
    if (bank := bank_files.prepared_folder(memory, stored.info)) is None:
      return _digits_of_run(directory)
    prepared = bank.parent
  # Nor are prepared data, which may take a terabyte.
  is_here = isinstance(prepared, pathlib.Path)
  if is_here and (prepared / schema_lib.FILE).exists():
    return _prepared(prepared)
  return None


def edited(
  old: RowImages | None,
  origin: Int[np.ndarray, " m"],
  added: images_lib.SourceImages | None,
) -> RowImages:
  """The images of an edited bank, also those of its parent that have no files.

  Args:
    old: Those of its parent.
    origin: The parent's row that each row was, -1 for a new one.
    added: Those of the new rows, in order.
  """
  number = np.cumsum(origin < 0) - 1

  def pick(values: Sequence[str], new: Callable[[int], str]) -> Sequence[str]:
    return tuple(
      new(number[row]) if was < 0 else values[int(was)] if values else ""
      for row, was in enumerate(origin.tolist())
    )

  def read(row: int) -> np.ndarray | None:
    if origin[row] >= 0:
      return None if old is None else old.read(int(origin[row]))
    path = added and added.path(int(number[row]))
    return decode_image.load(path, 3, upright=True) if path else None

  names = old.names if old else ()
  if names or added:
    names = pick(names, lambda i: added.names[i] if added else "")
  return RowImages(
    old.where if old else "files that were added",
    read,
    names,
    lambda: pick(old.classes, lambda i: "") if old and old.classes else (),
  )


def _files(
  images: images_lib.SourceImages, folder: str | None, *, can_draw: bool
) -> RowImages:
  def read(row: int) -> np.ndarray | None:
    path = images.path(row, folder)
    if can_draw and path and not path.exists():
      # A command of its own, which warns if it was imported before it runs.
      from gmem_jax.data import emoji

      picture = emoji.drawn(images.names[row])
      if picture is not None:
        return picture
    return None if path is None else decode_image.load(path, 3)

  known = sum(bool(name) for name in images.names)
  where = f"{known:,} named, in {folder or images.folder}"
  return RowImages(where, read, images.names)


def _folders(names: Sequence[str]) -> Sequence[str]:
  """The first folder of each name; () if there is none at all."""
  # Absolute ones are of images that were added from elsewhere.
  heads = [
    name.partition(os.sep)[0] if os.sep in name else "" for name in names
  ]
  return heads if any(heads) else ()


def _prepared(directory: paths.Path) -> RowImages | None:
  """The images that prepared data keeps, or was made of."""
  schema = schema_lib.read(directory)
  if schema.tokens == "pixels":
    unmirrored = schema_lib.Flips(False, False, False)

    @functools.cache
    def records() -> store.PreparedRecords:
      return store.PreparedRecords(store.open_store(directory))

    return RowImages(
      f"row i is image i, kept in {directory}",
      lambda row: _rgb(records().read(row, unmirrored)["pixels"]),
    )
  if schema.source["name"] == "digits":
    return _in_memory(sources.digits, "digits")
  return None


def _digits_of_run(workdir: paths.Path) -> RowImages | None:
  """The digits that a run was trained on."""
  path = workdir / "config.json"
  config = atomic.read_json(path, {"data": dict, "seed": int})
  data, seed = config["data"], config["seed"]
  atomic.check_keys(data, {"source": str, "holdout": int}, str(path))
  if data["source"] != "digits":
    return None
  return _in_memory(
    lambda: holdout.split(
      # Runs from before there were groups have none.
      sources.digits(),
      data["holdout"],
      data.get("holdout_groups", ()),
      seed,
    )[0],
    "digits/train",
  )


def _in_memory(make: Callable[[], sources.Images], name: str) -> RowImages:
  """Images that are made when the first is asked for."""
  images = functools.cache(make)
  return RowImages(
    f"row i is image i of {name}",
    lambda row: _rgb(images().pixels[row]),
    find_classes=lambda: images().classes_of_images(),
  )


def _rgb(pixels: np.ndarray) -> np.ndarray:
  """Grey or RGB to RGB."""
  return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
