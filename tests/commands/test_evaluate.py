"""--mode=evaluate on a run, and evaluation during training."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gmem_jax.commands import (
  evaluate as evaluate_command,
  runs,
  sample as sample_command,
  train as train_command,
)
from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.evaluate import build, networks, scores
from gmem_jax.parallel import lock, sharding
from gmem_jax.train import dataset as dataset_lib
from tests import tiny
from tests.evaluate import fakes

_TRAINED, _LOADED = {}, {}
train_classifier, load = networks.train_classifier, dataset_lib.load


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run at step 8 whose network is untrained."""
  return tiny.save_run(tmp_path_factory.mktemp("run"), lambda state: state)


@pytest.fixture(autouse=True)
def once(monkeypatch):
  """The classifier, of the images and the seed alone, and encoded images."""

  def cached(pixels, labels, seed, source):
    if seed not in _TRAINED:
      _TRAINED[seed] = train_classifier(pixels, labels, seed, source)
    return _TRAINED[seed]

  def loaded(config):
    key = config.data, config.encoder, config.seed
    if key not in _LOADED:
      _LOADED[key] = load(config)
    return _LOADED[key]

  monkeypatch.setattr(networks, "train_classifier", cached)
  monkeypatch.setattr(dataset_lib, "load", loaded)


def evaluate(workdir, **changes):
  """The scores, and the json that they stand in."""
  changes = {"sample__count": 80} | changes
  config = tiny.make_config(**changes)
  before = set((workdir / "evaluations").glob("*.json"))
  with jax.numpy_dtype_promotion("standard"):
    evaluate_command.evaluate_mode(config, workdir)
  (path,) = set((workdir / "evaluations").glob("*.json")) - before
  written = json.loads(path.read_text())
  path.unlink()
  return written["scores"], written


def test_samples_are_scored_as_they_would_be_written(workdir, capsys):
  found, written = evaluate(workdir)
  assert found.keys() == {"frechet", "frechet_ratio"}
  assert written["heldout"]["count"] == 360
  assert found["frechet"] > 0
  for key in ("sampler", "network_calls", "dtype", "seed", "bank", "network"):
    assert key in written["images"]["samples"]
  assert written["images"]["count"] == 80
  assert written["reference"]["count"] == 1437
  assert not list(workdir.glob("images/*/*.png"))  # nothing is kept
  said = capsys.readouterr().out
  assert f"frechet {found['frechet']:19.4f}"[:12] in said
  assert f"Wrote {workdir}/evaluations/step_" in said
  # The same images from files.
  config = tiny.make_config(sample__count=80)
  with jax.numpy_dtype_promotion("standard"):
    sample_command.sample_mode(config, workdir)
  (directory,) = (workdir / "images").iterdir()
  again, written = evaluate(workdir, eval__images=str(directory))
  assert again == pytest.approx(found, rel=1e-6)
  assert written["images"]["source"]["folder"] == str(directory)


def test_a_score_stands_beside_its_error_and_its_floor(workdir, capsys):
  found, written = evaluate(workdir, sample__count=200)
  assert found.keys() == {
    "frechet", "frechet_error", "frechet_ratio", "frechet_ratio_error",
  }  # fmt: skip
  assert 0 < found["frechet_error"] < found["frechet"]
  floor = written["floor"]
  assert (floor["count"], floor["others"]) == (200, 1237)
  assert 0 < floor["deviations"]["frechet"] < floor["scores"]["frechet"]
  # Of an untrained network, far above.
  assert floor["scores"]["frechet"] < found["frechet"] / 10
  said = capsys.readouterr().out
  assert "200 real ones from 1,237 others" in said
  (line,) = [each for each in said.splitlines() if each.startswith("frechet ")]
  shown = [float(each) for each in line.replace("±", "").split()[1:]]
  assert shown == pytest.approx(
    [
      found["frechet"],
      found["frechet_error"],
      *(floor[k]["frechet"] for k in ("scores", "deviations")),
    ],
    abs=1e-4,
  )
  bare, written = evaluate(workdir, sample__count=200, eval__repeats=0)
  for name in ("frechet", "frechet_ratio"):
    assert bare[name] == pytest.approx(found[name], rel=1e-6)
  assert len(bare) == 2
  assert "floor" not in written
  with pytest.raises(ValueError, match=r"eval\.repeats=1: one has no spread"):
    evaluate(workdir, eval__repeats=1)


def test_each_evaluation_has_a_file_of_its_own(workdir, tmp_path):
  """Of two folders, two samplers, two references; the same replaces its own."""
  images = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 1), np.uint8)
  for name in ("a", "b"):
    (tmp_path / name / "x").mkdir(parents=True)
    for i, image in enumerate(images):
      write_images.save_png(tmp_path / name / "x" / f"{i:03d}.png", image)
  changes = [
    {"eval__images": str(tmp_path / "a" / "x")},
    {"eval__images": str(tmp_path / "b" / "x")},
    {},
    {"sampler__steps": 4},
    {"eval__reference": str(tmp_path / "a" / "x")},
  ]
  written = []
  for change in (*changes, changes[0], changes[2]):
    config = tiny.make_config(sample__count=80, **change)
    with jax.numpy_dtype_promotion("standard"):
      evaluate_command.evaluate_mode(config, workdir)
    written.append(len(list((workdir / "evaluations").glob("*.json"))))
  assert written == [1, 2, 3, 4, 5, 5, 5]
  for path in (workdir / "evaluations").glob("*.json"):
    path.unlink()


