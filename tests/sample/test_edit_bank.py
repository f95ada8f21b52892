"""Edits of a generator's bank: what is written, and what is sampled then."""

import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.commands import bank as bank_command
from gmem_jax.data import holdout, sources, write_images
from tests import tiny

SIZE = 1437


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny.save_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def generator(run):
  return gmem_jax.load(run)


@pytest.fixture
def file(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  write_images.save_png(tmp_path / "own.png", pixels)
  return tmp_path / "own.png"


def picture(generator, row):
  return generator.source.bank.picture(row)(generator.config.encoder.image_size)


def test_an_appended_image_is_a_memory_as_others_are(generator, file, tmp_path):
  other = generator.edit_bank(tmp_path / "new", append=[file])
  rows = other.source.bank.rows
  assert rows.shape == (SIZE + 1, generator.source.bank.rows.shape[1])
  np.testing.assert_array_equal(rows[:SIZE], generator.source.bank.rows)
  np.testing.assert_allclose(
    rows[SIZE], generator.features([file])[0], atol=1e-6
  )
  np.testing.assert_array_equal(
    other.sample(rows=[SIZE], per_row=2, seed=3).pixels,
    generator.sample(images=[file], per_row=2, seed=3).pixels,
  )
  stored = bank_files.read(tmp_path / "new")
  assert stored.info.parent == bank_files.read(generator.workdir).info.digest
  assert stored.info.digest == bank_lib.digest(stored.bank)
  assert stored.images.path(SIZE) == file


def test_it_is_the_bank_that_the_command_line_writes(
  run, generator, file, tmp_path
):
  generator.edit_bank(tmp_path / "python", append=[file])
  status = bank_command.main(
    [
      "append", str(run), str(tmp_path / "command"), "--image", str(file),
      "--config=configs/digits.py",
    ]
  )  # fmt: skip
  assert status == 0
  made, expected = map(
    bank_files.read, (tmp_path / "python", tmp_path / "command")
  )
  assert made.images == expected.images
  assert made.info.edit == expected.info.edit
  np.testing.assert_allclose(made.bank.rows, expected.bank.rows, atol=1e-6)


def test_images_and_classes_follow_their_rows(generator, file, tmp_path):
  digits = holdout.split(sources.digits(), 360, (), 0)[0]
  names = digits.classes_of_images()
  one = generator.edit_bank(tmp_path / "one", append=[file])
  two = one.edit_bank(tmp_path / "two", remove=[0, 7, 7])
  assert len(two.source.bank.rows) == SIZE - 1
  for row, was in ((0, 1), (5, 6), (6, 8), (SIZE - 3, SIZE - 1)):
    np.testing.assert_array_equal(
      picture(two, row)[..., :1], digits.pixels[was]
    )
    assert two.source.bank.images.classes[row] == names[was]
  # It has none, and is in no folder.
  assert two.source.bank.images.classes[SIZE - 2] == ""
  assert two.source.bank.images.names[SIZE - 2] == "own.png"
  side = generator.config.encoder.image_size
  assert picture(two, SIZE - 2).shape == (side, side, 3)
  parents = [
    bank_files.read(path).info
    for path in (generator.workdir, tmp_path / "one", tmp_path / "two")
  ]
  assert parents[2].parent == parents[1].digest
  assert parents[1].parent == parents[0].digest


def test_what_does_not_fit_is_named(generator, file, tmp_path):
  for arguments, message in (
    ({}, "either append or remove"),
    ({"append": [file], "remove": [1]}, "either append or remove"),
    ({"append": [tmp_path / "gone.png"]}, "append=.*gone.png"),
    ({"append": [__file__]}, "append: cannot read"),
    ({"remove": [SIZE]}, "not in the bank"),
    ({"remove": range(SIZE)}, "no row would remain"),
  ):
    with pytest.raises(ValueError, match=message):
      generator.edit_bank(tmp_path / "new", **arguments)
  with pytest.raises(FileExistsError, match=r"own\.png already exists"):
    generator.edit_bank(file, remove=[1])
  assert not (tmp_path / "new").exists()
