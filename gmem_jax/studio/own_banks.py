"""Banks that visitors edit: where they are, how large they get, downloads.

Each visitor has a folder, with the pictures that were brought and the newest
bank. What the bank was before is deleted, and all of it some time after the
visitor is gone.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence

from gmem_jax.bank import bank as bank_lib, files as bank_files, images
from gmem_jax.files import weights
from gmem_jax.sample.generator import Generator
from gmem_jax.studio import context, uploads

# Bytes of the rows, as float32, of a bank that is edited: each edit writes all
# of it again.
MAX_BANK = 256 << 20
_PREFIX, _PICTURES = "bank_of_visitor_", "pictures"


def append(
  studio: context.Studio, visit: Generator | None, files: Sequence[str] | None
) -> Generator:
  """Adds the pictures of uploaded files to a visitor's bank.

  Raises:
    ValueError: If there are none, or naming what does not fit.
  """
  found = uploads.check(files)
  if not found:
    raise ValueError("pictures: choose some first")

  def edit(generator: Generator, home: pathlib.Path) -> Generator:
    folder = home / _PICTURES
    folder.mkdir(exist_ok=True)
    kept = []
    for number, upload in enumerate(found, len(list(folder.iterdir()))):
      kept.append(folder / f"{number:03}-{upload.name}")
      shutil.copyfile(upload.path, kept[-1])
    return generator.edit_bank(_new(home), append=kept)

  return _edit(studio, visit, edit)


def remove(
  studio: context.Studio, visit: Generator | None, rows: Sequence[int]
) -> Generator:
  """Takes rows out of a visitor's bank.

  Raises:
    ValueError: Naming what does not fit.
  """
  return _edit(
    studio,
    visit,
    lambda generator, home: generator.edit_bank(_new(home), remove=rows),
  )


def use(visit: Generator, other: Generator) -> Generator:
  """Another generator with a visitor's bank.

  Raises:
    ValueError: If the bank does not fit.
  """
  other = other.with_bank(visit.config.sample.bank)
  # It knows images that have no files.
  bank = visit.source.require_bank()
  source = dataclasses.replace(other.source, bank=bank)
  return dataclasses.replace(other, source=source)


def describe(visit: Generator) -> bank_lib.BankInfo:
  """What an edited bank says of itself."""
  path = visit.config.sample.bank
  return bank_files.info_of(weights.read_metadata(path)["info"], "the bank")


def pack(studio: context.Studio, visit: Generator) -> str:
  """Writes an edited bank to download; returns the path.

  The zip has the bank, which names no folder of this machine, and in `pictures`
  the pictures that were brought for its rows.
  """
  bank = pathlib.Path(visit.config.sample.bank)
  size = len(visit.source.require_bank().rows)
  out = pathlib.Path(tempfile.mkdtemp(dir=studio.folder)) / "my_bank.zip"
  # Stored, as features hardly get smaller.
  with zipfile.ZipFile(out, "w") as file:
    for path in sorted(bank.rglob("*")):
      if path.is_file() and path.name != images.FILE:
        file.write(path, f"bank/{path.relative_to(bank)}")
    named = images.read(bank, size)
    if named is not None:
      own, text = _portable(named, bank.parent / _PICTURES)
      file.writestr(f"bank/{images.FILE}", text)
      for path in own:
        file.write(path, f"{_PICTURES}/{path.name}")
  return str(out)


def discard(studio: context.Studio, visit: Generator | None) -> None:
  """Deletes all that belongs to a visitor's bank."""
  if (home := _home_of(studio, visit)) is not None:
    shutil.rmtree(home, ignore_errors=True)


def _portable(
  named: images.SourceImages, brought: pathlib.Path
) -> tuple[list[pathlib.Path], str]:
  """(files of pictures that were brought, names without folders from here)."""
  own, names = [], []
  for row, name in enumerate(named.names):
    path = named.path(row)
    if path is not None and path.is_relative_to(brought):
      own.append(path)
      name = f"{_PICTURES}/{path.name}"
    names.append(pathlib.Path(name).name if name.startswith("/") else name)
  folder = pathlib.Path(named.folder)
  if folder.is_relative_to(brought):
    folder = pathlib.Path()
  elif folder.is_absolute():
    folder = pathlib.Path(folder.name)
  return own, json.dumps({"folder": str(folder), "names": names}, indent=2)


def _edit(
  studio: context.Studio,
  visit: Generator | None,
  edit: Callable[[Generator, pathlib.Path], Generator],
) -> Generator:
  """Edits a visitor's bank in the visitor's folder.

  Raises:
    ValueError: If the bank is too large, there is no room, or see `edit`.
  """
  generator = studio.current(visit)
  size = generator.source.require_bank().rows.nbytes
  if size > MAX_BANK:
    raise ValueError(
      f"the bank has {size >> 20} MB of features: more than {MAX_BANK >> 20} MB"
      " are edited with `python -m gmem_jax.bank`"
    )
  if uploads.size_of(studio.folder) + 2 * size > uploads.MAX_KEPT:
    raise ValueError("too many files are kept; try later")
  known = _home_of(studio, visit)
  home = known or pathlib.Path(
    tempfile.mkdtemp(prefix=_PREFIX, dir=studio.folder)
  )
  try:
    other = edit(generator, home)
  except BaseException:
    if known is None:
      shutil.rmtree(home, ignore_errors=True)
    raise
  if known is not None:
    # Its rows are in memory, and the pictures elsewhere.
    shutil.rmtree(generator.config.sample.bank, ignore_errors=True)
  return other


def _home_of(
  studio: context.Studio, visit: Generator | None
) -> pathlib.Path | None:
  """The folder of a visitor who has edited a bank."""
  if visit is None:
    return None
  home = pathlib.Path(visit.config.sample.bank).parent
  # Never anything but what this module has made.
  mine = home.parent == pathlib.Path(studio.folder)
  return home if mine and home.name.startswith(_PREFIX) else None


def _new(home: pathlib.Path) -> pathlib.Path:
  """Where the next bank goes."""
  return pathlib.Path(tempfile.mkdtemp(prefix="edit_", dir=home))
