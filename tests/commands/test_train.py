"""What training says, writes and refuses, from its start to its report."""

import contextlib
import io
import logging
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest

from gmem_jax.commands import runs, train
from gmem_jax.data import write_images
from gmem_jax.train import dataset as dataset_lib, metrics
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")

CHANGES = {
  "train__steps": 16,
  "eval__every": 0,
  "optim__decay_steps": 0,
}
# With the report: also a network without memory.
REPORTED = CHANGES | {"report__unconditional": True}


class Said(NamedTuple):
  """What a command printed, and what it logged."""

  printed: str
  logged: list[str]


def run(workdir: pathlib.Path, **changes) -> Said:
  printed, records = io.StringIO(), []
  handler = logging.Handler(logging.INFO)
  handler.emit = lambda record: records.append(record.getMessage())
  logger = logging.getLogger("gmem_jax")
  level = logger.level
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  try:
    with (
      contextlib.redirect_stdout(printed),
      jax.numpy_dtype_promotion("standard"),
    ):
      train.train_mode(tiny.make_config(**changes), workdir)
  finally:
    logger.setLevel(level)
    logger.removeHandler(handler)
  return Said(printed.getvalue(), records)


def times(workdir: pathlib.Path) -> dict[str, int]:
  """When each file was written."""
  return {
    str(path): path.stat().st_mtime_ns
    for path in workdir.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
  """A finished run with its report, and what it said."""
  workdir = tmp_path_factory.mktemp("reported")
  return workdir, run(workdir, **REPORTED)


def test_it_says_what_it_does_and_where_the_results_are(reported):
  workdir, said = reported
  assert any("without memory, to compare" in line for line in said.logged)
  assert any("step 16: sampling 72 images" in line for line in said.logged)
  assert any(
    line.startswith("step 16  eval/frechet")
    and line.endswith(f"{workdir}/samples/bank_0000016.png")
    for line in said.logged
  )
  *_, written, following = said.printed.splitlines()
  files = written.partition(f"Written to {workdir}: ")[2].split(", ")
  assert {"report.txt", "curves.png", "samples/bank_0000016.png"} <= set(files)
  assert all((workdir / file).exists() for file in files)
  assert "--mode=sample" in following
  assert "--mode=evaluate" in following


def test_a_finished_run_given_again_does_nothing(reported):
  workdir, _ = reported
  before = times(workdir)
  # Free keys are recorded by what trains only.
  said = run(workdir, **REPORTED, sampler__steps=5)
  assert times(workdir) == before
  (line,) = said.printed.splitlines()
  assert "finished" in line
  assert "16 steps" in line
  assert f"{workdir}/report.txt" in line
  assert "--config.train.steps" in line
  assert not said.logged


def test_a_finished_run_is_still_no_other_run(reported):
  with pytest.raises(ValueError, match=r"model\.depth: 2 there, 1 now"):
    run(reported[0], **REPORTED, model__depth=1, model__projector_depth=1)


def test_a_missing_report_is_made(reported):
  workdir, first = reported
  text = (workdir / "report.txt").read_text()
  record = (workdir / "metrics.jsonl").read_bytes()
  (workdir / "report.json").unlink()
  (workdir / "report.txt").unlink()
  said = run(workdir, **REPORTED)
  assert (workdir / "report.txt").read_text() == text
  assert (workdir / "metrics.jsonl").read_bytes() == record
  assert said.printed == first.printed


def test_a_sample_stands_beside_its_memory(reported):
  workdir, _ = reported
  config = tiny.make_config(**REPORTED)
  images = dataset_lib.load(config).train_images.pixels
  rows, _ = runs.draw_snippets(
    config,
    dataset_lib.load(config).train.bank,
    np.arange(config.eval.grid),
  )
  picture = write_images.read_png(workdir / "samples" / "bank_0000016.png")
  # 4 x 4 pairs of 8 x 8 pixels, four times as big.
  assert picture.shape[:2] == (4 * 34 + 2, 4 * 66 + 2)
  for i in (0, 5, 15):
    y, x = 2 + i // 4 * 34, 2 + i % 4 * 66
    memory = picture[y : y + 32 : 4, x : x + 32 : 4]
    np.testing.assert_array_equal(memory, images[rows[i]])
  # Without memory there is none to show.
  picture = write_images.read_png(
    workdir / "unconditional" / "samples" / "bank_0000016.png"
  )
  assert picture.shape[:2] == (4 * 34 + 2, 4 * 34 + 2)


def test_a_refused_batch_leaves_the_directory_free(tmp_path):
  changes = CHANGES | {"eval__scores": ()}
  with pytest.raises(ValueError, match="batch_size=4096"):
    # Another bank, too, of which nothing may stay.
    run(tmp_path, **changes, train__batch_size=4096, data__holdout=300)
  said = run(tmp_path, **changes, train__batch_size=8)
  assert "Trained to step 16" in said.printed
  assert "--mode=evaluate" not in said.printed


def test_a_finished_run_goes_on(tmp_path):
  changes = CHANGES | {"eval__scores": ()}
  run(tmp_path, **changes)
  more = changes | {"train__steps": 32}
  said = run(tmp_path, **more)
  # The schedule has room again; a rate of zero would teach nothing.
  assert any("decays until step 32" in line for line in said.logged)
  records = [
    r
    for r in metrics.read_jsonl(tmp_path / "metrics.jsonl")
    if "train/loss" in r
  ]
  assert [r["step"] for r in records] == [8, 16, 24, 32]
  assert records[2]["train/learning_rate"] > records[1]["train/learning_rate"]

  more |= {"train__steps": 40, "optim__learning_rate": 1e-3}
  with pytest.raises(ValueError, match="allow_changes=True"):
    run(tmp_path, **more)
  run(tmp_path, **more, train__allow_changes=True)
  records = metrics.read_jsonl(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in records if "train/loss" in r][-1] == 40
