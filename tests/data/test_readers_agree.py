"""All commands take the same files of a folder, and see the same pixels."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gmem_jax.commands import prepare as prepare_command
from gmem_jax.data import encode_files, store
from gmem_jax.evaluate import open as open_lib
from gmem_jax.models.encoders import protocols, random_conv
from gmem_jax.sample import snippets
from tests import tiny

SIZE = 8
# In the order of classes, then of names. "linked" is a link to another place.
IMAGES = ["0/a.bmp", "0/b.JPG", "0/deep.png", "linked/c.webp", "linked/d.png"]
# Of another system, of a desktop, of a notebook; and what links make.
LEFT_OUT = [
  "0/._b.JPG", "0/.AppleDouble/b.JPG", "0/.DS_Store", "0/Thumbs.db",
  ".trash/x.png", "notes.txt",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Images of several kinds among other files, with links in circles."""
  base = tmp_path_factory.mktemp("folder")
  root, elsewhere = base / "root", base / "elsewhere"
  (root / "0").mkdir(parents=True)
  elsewhere.mkdir()
  (root / "linked").symlink_to(elsewhere)
  random = np.random.default_rng(0)
  for name in IMAGES:
    pixels = random.integers(0, 255, (10, 14, 3), np.uint8)
    if name == "0/deep.png":  # 16-bit grey, which Pillow would clip to white
      pixels = pixels[..., 0].astype(np.uint16) * 257
    Image.fromarray(pixels).save(root / name)
  for name in LEFT_OUT:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"no image")
  (root / "0" / "up").symlink_to("..")
  (elsewhere / "back").symlink_to(root)
  (root / "self").symlink_to(".")
  return root


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
  return tiny.make_config(
    data__source="folder",
    data__path=str(folder),
    data__prepared=str(tmp_path_factory.mktemp("prepared") / "out"),
    data__holdout=0,
    data__mirror=False,
    data__device_batch=2,
    eval__scores=(),
  )


def features_of(pixels) -> np.ndarray:
  encoder = random_conv.make(0, 3)
  floats = protocols.to_float(jnp.asarray(pixels))
  return np.asarray(encoder(floats)[0])


@pytest.fixture(scope="module")
def expected(folder):
  """What --mode=evaluate sees, as features."""
  source = open_lib.open_images(folder, crop=SIZE)
  assert source.count == len(IMAGES)
  pixels = source.read(np.arange(source.count))
  assert 50 < pixels[2].mean() < 200
  return features_of(pixels)


def test_prepare_agrees(config, expected):
  prepare_command.prepare_mode(config)
  opened = store.open_store(pathlib.Path(config.data.prepared))
  np.testing.assert_allclose(opened.bank_rows(), expected, atol=1e-5)


def test_banks_agree(folder, config, expected, tmp_path):
  root, files = encode_files.list_images([str(folder)])
  assert [os.path.relpath(file, root) for file in files] == IMAGES
  encoder = encode_files.FileEncoder(config)
  encoded = encode_files.encode_all(encoder, files, tmp_path / "partial")
  assert encoded.skipped == ()
  np.testing.assert_allclose(encoded.features, expected, atol=1e-5)


def test_sampling_agrees(folder, config, expected):
  reader = snippets.Reader(config, channels=3, width=768, bank=lambda: None)
  found = reader.images([str(folder)], "--image")
  assert [snippet.label for snippet in found] == [
    os.path.basename(name) for name in IMAGES
  ]
  features = [snippet.feature for snippet in found]
  np.testing.assert_allclose(features, expected, atol=1e-5)
