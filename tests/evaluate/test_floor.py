"""The floor is what real images have, and falls with their number."""

import numpy as np
import pytest

from gmem_jax.evaluate import floor, frechet
from tests.evaluate import fakes
from tests.evaluate.test_scores import arrays_source, make_evaluator


@pytest.fixture(scope="module")
def evaluator():
  return make_evaluator(fakes.make_extractor(), fakes.images(1))


def test_the_floor_is_that_of_random_splits(evaluator):
  real = fakes.images(3)
  found = floor.frechet_floor(evaluator, arrays_source(real), "fid", 60)
  # The same by hand, on the networks' features of all images.
  extractor = evaluator.extractor
  parts = []
  for start in range(0, len(real), extractor.batch):
    numbers = np.arange(start, min(start + extractor.batch, len(real)))
    read = extractor.load(numbers, arrays_source(real))
    parts.append(extractor.start(numbers, *read)()["pool"])
  features = np.concatenate(parts).astype(np.float64)
  random = np.random.default_rng(0)
  distances = []
  for _ in range(floor.SPLITS):
    order = random.permutation(len(real))
    pair = features[order[:60]], features[order[60:]]
    distances.append(frechet.frechet_distance(*map(fakes.fit_gaussian, pair)))
  assert found == pytest.approx(np.mean(distances), rel=1e-6)
  assert 0 < np.std(distances) < found


def test_more_images_are_nearer(evaluator):
  source = arrays_source(fakes.images(3))
  few, many = (
    floor.frechet_floor(evaluator, source, "fid", count) for count in (20, 90)
  )
  assert many < few / 1.5


def test_too_few_real_images_are_refused(evaluator):
  source = arrays_source(fakes.images(3))
  with pytest.raises(ValueError, match=r"at least \d+ real ones are needed"):
    floor.frechet_floor(evaluator, source, "fid", source.count - 1)
