"""Memorisation: the nearest training latents, rows and what is shown."""

import dataclasses
import json

import numpy as np
import pytest

from gmem_jax.data import load_encoders, store, write_images
from gmem_jax.evaluate import audit, audit_report, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.train import dataset as dataset_lib
from tests import tiny
from tests.data import prepared


def test_nearest_is_exact_over_blocks(monkeypatch):
  rng = np.random.default_rng(0)
  train = rng.normal(size=(50, 3, 2)).astype(np.float32) + 30
  queries = train[[7, 49]] + np.float32(1e-3)
  monkeypatch.setattr(audit, "_BLOCK", 8)
  latents = audit.in_memory(train)
  distances, rows = audit.nearest(queries, latents)
  assert rows.tolist() == [7, 49]
  # Differences, not sums of squares: a thousandth of numbers about 30.
  np.testing.assert_allclose(distances, 1e-3 * 6**0.5, rtol=1e-2)
  all_distances = np.linalg.norm(
    (train[:, None] - train[None]).reshape(50, 50, -1), axis=-1
  )
  np.fill_diagonal(all_distances, np.inf)
  distances, rows = audit.nearest(train, latents, np.arange(50))
  assert rows.tolist() == all_distances.argmin(axis=1).tolist()
  np.testing.assert_allclose(distances, all_distances.min(axis=1), rtol=1e-5)


def test_memorisation_of_known_samples():
  train = np.array([[0.0, 0], [10, 0], [0, 10]])
  samples = np.array([[1.0, 0], [0, 9], [2, 0]])
  found = audit.memorisation(samples, audit.in_memory(train), np.arange(3))
  assert found.own_memory(np.array([0, 2, 1])) == pytest.approx(2 / 3)
  assert found.distances.tolist() == pytest.approx([1, 1, 2])
  assert found.real_distances.tolist() == pytest.approx([10, 10, 10])


def test_copies_are_found(tmp_path):
  """Of four samples two are training images."""
  config = tiny.make_config(eval__audit=4)
  dataset = dataset_lib.load(config)
  pixels = dataset.train_images.pixels
  samples = np.concatenate([pixels[[5, 300]], 255 - pixels[[0, 1]]])
  source = sources.Arrays({}, 4, (8, 8, 1), lambda numbers: samples[numbers])
  result = audit.Auditor(config, dataset, 4, (8, 8, 1))(source)
  assert result.latents.rows[:2].tolist() == [5, 300]
  assert result.latents.distances[:2].tolist() == pytest.approx([0, 0])
  assert result.bank_rows[:2].tolist() == [5, 300]
  np.testing.assert_allclose(result.bank_scores[:2], 1, rtol=1e-5)
  assert (result.latents.distances[2:] > 1).all()

  text = audit_report.write(tmp_path / "x", result, {"seed": 3})
  assert "nearer than real images ever are           0.5" in text
  stored = json.loads((tmp_path / "x_audit.json").read_text())
  assert stored["nearest_latent"][:2] == [5, 300]
  assert stored["of"] == {"seed": 3}
  assert sum(stored["histogram"]["samples"]) == 4
  assert sum(stored["histogram"]["real_images"]) == len(pixels)
  sheet = write_images.read_png(tmp_path / "x_audit.png")
  sheet = sheet[:, write_images.LABEL_WIDTH :]
  cell = 8 * 8 + 2  # enlarged eight times, and a gap
  for row in range(3):  # sample, nearest latent, nearest memory
    shown = sheet[row * cell + 2 :, cell + 2 :][:64:8, :64:8]
    np.testing.assert_array_equal(shown, pixels[300])
  assert write_images.read_png(tmp_path / "x_audit_histogram.png").std() > 0


def test_latents_that_are_not_in_memory(tmp_path):
  """Prepared data: the posterior's means of the images, not mirrored."""
  written = prepared.write(tmp_path / "data")
  data = store.PreparedRecords(store.open_store(tmp_path / "data"))
  latents = audit.of_records(data)
  numbers = np.array([21, 0, 7])
  means = np.stack([written[i]["mean"][0] for i in numbers])
  found = latents.read(numbers)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, means.astype(np.float32))
  distances, rows = audit.nearest(means + np.float32(0), latents)
  assert rows.tolist() == numbers.tolist()
  assert distances.tolist() == [0, 0, 0]


def test_images_that_are_not_in_memory_are_decoded():
  config = tiny.make_config(eval__audit=4)
  dataset = dataset_lib.load(config)
  assert dataset.train_images is not None
  pixels = dataset.train_images.pixels
  stored = dataclasses.replace(dataset, train_images=None)
  found = audit.Auditor(config, stored, 4, (8, 8, 1))(
    sources.Arrays({}, 4, (8, 8, 1), lambda numbers: pixels[numbers + 9])
  )
  numbers = np.arange(9, 13)
  np.testing.assert_array_equal(found.latents.rows, numbers)
  np.testing.assert_array_equal(found.pictures(numbers), pixels[numbers])


def test_what_cannot_be_audited_is_refused():
  config = tiny.make_config(eval__audit=4)
  with pytest.raises(ValueError, match="no training images to compare"):
    audit.Auditor(config, None, 4, (8, 8, 1))
  dataset = dataset_lib.load(config)
  with pytest.raises(ValueError, match="there are 3 images"):
    audit.Auditor(config, dataset, 3, (8, 8, 1))
  with pytest.raises(ValueError, match=r"encode to latents \(9, 9, 1\)"):
    audit.Auditor(config, dataset, 4, (9, 9, 1))


def test_image_shape():
  config = tiny.make_config()
  tokenizer = load_encoders.load_tokenizer(config)
  assert protocols.image_shape(tokenizer, (8, 8, 1)) == (8, 8, 1)
