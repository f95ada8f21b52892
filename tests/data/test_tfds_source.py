"""TFDS data sets as sources, without TensorFlow."""

import io
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gmem_jax.data import decode_image, holdout, tfds_source

NAMES = ("cat", "dog")


def pixels(i: int) -> np.ndarray:
  return np.full((20 + i, 30, 3), 20 * i, np.uint8)


class _Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  FEATURES: ClassVar[dict] = {}
  code_path = None  # To find it, TFDS needs a package that it does not declare.

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
    )

  def _split_generators(self, manager):
    del manager
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(5):
      data = io.BytesIO()
      Image.fromarray(pixels(i)).save(data, "PNG")
      if i == 3:  # cut off
        data = io.BytesIO(data.getvalue()[:40])
      data.seek(0)
      values = {"image": data, "label": i % 2, "file_name": f"{i}.png"}
      yield i, {name: values[name] for name in self.FEATURES}


class Pets(_Builder):
  FEATURES: ClassVar[dict] = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
    "label": tfds.features.ClassLabel(names=NAMES),
    "file_name": tfds.features.Text(),
  }


class Photos(_Builder):
  """One JPEG that ends too soon."""

  FEATURES: ClassVar[dict] = {"image": tfds.features.Image()}

  def _generate_examples(self):
    data = io.BytesIO()
    Image.fromarray(pixels(0)).save(data, "JPEG")
    yield 0, {"image": io.BytesIO(data.getvalue()[:-9])}


class Words(_Builder):
  FEATURES: ClassVar[dict] = {"file_name": tfds.features.Text()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  for builder in (Pets, Photos, Words):
    builder(data_dir=path, file_format="array_record").download_and_prepare()
  return str(path)


def test_images_labels_and_names(data_dir):
  source = tfds_source.TfdsImages("pets", "train", data_dir, 16)
  assert len(source) == 5
  assert source.info() == {
    "name": "pets/1.0.0",
    "split": "train",
    "records": 5,
  }
  seen = set()
  for i in range(5):
    picture = source.read(i)
    number = int(picture.name.split()[1].removesuffix(".png"))
    seen.add(number)
    assert picture.name == f"train/{i} {number}.png"
    assert picture.label == number % 2
    if number == 3:
      assert picture.pixels is None
      assert picture.note
    else:
      np.testing.assert_array_equal(picture.pixels, pixels(number))
  assert seen == set(range(5))


def test_truncated_images_are_filled_when_asked_for(data_dir):
  source = tfds_source.TfdsImages("photos", "train", data_dir, 16, fill=True)
  assert source.info()["truncated"] == "fill"
  picture = source.read(0)
  assert picture.note == decode_image.FILLED
  assert picture.pixels.shape == (20, 30, 3)
  source = tfds_source.TfdsImages("photos", "train", data_dir, 16)
  assert "truncated" in source.read(0).note
  assert source.read(0).pixels is None


def test_a_part_of_a_split(data_dir):
  assert len(tfds_source.TfdsImages("pets", "train[:2]", data_dir, 16)) == 2


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("pets", "test", r"split='test': .*Unknown split 'test'"),
    ("pets", "train[", r"split='train\[': cannot be read"),
    ("no_such_set", "train", r"tfds='no_such_set': .*not found"),
    ("words", "train", r"tfds='words': one image a record is needed"),
    (
      "imagenet2012",
      "train",
      r"tfds='imagenet2012'.*file_format='array_record'",
    ),
  ],
)
def test_what_cannot_be_read_says_why(data_dir, name, split, message):
  with pytest.raises(ValueError, match=message):
    tfds_source.TfdsImages(name, split, data_dir, 16)


def test_single_images_are_held_out(data_dir):
  source = tfds_source.TfdsImages("pets", "train", data_dir, 16)
  kept, held = holdout.split(source, 2, (), seed=0)
  assert (len(kept), len(held), len(source)) == (3, 2, 5)
  names = [
    [part.read(i).name for i in range(len(part))] for part in (kept, held)
  ]
  everything = [source.read(i).name for i in range(5)]
  assert sorted(names[0] + names[1]) == sorted(everything)
  assert kept.info()["name"] == "pets/1.0.0/train"
  with pytest.raises(ValueError, match=r"data\.holdout_groups.*data\.split"):
    holdout.split(source, 0, ("cat",), seed=0)
