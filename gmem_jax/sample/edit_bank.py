"""Edits of a generator's bank, written as a new one."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from gmem_jax.bank import (
  edit,
  files as bank_files,
  images as bank_images,
)
from gmem_jax.config import sections
from gmem_jax.data import encode_files, row_images
from gmem_jax.files import atomic, paths
from gmem_jax.sample import draw_rows, source as source_lib


def write(
  config: sections.Config,
  source: source_lib.SampleSource,
  workdir: paths.Path,
  path: str | os.PathLike,
  append: Sequence[str | os.PathLike],
  remove: Sequence[int],
) -> Callable[[], row_images.RowImages | None]:
  """Writes a new bank; see `Generator.edit_bank`.

  Returns:
    What finds the images of its rows. Read from disk, the bank knows only those
    that have files.
  """
  if bool(append) == bool(remove):
    raise ValueError("edit_bank: give either append or remove")
  path = atomic.new_path(path, directory=True)
  bank = source.require_bank()
  stored = bank_files.read(
    config.sample.bank or config.sample.network or workdir
  )
  added = None
  if remove:
    new = edit.remove(stored.bank, stored.info, np.asarray(remove))
  else:
    features, added = _encode(config, source, append)
    many = f"{len(features)} images"
    new = edit.append(stored.bank, stored.info, features, many)
  bank_files.write(path, bank_files.edited(stored, new, added))
  return lambda: row_images.edited(bank.images, new.origin, added)


def _encode(
  config: sections.Config,
  source: source_lib.SampleSource,
  images: Sequence[str | os.PathLike],
) -> tuple[np.ndarray, bank_images.SourceImages]:
  """The features of image files, as the bank has them, and their names."""
  # Whatever `sample.reading` says: that is how snippets are shown to a network.
  sample = dataclasses.replace(config.sample, reading="bank")
  config = dataclasses.replace(config, sample=sample)
  reader = draw_rows.make_reader(config, source)
  try:
    root, files = encode_files.list_images([os.fspath(each) for each in images])
  except ValueError as error:
    raise ValueError(f"append={error}") from None
  snippets = [reader.image(str(file), "append") for file in files]
  names = tuple(str(file.relative_to(root)) for file in files)
  features = np.stack([each.feature for each in snippets])
  return features, bank_images.SourceImages(root, names)
