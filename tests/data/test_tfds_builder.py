"""Prepared data through TFDS, without TensorFlow."""

import sys

import pytest
import tensorflow_datasets as tfds

from gmem_jax.data import schema as schema_lib, store, tfds_builder
from tests.data import prepared


def load(directory, split, **kwargs):
  return tfds.data_source(
    tfds_builder.NAME,
    split=split,
    builder_kwargs={"directory": str(directory)},
    **kwargs,
  )


@pytest.mark.parametrize("tokens", ["bf16", "int8", "pixels"])
def test_records_are_those_of_our_reader(tmp_path, tokens):
  prepared.write(tmp_path / "d", tokens=tokens)
  source = load(tmp_path / "d", "train")
  ours = store.PreparedRecords(store.open_store(tmp_path / "d"))
  schema = ours.store.schema
  assert len(source) == len(ours) * schema.records_per_image
  for index in range(len(ours)):
    for view in (0, 1):
      number, inside = schema.locate(index, view)
      theirs = source[number]
      expected = ours.read(index, schema_lib.Flips(*(bool(view),) * 3))
      assert theirs.keys() == expected.keys() - {"row", "mirrored"}
      for name, value in theirs.items():
        if name not in ("pixels", "label"):
          value = value[inside]
        assert value.dtype == expected[name].dtype
        assert value.tobytes() == expected[name].tobytes(), name
  assert "tensorflow" not in sys.modules


def test_parts_of_the_split(tmp_path):
  prepared.write(tmp_path / "d")
  whole, first = load(tmp_path / "d", ["train", "train[:10]"])
  assert (len(whole), len(first)) == (44, 10)
  tail = load(tmp_path / "d", "train[40:]")
  assert [x["label"] for x in tail] == [
    whole[i]["label"] for i in range(40, 44)
  ]


def test_what_cannot_be_read_or_made_is_said(tmp_path):
  prepared.write(tmp_path / "d")
  (tmp_path / "d" / store.REPORT).unlink()
  with pytest.raises(Exception, match="is not finished"):
    load(tmp_path / "d", "train")
  with pytest.raises(Exception, match="no prepared data there"):
    load(tmp_path / "elsewhere", "train")


def test_without_tf_data_the_way_is_shown(tmp_path):
  prepared.write(tmp_path / "d")
  builder = tfds.builder(tfds_builder.NAME, directory=str(tmp_path / "d"))
  assert builder.info.features["tokens"].shape == (1, 16, 6)
  with pytest.raises(NotImplementedError, match=r"tfds\.data_source"):
    builder._as_dataset(split="train")
