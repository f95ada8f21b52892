"""Image files: crops against the pixels of the published code."""

import io
import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

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
  stored = decode_image.read(path).pixels
  turned = decode_image.read(path, upright=True).pixels
  assert (stored.shape, turned.shape) == ((32, 48, 3), (48, 32, 3))
  assert turned[:8, :, 0].min() > 200  # its red top is above again
  assert turned[24:].max() < 50
  np.testing.assert_array_equal(np.rot90(turned), stored)
  np.testing.assert_array_equal(decode_image.load(path, 3), stored)


def encoded(form: str, **options) -> bytes:
  """A picture of 40 x 32 pixels as a file."""
  pixels = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, form, **options)
  return data.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_is_noticed_and_not_applied(form):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  turned = decode_image.read(io.BytesIO(encoded(form, exif=exif)))
  plain = decode_image.read(io.BytesIO(encoded(form)))
  assert (turned.rotated, plain.rotated) == (True, False)
  np.testing.assert_array_equal(turned.pixels, plain.pixels)
  assert turned.note == plain.note == ""


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
  "exif", [b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_loses_no_image(exif):
  for upright in (False, True):
    data = io.BytesIO(encoded("JPEG", exif=exif))
    found = decode_image.read(data, upright=upright)
    assert not found.rotated
    assert found.pixels.shape == (32, 40, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_images_are_filled_as_pillow_fills_them(
  tmp_path, monkeypatch, progressive
):
  data = encoded("JPEG", quality=95, progressive=progressive)
  path, black = tmp_path / "x.jpg", 0
  # Wherever the file ends after the beginning of its first scan.
  for size in range(data.index(b"\xff\xda") + 20, len(data) - 1, 9):
    path.write_bytes(data[:size])
    with pytest.raises(decode_image.BadImageError, match="damaged"):
      decode_image.read(path)
    found = decode_image.read(path, fill=True)
    assert found.note == decode_image.FILLED
    assert found.pixels.max() > 100
    # Pillow's own switch is of the whole process, and was not touched.
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with monkeypatch.context() as patch, Image.open(path) as image:
      patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
      pixels = np.asarray(image)
    if pixels.any():
      np.testing.assert_array_equal(found.pixels, pixels)
    black += not pixels.any()
  assert bool(black) == progressive
  cropped = decode_image.load(path, 3, 8, fill=True)
  expected = decode_image.center_crop(found.pixels, 8)
  np.testing.assert_array_equal(cropped, expected)


def test_whole_images_are_read_alike_with_fill():
  for form in ("JPEG", "PNG", "WEBP", "BMP"):
    data = encoded(form)
    plain, filled = (
      decode_image.read(io.BytesIO(data), fill=fill) for fill in (False, True)
    )
    np.testing.assert_array_equal(plain.pixels, filled.pixels)
    assert plain.note == filled.note == ""


def test_what_cannot_be_filled_stays_bad():
  jpeg, png = encoded("JPEG"), encoded("PNG")
  for data in (jpeg[:100], png[: len(png) // 2], b"", b"\xff\xd8", b"text"):
    reasons = []
    for fill in (False, True):
      with pytest.raises(decode_image.BadImageError) as error:
        decode_image.read(io.BytesIO(data), fill=fill)
      reasons.append(str(error.value))
    assert reasons[0] == reasons[1]


MODES = ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16")
FORMS = {"CMYK": "JPEG", "RGB": "BMP"}


@pytest.mark.parametrize("mode", MODES)
def test_large_images_have_the_pixels_of_small_ones(monkeypatch, mode):
  """They become RGB piece by piece; the last piece is a smaller one."""
  random = np.random.default_rng(0)
  if mode == "I;16":
    image = Image.fromarray(random.integers(0, 65536, (40, 30), np.uint16))
  else:
    noise = Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8))
    image = noise.convert("L").convert(mode) if mode in ("LA", "1") else (
      noise.convert(mode)
    )  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = 6
  file = io.BytesIO()
  image.save(file, FORMS.get(mode, "PNG"), exif=exif)
  whole = decode_image.read(file).pixels
  assert whole.std() > 1
  monkeypatch.setattr(decode_image, "_LARGE", 100)
  monkeypatch.setattr(decode_image, "_ROWS", 7)
  np.testing.assert_array_equal(decode_image.read(file).pixels, whole)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_large_image_is_turned(monkeypatch, form):
  random = np.random.default_rng(0)
  image = Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  file = io.BytesIO()
  image.save(file, form, exif=exif)
  as_it_is = decode_image.read(file).pixels
  monkeypatch.setattr(decode_image, "_LARGE", 100)
  found = decode_image.read(file, upright=True)
  np.testing.assert_array_equal(found.pixels, np.rot90(as_it_is, -1))
  assert not found.rotated


@pytest.mark.parametrize(
  ("form", "mode", "is_costly"),
  [
    ("JPEG", "RGB", False),
    ("JPEG", "CMYK", True),
    ("PNG", "RGB", False),
    ("WEBP", "RGB", True),
  ],
)
def test_what_would_take_more_than_a_gigabyte_is_refused(
  monkeypatch, form, mode, is_costly
):
  file = io.BytesIO()
  Image.new(mode, (100, 100)).save(file, form)
  assert decode_image.read(file).pixels.shape == (100, 100, 3)
  monkeypatch.setattr(decode_image, "MAX_PIXELS", 15_000)
  monkeypatch.setattr(decode_image, "MAX_COSTLY", 7_500)
  if not is_costly:
    assert decode_image.read(file).pixels.shape == (100, 100, 3)
    monkeypatch.setattr(decode_image, "MAX_PIXELS", 7_500)
  with pytest.raises(decode_image.BadImageError, match="more than 7,500"):
    decode_image.read(file)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("form", "mode", "options"),
  [
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGB", {"compress_level": 1}),
    ("WEBP", "RGB", {"lossless": True, "quality": 0, "method": 0}),
  ],
)
def test_the_largest_image_takes_a_gigabyte(tmp_path, form, mode, options):
  """Measured in a process of its own: memory freed before is no help there."""
  costly = mode == "CMYK" or form == "WEBP"
  most = decode_image.MAX_COSTLY if costly else decode_image.MAX_PIXELS
  side = math.isqrt(most)
  path = tmp_path / "x"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    Image.new(mode, (side, side)).save(path, form, **options)
  program = """
import sys, pathlib
from gmem_jax.data import decode_image
def memory(key):
  text = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(text.split(key + ":")[1].split()[0])
before = memory("VmRSS")
decode_image.load(pathlib.Path(sys.argv[1]), 3, 32)
print(memory("VmHWM") - before)
"""
  done = subprocess.run(
    [sys.executable, "-c", program, path],
    capture_output=True,
    text=True,
    check=True,
  )
  assert 4 * most < int(done.stdout) < 1e9 + 2 * path.stat().st_size