def test_kept_samples_are_read_when_they_are_there(workdir, tmp_path):
  output = tmp_path / "kept"
  changes = {"eval__keep_images": True, "sample__output": str(output)}
  found, _ = evaluate(workdir, **changes)
  assert len(list(output.glob("*.png"))) == 80
  for i in range(40):  # other images in their place: they are what is scored
    image = np.zeros((8, 8, 1), np.uint8)
    write_images.save_png(output / f"{i:06d}.png", image)
  again, _ = evaluate(workdir, **changes)
  assert again["frechet"] > 1.5 * found["frechet"]
  match = f"sample.output={output}: process .* works there"
  with lock.held(output, "held"), pytest.raises(ValueError, match=match):
    evaluate(workdir, **changes)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"sample__count": 64}, "64 images are too few"),
    ({"eval__scores": ("fid",)}, "eval.inception_weights is empty.*https"),
    ({"eval__reference": "/gone.npz"}, "eval.reference='/gone.npz'.*not exist"),
    ({"eval__images": "/gone"}, "config.eval.images: /gone does not exist"),
    ({"eval__scores": ()}, "at least one of"),
  ],
)
def test_what_cannot_be_evaluated_is_refused(workdir, changes, match):
  with pytest.raises(ValueError, match=match):
    evaluate(workdir, **changes)
  assert not list(workdir.glob("evaluations/*"))


@pytest.mark.parametrize("key", ["eval__reference", "eval__images"])
def test_images_of_another_size_are_refused(workdir, tmp_path, key):
  for i in range(80):
    image = np.full((16, 16, 1), 3 * i, np.uint8)
    write_images.save_png(tmp_path / f"{i}.png", image)
  match = f"config.{key.replace('__', '.')}=.*of 16 x 16.* 8 x 8"
  with pytest.raises(ValueError, match=match):
    evaluate(workdir, **{key: str(tmp_path)})


def test_a_score_without_its_data_is_refused():
  config = tiny.make_config()
  mesh = sharding.make_mesh(config.mesh)
  with pytest.raises(ValueError, match="trains a small classifier"):
    build.make_evaluator(config, mesh, None)


def test_own_images_that_are_not_in_memory_are_no_reference():
  config = tiny.make_config(eval__scores=("fid",), report__unconditional=False)
  extractor = fakes.make_extractor()
  evaluator = scores.Evaluator(("fid",), extractor)
  with pytest.raises(ValueError, match=r"eval.reference='': fid: .*not in mem"):
    build.with_reference(config, evaluator, (6, 6, 3), None)
  evaluator = dataclasses.replace(evaluator, scores=("inception_score",))
  config = tiny.make_config(eval__scores=("inception_score",))
  found = build.with_reference(config, evaluator, (6, 6, 3), None)
  assert found.reference == scores.NO_REFERENCE


def test_too_few_images_are_refused_before_training():
  config = tiny.make_config(eval__count=64)
  mesh = sharding.make_mesh(config.mesh)
  own = dataset_lib.load(config).train_images
  with pytest.raises(ValueError, match=r"eval\.count: 64 images are too"):
    runs.make_evaluator(config, mesh, (8, 8, 1), own)


def test_training_without_scores_makes_pictures_alone():
  config = tiny.make_config(eval__scores=())
  mesh = sharding.make_mesh(config.mesh)
  assert runs.make_evaluator(config, mesh, (8, 8, 1), None) is None


def test_the_config_knows_every_score():
  assert sorted(sections.Score.__args__) == sorted(scores.SCORES)


def test_the_report_needs_its_score():
  with pytest.raises(ValueError, match="needs 'frechet' among them"):
    tiny.make_config(eval__scores=("fid",), report__unconditional=True)


@pytest.mark.slow
def test_the_digits_table_is_of_this_evaluation(tmp_path, capsys):
  """The report's distances are those of training's evaluator."""
  config = tiny.make_config(
    report__unconditional=True,
    train__steps=8,
    train__log_every=4,
    eval__every=8,
    checkpoint__every=8,
  )
  with jax.numpy_dtype_promotion("standard"):  # as optax needs it
    train_command.train_mode(config, tmp_path)
  table = capsys.readouterr().out
  found = json.loads((tmp_path / "report.json").read_text())
  mesh = sharding.make_mesh(config.mesh)
  dataset = dataset_lib.load(config)
  own, held = dataset.train_images, dataset.heldout_images
  evaluator = runs.make_evaluator(config, mesh, (8, 8, 1), own)
  expected = evaluator(build.images_source(held), len(held))["frechet"]
  assert found["distance/heldout_images"] == pytest.approx(expected, rel=1e-6)
  for directory, name in ((".", "from_bank"), ("unconditional",) * 2):
    lines = (tmp_path / directory / "metrics.jsonl").read_text().splitlines()
    last = [r for r in map(json.loads, lines) if "eval/frechet" in r][-1]
    distance = found[f"distance/{name}"]
    assert distance == pytest.approx(last["eval/frechet"], rel=1e-6)
    assert f"{distance:8.2f}\n" in table
