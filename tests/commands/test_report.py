import dataclasses
import json
import re

import numpy as np
import pytest

from gmem_jax.commands import report
from gmem_jax.data import sources, write_images
from tests import tiny

CONFIG = tiny.make_config(eval__thresholds=("frechet<=2",))


@pytest.fixture(scope="module")
def material():
  pixels = sources.digits().pixels
  copies = report.Samples(pixels[:32], np.arange(32))
  return report.Material(
    train=pixels[:200],
    heldout=pixels[200:300],
    from_bank=copies,
    from_heldout=report.Samples(pixels[200:232], np.arange(32)),
    unconditional=report.Samples(255 - pixels[:32], np.arange(32)),
    neighbours=report.NearestMemories(
      np.linspace(1, 0, 12).reshape(3, 4), np.arange(12).reshape(3, 4)
    ),
    distance=lambda x: float(x.mean()),
    floor=0.25,
  )


def write_curve(directory, curve):
  directory.mkdir()
  with (directory / "metrics.jsonl").open("w") as f:
    for step, (seconds, distance) in enumerate(curve):
      record = {"eval/frechet": distance, "perf/train_seconds": seconds}
      f.write(json.dumps({"step": step, **record}) + "\n")
      f.write(json.dumps({"step": step, "train/loss": 1.0 / (step + 1)}) + "\n")


@pytest.fixture
def runs(tmp_path):
  write_curve(tmp_path / "memory", [(10, 5.0), (20, 1.9), (30, 0.5)])
  write_curve(tmp_path / "other", [(11, 6.0), (33, 2.0)])
  return tmp_path / "memory", tmp_path / "other"


def test_numbers_compare_the_runs(material, runs):
  values = report.numbers(material, *runs)
  assert values["seconds/to_same_distance"] == 20
  assert values["seconds/memory"] == 30
  assert values["seconds/unconditional"] == 33
  assert values["distance/from_bank"] == material.from_bank.pixels.mean()
  assert values["distance/floor"] == 0.25
  # The samples are copies of their memories.
  assert values["memorisation/own_memory"] == 1
  assert values["memorisation/sample_distance"] == pytest.approx(0, abs=1e-6)


def test_a_distance_that_is_never_reached_is_no_number(material, tmp_path):
  write_curve(tmp_path / "memory", [(10, 5.0)])
  write_curve(tmp_path / "other", [(11, 2.0)])
  values = report.numbers(material, tmp_path / "memory", tmp_path / "other")
  assert np.isnan(values["seconds/to_same_distance"])


def test_too_few_images_have_no_floor(material, runs):
  fewer = dataclasses.replace(material, floor=None)
  text = report.write(fewer, *runs, CONFIG, steps=500)
  assert re.search("the others: +nan ", text)
  stored = json.loads((runs[0] / "report.json").read_text())
  assert stored["distance/floor"] is None


def test_files_and_table(material, runs):
  text = report.write(material, *runs, CONFIG, steps=500)
  memory_run = runs[0]
  for line in ("after 500 steps", "20.0", "33.0", "100.0%"):
    assert line in text
  assert (memory_run / "report.txt").read_text() == text.lstrip()
  stored = json.loads((memory_run / "report.json").read_text())
  assert stored["seconds/memory"] == 30
  picture = write_images.read_png(memory_run / "samples.png")
  assert picture.shape[1] - write_images.LABEL_WIDTH > 16 * 40
  assert write_images.read_png(memory_run / "curves.png").std() > 0


def test_picture_has_its_rows_in_order(material):
  picture = report.picture(material)[:, write_images.LABEL_WIDTH :]
  cell = 8 * 5 + 4
  for row, expected in (
    (0, material.train[3]),
    (2, material.heldout[3]),
    (4, material.unconditional.pixels[3]),
  ):
    y, x = row * cell + 4, 3 * cell + 4
    shown = picture[y : y + 40 : 5, x : x + 40 : 5]
    np.testing.assert_array_equal(shown, expected)


def test_neighbours_stand_behind_their_image(material, runs):
  report.write(material, *runs, CONFIG, steps=500)
  picture = write_images.read_png(runs[0] / "neighbours.png")
  picture = picture[:, write_images.LABEL_WIDTH :]
  cell = 8 * 5 + 4
  assert picture.shape[:2] == (3 * cell + 4, 6 * cell + 4)
  for row, column, expected in (
    (1, 0, material.heldout[1]),
    (1, 1, np.full((8, 8, 1), 255)),
    (1, 2, material.train[4]),
    (2, 5, material.train[11]),
  ):
    y, x = row * cell + 4, column * cell + 4
    shown = picture[y : y + 40 : 5, x : x + 40 : 5]
    np.testing.assert_array_equal(shown, expected)


def test_the_report_says_when_scores_were_reached(material, runs):
  text = report.write(material, *runs, CONFIG, steps=500)
  epochs = [CONFIG.train.batch_size / len(material.train)] * 2
  for name, number in zip(("memory", "no memory"), epochs, strict=True):
    (line,) = [x for x in text.splitlines() if f"frechet<=2, {name}" in x]
    assert f"{number:8.2f} epochs          1 steps" in line
  assert text.strip() in (runs[0] / "report.txt").read_text()


def test_a_run_without_evaluations_is_named(material, tmp_path):
  (tmp_path / "memory").mkdir()
  with pytest.raises(ValueError, match="no evaluation was written"):
    report.numbers(material, tmp_path / "memory", tmp_path / "memory")
