"""The floor is what real images score, and falls with their number."""

import numpy as np
import pytest

from gmem_jax.evaluate import floor, frechet, precision_recall
from tests.evaluate import fakes
from tests.evaluate.test_scores import (
  ALL,
  arrays_source,
  features_of,
  make_evaluator,
  mesh,
)


@pytest.fixture(scope="module")
def evaluator():
  return make_evaluator(fakes.make_extractor(), fakes.images(1), repeats=10)


def test_the_floor_is_that_of_random_splits(evaluator):
  real = fakes.images(3)
  found = floor.measure(evaluator, arrays_source(real), 60)
  assert (found.count, found.others) == (60, 140)
  assert found.scores.keys() == found.deviations.keys()
  assert found.scores.keys() == {
    "fid", "sfid", "inception_score", "precision", "recall", "kid", "mind",
    "mmd_inception",
  }  # fmt: skip
  # The same by hand, on the networks' features of all images.
  features = features_of(evaluator.extractor, real)["pool"]
  random = np.random.default_rng(0)
  distances, recalls = [], []
  for _ in range(floor.SPLITS):
    order = random.permutation(len(real))
    ours, theirs = features[order[:60]], features[order[60:]]
    pair = (fakes.fit_gaussian(x.astype(float)) for x in (ours, theirs))
    distances.append(frechet.frechet_distance(*pair))
    recalls.append(precision_recall.precision_recall(theirs, ours, mesh())[1])
  assert found.scores["fid"] == pytest.approx(np.mean(distances), rel=1e-6)
  deviation = np.std(distances, ddof=1)
  assert found.deviations["fid"] == pytest.approx(deviation, rel=1e-4)
  assert found.scores["recall"] == pytest.approx(np.mean(recalls), rel=1e-6)
  assert 0 < deviation < found.scores["fid"]


def test_more_images_are_nearer(evaluator):
  source = arrays_source(fakes.images(3))
  few, many = (
    floor.measure(evaluator, source, count).scores for count in (20, 90)
  )
  assert many["fid"] < few["fid"] / 1.5
  assert many["mind"] < few["mind"] / 1.5
  # An unbiased distance has no floor.
  assert abs(many["kid"]) < 0.01 > abs(few["kid"])


def test_samples_at_the_floor_are_like_real_images(evaluator):
  """Other images of the reference's distribution are at it, on average."""
  real = fakes.images(1, 600)
  against = make_evaluator(evaluator.extractor, real[:300], ("fid",))
  found = floor.measure(against, arrays_source(real[:300]), 100)
  others = [
    against(arrays_source(real[start : start + 100]), 100)["fid"]
    for start in (300, 400, 500)
  ]
  assert found.scores["fid"] == pytest.approx(np.mean(others), rel=0.35)


def test_of_few_real_images_half_stand_for_samples(evaluator):
  source = arrays_source(fakes.images(3, 61))
  found = floor.measure(evaluator, source, 50_000, 2)
  assert (found.count, found.others) == (30, 31)
  assert floor.sizes(evaluator, 10**6, 50_000) == (50_000, 50_000)
  assert floor.sizes(evaluator, 10**6, 5_000) == (5_000, 10_000)


@pytest.mark.multidevice
def test_the_devices_change_nothing():
  real = arrays_source(fakes.images(3))
  one, four = (
    floor.measure(
      make_evaluator(fakes.make_extractor(8, n), fakes.images(1)), real, 70, 3
    )
    for n in (1, 4)
  )
  assert one.scores == pytest.approx(four.scores, rel=1e-5, abs=1e-7)
  assert one.deviations == pytest.approx(four.deviations, rel=1e-3, abs=1e-7)


def test_where_there_can_be_no_floor_it_is_said(evaluator, caplog):
  source = arrays_source(fakes.images(3, 24))
  with pytest.raises(ValueError, match="more than 24 real images are needed"):
    floor.measure(evaluator, source, 60)
  assert floor.of_reference(evaluator, source, 60, None) is None
  assert floor.of_reference(evaluator, None, 60, None) is None
  assert [record.message for record in caplog.records] == [
    "the floor: more than 24 real images are needed, there are 24",
    "the floor: the reference holds no images",
  ]
  quiet = make_evaluator(evaluator.extractor, fakes.images(1), ALL)
  assert floor.of_reference(quiet, source, 60, None) is None
  assert len(caplog.records) == 2


def test_the_error_is_the_spread_of_the_score(evaluator):
  """Over other sets of images of the same distribution."""
  names = ("fid", "inception_score", "precision_recall")
  against = make_evaluator(
    evaluator.extractor, fakes.images(1, 400), names, repeats=20
  )
  found = [against(arrays_source(fakes.images(5, 240, draw=i)), 240)
           for i in range(16)]  # fmt: skip
  for name in ("fid", "inception_score", "precision", "recall"):
    spread = np.std([each[name] for each in found], ddof=1)
    error = np.mean([each[f"{name}_error"] for each in found])
    assert error == pytest.approx(spread, rel=0.5), name


def test_halves_too_small_for_a_covariance_have_no_error(evaluator):
  found = evaluator(arrays_source(fakes.images(2)), 24)
  assert "fid" in found
  assert "fid_error" not in found
  assert found["sfid_error"] > 0  # Of five dimensions.
  assert found["kid_error"] > 0
