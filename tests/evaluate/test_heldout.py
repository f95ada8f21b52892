"""Held-out images as a measure: recall of them, distances beside theirs."""

import dataclasses

import numpy as np
import pytest

from gmem_jax.evaluate import (
  frechet,
  precision_recall,
  reference,
  scores,
  statistics,
)
from tests.evaluate import fakes
from tests.evaluate.test_scores import (
  arrays_source,
  brute_force,
  features_of,
  make_evaluator,
  mesh,
)

NAMES = ("fid", "sfid", "precision_recall")
REAL, HELD = fakes.images(1, 300), fakes.images(1, 120, draw=7)


def held_out(evaluator, pixels=HELD):
  measured = reference.measure_statistics(
    arrays_source(pixels), evaluator.extractor,
    *scores.compared_heldout(evaluator.scores), None, "held-out",
  )  # fmt: skip
  return dataclasses.replace(evaluator, heldout=measured)


def test_recall_and_ratio_are_their_definitions():
  extractor = fakes.make_extractor()
  evaluator = held_out(make_evaluator(extractor, REAL, NAMES, 300))
  samples = fakes.images(3, 90)
  found = evaluator(arrays_source(samples), 90)
  ours, real, held = (
    features_of(extractor, x)["pool"].astype(float)
    for x in (samples, REAL, HELD)
  )
  assert found["recall_heldout"] == brute_force(held, ours, 3)[1]
  assert found["recall"] == brute_force(real, ours, 3)[1]
  gaussians = [fakes.fit_gaussian(x) for x in (ours, held, real)]
  own, other = (
    frechet.frechet_distance(x, gaussians[2]) for x in gaussians[:2]
  )
  # Of the pool alone: sFID is of a part of the same representation.
  assert found["frechet_ratio"] == pytest.approx(own / other, rel=1e-5)
  assert found["frechet_ratio"] > 1.5


def test_copies_recall_the_training_images_alone():
  extractor = fakes.make_extractor()
  evaluator = held_out(make_evaluator(extractor, REAL, NAMES, 300))
  # A few training images again and again: at them, and nowhere else.
  copies = REAL[np.arange(280) % 40]
  found = evaluator(arrays_source(copies), 280)
  assert found["precision"] == 1
  assert found["recall_heldout"] == 0
  assert found["recall"] == pytest.approx(40 / 300)
  others = evaluator(arrays_source(fakes.images(1, 280, draw=8)), 280)
  assert others["recall_heldout"] > 0.8
  assert others["frechet_ratio"] < 1.5


def test_the_ratio_is_a_mean_over_representations():
  rng = np.random.default_rng(0)
  pairs = []
  for scale in (1.0, 100.0):
    a, b = (scale * rng.normal(size=(60, 4)) for _ in range(2))
    pairs.append((fakes.fit_gaussian(a), fakes.fit_gaussian(b)))
  own = [frechet.frechet_distance(*pair) for pair in pairs]
  assert own[1] > 1000 * own[0]
  distances = [3 * own[0], 5 * own[1]]
  assert frechet.ratio(distances, pairs) == pytest.approx(4)
  with pytest.raises(ValueError, match="are those of the reference"):
    frechet.ratio([1.0], [(pairs[0][0], pairs[0][0])])


@pytest.mark.multidevice
def test_the_devices_change_nothing():
  samples = arrays_source(fakes.images(3, 90))
  one, four = (
    held_out(
      make_evaluator(fakes.make_extractor(7, n), REAL, NAMES, repeats=3)
    )(samples, 90)
    for n in (1, 4)
  )
  assert one == pytest.approx(four, rel=1e-5)
  assert {"recall_heldout_error", "frechet_ratio_error"} <= one.keys()


def test_halves_without_all_representations_have_no_ratio():
  evaluator = held_out(
    make_evaluator(fakes.make_extractor(), REAL, NAMES, repeats=3)
  )
  found = evaluator(arrays_source(fakes.images(3, 24)), 24)
  assert "frechet_ratio" in found
  assert "frechet_ratio_error" not in found
  assert "recall_heldout_error" in found


def test_a_path_of_held_out_images_is_measured(tmp_path):
  evaluator = make_evaluator(fakes.make_extractor(), REAL, NAMES)
  np.savez(tmp_path / "held.npz", arr_0=HELD)
  found = reference.with_heldout(
    evaluator, tmp_path / "held.npz", (6, 6, 3), None
  )
  assert found.heldout.count == 120
  assert found.heldout.gaussians.keys() == found.heldout.rows.keys() == {"pool"}
  # Or its statistics, of the same networks alone.
  statistics.save(tmp_path / "stats.npz", found.heldout)
  again = reference.with_heldout(
    evaluator, tmp_path / "stats.npz", (6, 6, 3), None
  )
  np.testing.assert_array_equal(
    again.heldout.rows["pool"], found.heldout.rows["pool"]
  )
  others = make_evaluator(fakes.make_extractor(sha256="x"), REAL, NAMES)
  with pytest.raises(ValueError, match="of another inception"):
    reference.with_heldout(others, tmp_path / "stats.npz", (6, 6, 3), None)
  others = make_evaluator(fakes.make_extractor(), REAL, ("kid",))
  with pytest.raises(ValueError, match="kid none is of held-out images"):
    reference.with_heldout(others, tmp_path / "held.npz", (6, 6, 3), None)


def test_recall_is_half_of_precision_and_recall():
  rng = np.random.default_rng(0)
  real, samples = rng.normal(size=(57, 6)), rng.normal(size=(43, 6)) * 0.7
  both = precision_recall.precision_recall(real, samples, mesh())
  assert precision_recall.recall(real, samples, mesh()) == both[1]
  with pytest.raises(ValueError, match="of 3 samples: more than 3"):
    precision_recall.recall(real, samples[:3], mesh())
