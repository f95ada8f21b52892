"""Weights in several files with an index, and files that are cut off."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.convert import read, torch_export
from gmem_jax.files import safetensors_file, weights
from gmem_jax.files.torch_reader import torch_file
from tests.convert import helpers

# How Hugging Face's libraries name the shards of either format.
NAMES = {
  "safetensors": "model-{:05}-of-00002.safetensors",
  "torch": "pytorch_model-{:05}-of-00002.bin",
}
INDEX = "model.index.json"


def _split(tensors, directory, form):
  """Writes tensors in two shards with their index; returns its path."""
  directory.mkdir()
  items, places = list(tensors.items()), {}
  for i, part in enumerate((items[::2], items[1::2]), 1):
    file = NAMES[form].format(i)
    places |= {name: file for name, _ in part}
    if form == "torch":
      torch_export.save(dict(part), directory / file)
    else:
      arrays = {n: np.ascontiguousarray(a) for n, a in part}
      safetensors.numpy.save_file(arrays, directory / file)
  index = {"metadata": {"total_size": 0}, "weight_map": places}
  (directory / INDEX).write_text(json.dumps(index))
  return directory / INDEX


@pytest.fixture
def whole(golden_dir):
  return golden_dir / "lightningdit_c.pth"


@pytest.mark.golden
@pytest.mark.parametrize("form", NAMES)
def test_shards_are_the_whole_file(whole, tmp_path, form):
  index = _split(torch_file.load(whole), tmp_path / "parts", form)
  options = ["--format=safetensors", *helpers.settings(whole)]
  assert helpers.run(whole, tmp_path / "0", *options)[0] == 0
  params, metadata = weights.load_converted(tmp_path / "0")
  for i, source in enumerate((index, index.parent), 1):
    code, out, err = helpers.run(source, tmp_path / f"{i}", *options)
    assert code == 0, err
    assert "in 2 shards" in out
    ours, others = weights.load_converted(tmp_path / f"{i}")
    helpers.assert_same(ours, params)
    assert others["model"] == metadata["model"]
    assert others["source"]["sha256"] != metadata["source"]["sha256"]


def _lose(index, _):
  (index.parent / NAMES["safetensors"].format(2)).unlink()


def _lose_both(index, _):
  _lose(index, _)
  (index.parent / NAMES["safetensors"].format(1)).unlink()


def _swap(index, _):
  first, second = (NAMES["safetensors"].format(i) for i in (1, 2))
  shutil.copyfile(index.parent / first, index.parent / second)


def _leave(index, places):
  places["b"] = "../secret.safetensors"


def _nest(index, places):
  places["b"] = INDEX


def _two(index, _):
  shutil.copyfile(index, index.with_name("other.index.json"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_lose, "2 shards, of which 1 are not .*model-00002-of-00002.safetensors"),
    (_lose_both, "of which 2 are not .*model-00001.*, model-00002"),
    (_swap, "00002.safetensors and its index model.index.json differ in 2 nam"),
    (_leave, "names '../secret.safetensors' for b, no file beside it"),
    (_nest, "is JSON, and no index"),
    (_two, "give the file .* one of model.index.json, other.index.json"),
  ],
)
def test_shards_that_do_not_fit_are_named(tmp_path, change, message):
  arrays = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
  index = _split(arrays, tmp_path / "parts", "safetensors")
  assert read.open_source(index.parent).value.keys() == arrays.keys()
  content = json.loads(index.read_text())
  change(index, content["weight_map"])
  index.write_text(json.dumps(content))
  with pytest.raises(read.WrongFile, match=message):
    read.open_source(index.parent)


def test_a_cut_safetensors_file_says_so(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file({"a": np.ones((10, 10), np.float32)}, path)
  data = path.read_bytes()
  header = 8 + int.from_bytes(data[:8], "little")
  for size in (len(data) - 1, header + 1, header, header - 1, 20):
    path.write_bytes(data[:size])
    expected = len(data) if size >= header else header
    message = f"cut off: {size} bytes of at least {expected}"
    with pytest.raises(ValueError, match=message):
      read.open_source(path)
    with pytest.raises(ValueError, match=message):
      safetensors_file.SafetensorsFile(path)
  # Longer than it says is damaged in another way.
  path.write_bytes(data + b"x")
  with pytest.raises(ValueError, match="damaged"):
    read.open_source(path)


def test_a_cut_archive_says_so(tmp_path):
  np.savez(tmp_path / "x.npz", mu=np.zeros(9), sigma=np.zeros((9, 9)))
  data = (tmp_path / "x.npz").read_bytes()
  (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
  code, _, err = helpers.run(tmp_path / "x.npz", tmp_path / "out")
  assert code == 2
  assert f"cut off: {len(data) // 2:,} bytes of a zip" in err
