"""Image files: crops against the pixels of the published code."""

import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from gmem_jax.data import decode_image

CROPS = decode_image.center_crop, decode_image.bilinear_crop


def _images(data):
  images = {k: data[k] for k in data.files if re.fullmatch(r"img\d+", k)}
  assert images, f"no images among {data.files}"
  return images


@pytest.mark.golden
def test_center_crop_golden(golden_dir):
  data = np.load(golden_dir / "center_crop.npz")
  for name, image in _images(data).items():
    number = name.removeprefix("img")
    size = int(data[f"size{number}"])
    actual = decode_image.center_crop(image, size)
    np.testing.assert_array_equal(actual, data[f"crop{number}"], name)


@pytest.mark.golden
def test_bilinear_crop_golden(golden_dir):
  data = np.load(golden_dir / "center_crop.npz")
  pattern = re.compile(r"torchvision_resize(\d+)_crop\1_(img\d+)")
  keys = [k for k in data.files if k.startswith("torchvision_")]
  assert keys, f"no torchvision crops among {data.files}"
  for key in keys:
    match = pattern.fullmatch(key)
    assert match, f"unknown key {key}"
    actual = decode_image.bilinear_crop(data[match[2]], int(match[1]))
    expected = np.moveaxis(data[match[0]], 0, -1)  # float32, u8 / 255
    np.testing.assert_allclose(actual / np.float32(255), expected, atol=1e-6)


@pytest.mark.parametrize("function", CROPS)
@pytest.mark.parametrize("hw", [(7, 7), (7, 12), (31, 9), (1, 3)])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_result_is_square_and_a_flat_image_stays_flat(function, hw, size):
  image = np.full((*hw, 3), (10, 200, 90), np.uint8)
  actual = function(image, size)
  assert actual.shape == (size, size, 3)
  assert actual.dtype == np.uint8
  np.testing.assert_array_equal(
    actual, image[:1, :1].repeat(size, 0).repeat(size, 1)
  )


@pytest.mark.parametrize("function", CROPS)
def test_crop_is_central(function):
  # Nothing is resized here: the short side already is the size.
  image = np.random.default_rng(0).integers(0, 256, (4, 10, 3), np.uint8)
  np.testing.assert_array_equal(function(image, 4), image[:, 3:7])
  turned = image.transpose(1, 0, 2)
  np.testing.assert_array_equal(function(turned, 4), turned[3:7])


def test_odd_pixel_left_over():
  image = np.random.default_rng(0).integers(0, 256, (4, 7, 3), np.uint8)
  np.testing.assert_array_equal(
    decode_image.center_crop(image, 4), image[:, 1:5]
  )
  np.testing.assert_array_equal(
    decode_image.bilinear_crop(image, 4), image[:, 2:6]
  )


def test_argument_is_left_alone():
  image = np.zeros((40, 30, 3), np.uint8)
  image.setflags(write=False)
  result = decode_image.center_crop(image, 30)
  result[...] = 1
  assert not image.any()


@pytest.mark.parametrize("function", CROPS)
def test_empty_crops_and_images_are_refused(function):
  with pytest.raises(ValueError, match="side of 0"):
    function(np.zeros((4, 4, 3), np.uint8), 0)
  with pytest.raises(ValueError, match=r"\(0, 4, 3\)"):
    function(np.zeros((0, 4, 3), np.uint8), 4)


def test_a_photograph_is_turned_only_where_it_is_asked_for(tmp_path):
  path, upright = tmp_path / "phone.jpg", np.zeros((48, 32, 3), np.uint8)
  upright[:16] = 255, 0, 0
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6  # stored on its left side
  Image.fromarray(np.rot90(upright)).save(path, exif=exif)
  stored, _ = decode_image.read(path)
  turned, _ = decode_image.read(path, upright=True)
  assert (stored.shape, turned.shape) == ((32, 48, 3), (48, 32, 3))
  assert turned[:8, :, 0].min() > 200  # its red top is above again
  assert turned[24:].max() < 50
  np.testing.assert_array_equal(np.rot90(turned), stored)
  np.testing.assert_array_equal(decode_image.load(path, 3), stored)
