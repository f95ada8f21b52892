"""What the tab Watch says of a run that has nothing to show yet."""

import json
import pathlib

import numpy as np
import pytest

from gmem_jax.data import write_images
from gmem_jax.studio import watch
from tests import tiny
from tests.studio import conftest


@pytest.fixture
def young(tmp_path):
  """A run before its first checkpoint, and where that lies until then."""
  run, away = tmp_path / "young", tmp_path / "away"
  tiny.save_run(run)
  (run / "checkpoints").rename(away)
  return run, away


def test_a_run_without_a_checkpoint_is_watched(young, visit, tmp_path):
  run, away = young
  with conftest.serving(run, tmp_path / "temporary") as running:
    said = (tmp_path / "temporary.log").read_text()
    assert "the run has no checkpoint yet" in said
    page = visit(running.url)
    page.get_by_text("no checkpoint yet, so there is nothing").wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Watch"]
    page.get_by_text("young has no numbers yet").wait_for()
    page.get_by_text("No samples yet.").wait_for()
    # Then all comes by itself.
    record = {"step": 10, "train/loss": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    page.get_by_text("young, step 10").wait_for()
    numbers = page.locator("#watch-numbers")
    numbers.get_by_text("0.5 at step 10").wait_for()
    (run / "samples").mkdir()
    pixels = np.zeros((16, 16, 1), np.uint8)
    write_images.save_png(run / "samples" / "bank_0000010.png", pixels)
    page.get_by_alt_text("samples/bank_0000010.png").wait_for()
    away.rename(run / "checkpoints")
    page.get_by_text("it has a checkpoint now: start the studio").wait_for()
    page.close()


def test_a_run_with_a_checkpoint_alone_says_so(server, visit):
  metrics = server.workdir / "metrics.jsonl"
  metrics.unlink(missing_ok=True)
  page = visit(server.url + "?tab=watch")
  page.get_by_text("digits has no numbers yet").wait_for()
  assert not page.locator("#watch-plot").is_visible()
  metrics.write_text('{"step": 7, "train/loss": 2.5}\n')
  page.get_by_text("digits, step 7").wait_for()
  page.locator("#watch-plot").wait_for()
  metrics.unlink()


def test_converted_weights_have_no_training():
  said = watch.describe("emoji", [], False)
  assert said == "emoji has converted weights: there is no training to watch"
  assert watch.read(pathlib.Path("gone")) == []
