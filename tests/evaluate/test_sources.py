"""Folders and npz files of images."""

import numpy as np
import pytest
from PIL import Image

from gmem_jax.data import sources as data_sources
from gmem_jax.evaluate import open as open_lib, sources
from tests.data import prepared
from tests.evaluate import fakes


def write_folder(path, pixels, names=None):
  path.mkdir(parents=True, exist_ok=True)
  for i, image in enumerate(pixels):
    name = names[i] if names else f"{i:06d}.png"
    (path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path / name)
  return path


def test_folder_in_the_order_of_names(tmp_path):
  pixels = fakes.images(0, 3)
  names = ["b/2.png", "a/1.png", "b/10.png"]
  (tmp_path / "notes.txt").write_text("no image")
  source = open_lib.open_images(write_folder(tmp_path, pixels, names))
  assert (source.count, source.shape) == (3, (6, 6, 3))
  found = source.read(np.array([0, 2]))
  np.testing.assert_array_equal(found, pixels[[1, 0]])


def test_folder_of_samples_counts_no_contact_sheet(tmp_path):
  write_folder(tmp_path, fakes.images(0, 4))
  (tmp_path / "000002.png").rename(tmp_path / "grid.png")
  assert sources.ImageFolder(tmp_path).count == 4
  (tmp_path / "sample.json").write_text("{}")
  assert sources.ImageFolder(tmp_path).count == 3


def test_grey_and_rgb_files(tmp_path):
  grey = fakes.images(0, 2)[..., 0]
  write_folder(tmp_path, grey)
  rgb = sources.ImageFolder(tmp_path)
  assert rgb.shape == (6, 6, 3)
  np.testing.assert_array_equal(rgb.read(np.array([1]))[0, ..., 2], grey[1])
  one = sources.ImageFolder(tmp_path, channels=1)
  np.testing.assert_array_equal(one.read(np.array([1]))[0, ..., 0], grey[1])


def test_crop_makes_one_size(tmp_path):
  write_folder(tmp_path, fakes.images(0, 1, 8))
  write_folder(tmp_path, fakes.images(0, 1, 12), ["wide.png"])
  with pytest.raises(ValueError, match=r"wide.png is 12 x 12.* is 8 x 8"):
    sources.ImageFolder(tmp_path).read(np.arange(2))
  source = open_lib.open_images(tmp_path, crop=4)
  assert source.read(np.arange(2)).shape == (2, 4, 4, 3)


def test_formats_are_counted_by_contents(tmp_path, caplog):
  names = ["0.png", "1.png", "2.bmp"]
  write_folder(tmp_path, fakes.images(0, 3), names)
  info = sources.ImageFolder(tmp_path).info
  assert info["formats"] == {"BMP": 1, "PNG": 2}
  assert not caplog.text  # No pixel was lost.
  with (tmp_path / "3.png").open("wb") as file:  # Named for what it is not.
    Image.fromarray(fakes.images(1, 1)[0]).save(file, "JPEG")
  Image.fromarray(fakes.images(2, 1)[0]).save(tmp_path / "4.webp")
  info = sources.ImageFolder(tmp_path).info
  assert info["formats"] == {
    "BMP": 1, "JPEG (quality unknown)": 1, "PNG": 2,
    "WEBP (quality unknown)": 1,
  }  # fmt: skip
  (line,) = caplog.messages
  assert "1 JPEG (quality unknown), 2 PNG" in line
  assert line.endswith("lossy compression moves FID")


def test_a_file_that_is_no_image_is_named_before_the_pass(tmp_path):
  write_folder(tmp_path, fakes.images(0, 4))
  (tmp_path / "000003.png").write_bytes(b"text")
  with pytest.raises(
    ValueError, match=r"cannot read .*000003\.png as an image"
  ):
    sources.ImageFolder(tmp_path)


def test_a_changed_folder_is_another_one(tmp_path):
  write_folder(tmp_path, fakes.images(0, 2))
  before = sources.ImageFolder(tmp_path).info
  assert sources.ImageFolder(tmp_path).info == before
  write_folder(tmp_path, fakes.images(1, 1, 12))
  assert sources.ImageFolder(tmp_path).info != before


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_images(tmp_path, save):
  pixels = fakes.images(0, 9)
  save(tmp_path / "x.npz", labels=np.arange(9), arr_0=pixels)
  source = open_lib.open_images(tmp_path / "x.npz")
  assert (source.count, source.shape) == (9, (6, 6, 3))
  np.testing.assert_array_equal(source.read(np.array([7, 2])), pixels[[7, 2]])


def no_image(path):
  path.mkdir()


def damaged(path):
  write_folder(path, fakes.images(0, 2))
  (path / "000000.png").write_bytes(b"\x89PNG\r\n\x1a\n damage")


def half_prepared(path):
  prepared.write(path)
  (path / "report.json").unlink()


def no_zip(path):
  path.write_bytes(b"PK\x03\x04 damage")


def objects(path):
  np.savez(path, arr_0=np.array([{}], object))


def floats(path):
  np.savez(path, arr_0=np.zeros((2, 6, 6, 3)))


def empty(path):
  np.savez(path, arr_0=np.zeros((0, 6, 6, 3), np.uint8))


def other(path):
  np.savez(path, images=fakes.images(0, 2))


@pytest.mark.parametrize(
  ("name", "make", "match"),
  [
    ("folder", no_image, "no image there"),
    ("folder", damaged, "cannot read .*000000.png as an image"),
    ("folder", half_prepared, "is not finished"),
    ("gone", lambda path: None, "does not exist"),
    ("x.png", lambda path: path.write_bytes(b""), "neither a folder"),
    ("x.npz", no_zip, "no plain numpy file, or damaged"),
    ("x.npz", objects, "not plain values"),
    ("x.npz", floats, "uint8 images"),
    ("x.npz", empty, "holds no image"),
    ("x.npz", other, "holds no arr_0"),
  ],
)
def test_what_holds_no_images_is_refused(tmp_path, name, make, match):
  make(tmp_path / name)
  with pytest.raises(ValueError, match=match):
    open_lib.open_images(tmp_path / name)


def test_npz_is_not_cropped(tmp_path):
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(0, 2))
  with pytest.raises(ValueError, match="only the images of a folder"):
    open_lib.open_images(tmp_path / "x.npz", crop=4)


def test_a_folder_is_listed_as_prepare_lists_it(tmp_path):
  write_folder(tmp_path / "ref" / "a", fakes.images(0, 2))
  write_folder(tmp_path / "elsewhere", fakes.images(1, 3))
  (tmp_path / "ref" / "b").symlink_to(tmp_path / "elsewhere")
  # A companion file of another system, which is no image.
  (tmp_path / "ref" / "a" / "._000000.png").write_bytes(b"no image")
  names, ignored = data_sources.list_images(tmp_path / "ref")
  assert sources.ImageFolder(tmp_path / "ref").count == len(names) == 5
  assert ignored == {"hidden": 1}


def test_16_bit_grey_is_scaled_as_prepare_scales_it(tmp_path):
  grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
  Image.fromarray(grey).save(tmp_path / "0.png")
  pixels = sources.ImageFolder(tmp_path).read(np.array([0]))[0]
  np.testing.assert_array_equal(pixels[..., 0], (grey // 257).astype(np.uint8))


def test_no_file_starts_another_program(tmp_path):
  # Pillow hands PostScript to Ghostscript, whatever the file is called.
  (tmp_path / "dog.png").write_bytes(
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    b"showpage\n%%EOF\n"
  )
  with pytest.raises(ValueError, match=r"dog.png as an image: no image: none"):
    sources.ImageFolder(tmp_path)
