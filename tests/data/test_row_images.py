"""Pictures of a bank's rows, from wherever their source images are."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from gmem_jax.bank import bank as bank_lib, edit, files as bank_files
from gmem_jax.data import (
  decode_image,
  row_images,
  schema as schema_lib,
  sources,
)
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  directory as directory_lib,
  setup,
)
from tests import tiny
from tests.data import prepared


def _run(workdir, config, rows, info):
  """What a run leaves beside its checkpoints."""
  stats = prepared_stats()
  bank = bank_lib.MemoryBank(rows)
  if config.bank.storage != "float32":
    edited = edit.compress(bank, info, config.bank.storage)
    bank, info = edited.bank, edited.info
  memory = setup.RunMemory(bank, info, stats, (4, 4, 2), 0)
  directory_lib.claim(config, workdir)
  setup.save_memory(workdir / "memory", memory)


def prepared_stats():
  from gmem_jax.models.encoders import protocols

  return protocols.LatentStats(np.zeros(2, "f"), np.ones(2, "f"))


@pytest.fixture
def folder(tmp_path):
  """Images of one colour each, and prepared data that skipped number 11."""
  names = [f"{i:02d}.png" for i in range(23)]
  (tmp_path / "photos").mkdir()
  for i, name in enumerate(names):
    colour = Image.new("RGB", (16, 20), (10 * i, 0, 0))
    colour.save(tmp_path / "photos" / name)
  return sources.Folder(tmp_path / "photos", 16)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_run_knows_the_files_that_it_was_prepared_from(
  folder, tmp_path, storage
):
  prepared.write(tmp_path / "prepared", files=folder.files)
  data = bank_files.read(tmp_path / "prepared")
  assert len(data.images.names) == data.bank.size == 22
  config = tiny.make_config(
    data__prepared=str(tmp_path / "prepared"),
    data__holdout=0,
    bank__storage=storage,
  )
  _run(tmp_path / "run", config, np.asarray(data.bank.rows), data.info)
  for path in ("prepared", "prepared/bank", "run", "run/memory"):
    stored = bank_files.read(tmp_path / path)
    assert stored.images == data.images, path
    images = row_images.find(tmp_path / path, stored)
    assert images.where == f"22 named, in {tmp_path}/photos"
    # Image 11 was skipped, so row 11 is image 12.
    for row, image in ((10, 10), (11, 12), (21, 22)):
      assert (images.load(row, 8) == [10 * image, 0, 0]).all()
  moved = row_images.find(tmp_path / "run", stored, str(tmp_path / "moved"))
  with pytest.raises(decode_image.BadImageError):
    moved.load(0, 8)
  # Other data in the same place are not taken for those of the run.
  prepared.write(tmp_path / "other", files=folder.files, seed=1)
  (tmp_path / "prepared").rename(tmp_path / "old")
  (tmp_path / "other").rename(tmp_path / "prepared")
  info = bank_files.read_info(tmp_path / "prepared" / "bank")
  bank_files.write_info(
    tmp_path / "prepared" / "bank", dataclasses.replace(info, digest="other")
  )
  assert bank_files.read(tmp_path / "run").images is None


def test_prepared_pixels_are_shown(tmp_path):
  written = prepared.write(tmp_path / "prepared", tokens="pixels")
  images = row_images.find(
    tmp_path / "prepared", bank_files.read(tmp_path / "prepared")
  )
  assert images.where == f"row i is image i, kept in {tmp_path}/prepared"
  for row in (0, 11, 21):
    np.testing.assert_array_equal(images.read(row), written[row]["pixels"])


def test_a_run_on_digits_knows_them(tmp_path):
  config = tiny.make_config()
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, sharding.make_mesh(config.mesh))
  directory_lib.claim(config, tmp_path)
  setup.save_memory(tmp_path / "memory", memory)
  stored = bank_files.read(tmp_path)
  images = row_images.find(tmp_path, stored)
  assert images.where == "row i is image i of digits/train"
  for row in (0, 700, 1436):
    expected = dataset.train_images.pixels[row]
    np.testing.assert_array_equal(
      images.read(row), np.repeat(expected, 3, axis=-1)
    )
  assert images.load(5, 96).shape == (96, 96, 3)


def test_other_banks_do_not_pretend(tmp_path):
  rows = np.ones((3, 4), np.float32)
  bank = bank_lib.MemoryBank(rows)
  info = bank_lib.make_info(bank, encoder="e", source="digits")
  bank_files.write(tmp_path / "bank", bank_files.Stored(bank, info))
  stored = bank_files.read(tmp_path / "bank")
  assert row_images.find(tmp_path / "bank", stored) is None
  # A run on the published features has no images.
  prepared.write(tmp_path / "prepared")
  schema = json.loads((tmp_path / "prepared" / schema_lib.FILE).read_text())
  assert schema["source"]["name"] == "numbers"
  stored = bank_files.read(tmp_path / "prepared")
  assert row_images.find(tmp_path / "prepared", stored) is None


@pytest.mark.parametrize("key", ["seed", "data"])
def test_a_config_that_lacks_a_key_is_named(tmp_path, key):
  config = json.loads(json.dumps(dataclasses.asdict(tiny.make_config())))
  del config[key]
  (tmp_path / "config.json").write_text(json.dumps(config))
  bank = bank_lib.MemoryBank(np.eye(4, dtype=np.float32))
  info = bank_lib.make_info(bank, encoder="e", source="digits")
  with pytest.raises(ValueError, match=rf"config\.json .* no '{key}'"):
    row_images.find(tmp_path, bank_files.Stored(bank, info))


def test_classes_are_first_folders():
  names = ("dog/a.png", "dog/b/c.png", "d.png", "", "/elsewhere/e.png")
  files = row_images.RowImages("here", lambda row: None, names)
  assert files.classes == ["dog", "dog", "", "", ""]
  flat = row_images.RowImages("here", lambda row: None, ("a.png", "b.png"))
  assert flat.classes == ()
