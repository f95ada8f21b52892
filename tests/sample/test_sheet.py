"""The contact sheet: its shape, and what it does without pictures."""

import numpy as np
import pytest

from gmem_jax.data import decode_image, write_images
from gmem_jax.sample import sheet


@pytest.fixture
def samples(tmp_path):
  """A directory of eight black images of 2 x 2 pixels."""

  def black(numbers):
    return np.zeros((len(numbers), 2, 2, 3), np.uint8)

  write_images.write_folder(tmp_path, 8, 8, black)
  return tmp_path


def write(samples, lines) -> np.ndarray:
  sheet.write(samples, lines)
  return write_images.read_png(samples / "grid.png")


def grey(side: int) -> np.ndarray:
  return np.full((side, side, 3), 100, np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_no_sheet_is_half_white(samples, count):
  for labels in (False, True):
    label = "row 3" if labels else ""
    lines = [sheet.Line([i], label, grey) for i in range(count)]
    assert (write(samples, lines) < 255).mean() > 0.5


def test_few_pictures_are_larger(samples):
  assert write(samples, [sheet.Line([0])]).shape == (516, 516, 3)
  lines = [sheet.Line([i], before=grey) for i in range(8)]
  # Four pairs in a row, and two rows.
  assert write(samples, lines).shape == (2 * 66 + 2, 4 * 130 + 2, 3)


def gone(side: int):
  raise decode_image.BadImageError(f"no file of {side} pixels")


@pytest.mark.parametrize("picture", [sheet.no_picture, gone])
def test_a_memory_without_a_picture_leaves_a_gap_among_others(samples, picture):
  lines = [sheet.Line([0], "a", grey), sheet.Line([1], "b", picture)]
  picture = write(samples, lines)[:, write_images.LABEL_WIDTH :]
  half = len(picture) // 2
  memories = picture[:, : picture.shape[1] // 2 - sheet.GAP]
  assert (memories[:half] == 100).any()
  assert (memories[half + 2 :] == 255).all()
  assert (picture[half + 2 :] == 0).any()
