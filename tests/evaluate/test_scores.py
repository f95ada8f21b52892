"""Inception Score, precision and recall, and the pass that gives them."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.special

from gmem_jax.evaluate import (
  accumulate,
  features as extractor_lib,
  frechet,
  inception_score,
  precision_recall,
  reference,
  scores,
  sources,
)
from gmem_jax.parallel import sharding
from tests.evaluate import fakes

ALL = (
  "fid", "sfid", "inception_score", "precision_recall", "kid", "mind",
  "mmd_inception",
)  # fmt: skip


def arrays_source(pixels, name="images"):
  return sources.Arrays(
    {"name": name}, len(pixels), pixels.shape[1:], lambda n: pixels[n]
  )


def make_evaluator(extractor, pixels, names=ALL, rows=150, repeats=0):
  gaussians, features = scores.compared(names)
  found = reference.measure_statistics(
    arrays_source(pixels), extractor, gaussians, features, None, "reference",
    count=rows,
  )  # fmt: skip
  return scores.Evaluator(names, extractor, found, repeats)


def features_of(extractor, pixels):
  """All features of images, name -> [n f]."""
  parts = []
  for start in range(0, len(pixels), extractor.batch):
    numbers = np.arange(start, min(start + extractor.batch, len(pixels)))
    read = extractor.load(numbers, arrays_source(pixels))
    parts.append(extractor.start(numbers, *read)())
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def mesh(devices=4):
  return sharding.make_mesh(
    sharding.MeshConfig(data=-1, fsdp=1, tensor=1), jax.devices()[:devices]
  )


def softmax_scores(logits, split):
  """The definition, split by split."""
  found = []
  for start in range(0, len(logits), split):
    p = scipy.special.softmax(
      logits[start : start + split].astype(float), axis=1
    )
    divergence = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
    found.append(np.exp(divergence.mean()))
  return np.mean(found)


def test_inception_score_is_its_definition_in_any_parts():
  logits = np.random.default_rng(0).normal(size=(230, 9)) * 3
  for part in (1, 7, 100, 230):
    score = inception_score.InceptionScore(9, split=50)
    for start in range(0, len(logits), part):
      score.add(logits[start : start + part])
    again = inception_score.InceptionScore(9)
    again.restore(score.arrays())
    assert again.score() == pytest.approx(softmax_scores(logits, 50), rel=1e-12)


def test_inception_score_of_known_classes():
  """Sure of k classes in turn: k. The same class always: 1."""
  score = inception_score.InceptionScore(5)
  score.add(np.eye(5).repeat(4, axis=0) * 1000)
  assert score.score() == pytest.approx(5)
  score = inception_score.InceptionScore(5)
  score.add(np.eye(5)[[2] * 9] * 1000)
  assert score.score() == pytest.approx(1)
  with pytest.raises(ValueError, match="no image"):
    inception_score.InceptionScore(5).score()


def brute_force(real, samples, k):
  def radii(x):
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return np.sort(distances, axis=1)[:, k]

  def inside(x, others):
    distances = np.linalg.norm(x[:, None] - others[None], axis=-1)
    return (distances <= radii(others)[None]).any(axis=1).mean()

  return inside(samples, real), inside(real, samples)


@pytest.mark.parametrize("devices", [1, 4])
def test_precision_and_recall_are_their_definition(devices):
  rng = np.random.default_rng(0)
  real = rng.normal(size=(57, 6)) + 100
  samples = rng.normal(size=(43, 6)) * 0.7 + 100.3
  found = precision_recall.precision_recall(real, samples, mesh(devices))
  expected = brute_force(real, samples, 3)
  assert found == pytest.approx(expected, abs=1e-12)
  assert 0 < found[1] < found[0] < 1


def test_precision_and_recall_of_equal_and_of_distant_sets():
  x = np.random.default_rng(0).normal(size=(20, 4))
  assert precision_recall.precision_recall(x, x, mesh()) == (1, 1)
  assert precision_recall.precision_recall(x, x + 100, mesh()) == (0, 0)
  with pytest.raises(ValueError, match="more than 3"):
    precision_recall.precision_recall(x, x[:3], mesh())


@pytest.mark.parametrize("copies", [4, 5])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_copies_of_an_image_lie_in_its_ball(copies, offset):
  """It has no radius where an image is there more often than neighbours count.

  Distances are rounded as float32 sums of |q|² are, and must not put a copy
  outside of the ball at whose centre it is.
  """
  rng = np.random.default_rng(0)
  rows = (rng.normal(size=(150, 512)) + offset).astype(np.float32)
  many = rng.permutation(rows.repeat(copies, axis=0))
  assert precision_recall.precision_recall(many, many, mesh()) == (1, 1)
  assert precision_recall.precision_recall(many, rows, mesh()) == (1, 1)


def test_the_slack_for_copies_counts_nothing_else():
  rng = np.random.default_rng(0)
  # As sparse as Inception's features: many points are near a boundary.
  real, samples = (
    np.maximum(rng.normal(shift, 1, (400, 256)), 0).astype(np.float32)
    for shift in (0, 0.05)
  )
  found = precision_recall.precision_recall(real, samples, mesh())
  expected = brute_force(real.astype(float), samples.astype(float), 3)
  assert found == expected
  assert 0.05 < min(found) <= max(found) < 0.95
  # Nor what is outside of a ball without radius by a few thousandths.
  away = rng.normal(size=real.shape)
  norm = np.linalg.norm(real - real.mean(axis=0), axis=1, keepdims=True)
  away *= 0.004 * norm / np.linalg.norm(away, axis=1, keepdims=True)
  near = (real + away).astype(np.float32)
  copies = real.repeat(4, axis=0)
  precision, _ = precision_recall.precision_recall(copies, near, mesh())
  assert precision == 0


@pytest.mark.multidevice
def test_scores_do_not_depend_on_batch_or_devices():
  real, samples = fakes.images(1), fakes.images(2)
  found = {}
  for devices, device_batch in ((1, 7), (1, 64), (4, 7), (4, 16)):
    extractor = fakes.make_extractor(device_batch, devices)
    evaluator = make_evaluator(extractor, real, repeats=3)
    found[devices, device_batch] = evaluator(arrays_source(samples), 190)
  one, *others = found.values()
  assert one.keys() == {
    "fid", "sfid", "inception_score", "precision", "recall", "kid", "kid_error",
    "mind", "mind_error", "fid_error", "sfid_error", "inception_score_error",
    "precision_error", "recall_error", "mmd_inception", "mmd_inception_error",
  }  # fmt: skip
  assert one["fid"] > 0.01
  for other in others:
    assert other == pytest.approx(one, rel=1e-6)


def test_scores_are_those_of_their_parts():
  real, samples = fakes.images(1), fakes.images(2)
  extractor = fakes.make_extractor()
  found = make_evaluator(extractor, real, rows=len(real))(
    arrays_source(samples), len(samples)
  )

  ours, theirs = (features_of(extractor, x) for x in (samples, real))
  for score, name in (("fid", "pool"), ("sfid", "spatial")):
    a, b = (
      fakes.fit_gaussian(x[name].astype(np.float64)) for x in (ours, theirs)
    )
    assert found[score] == pytest.approx(frechet.frechet_distance(a, b), 1e-6)
  assert found["inception_score"] == pytest.approx(
    softmax_scores(ours["logits"], 5000)
  )
  assert (found["precision"], found["recall"]) == pytest.approx(
    brute_force(theirs["pool"], ours["pool"], 3)
  )


class Killed(Exception):
  """Stands for SIGKILL."""


def never(numbers):
  raise AssertionError(f"{numbers} were read")


class Failing(sources.Arrays):
  """Images that end the process after some of them."""

  def read_until(self, stop):
    read = self.read

    def checked(numbers):
      if numbers.max() >= stop:
        raise Killed
      return read(numbers)

    self.read = checked
    return self


def make_accumulator(extractor, count):
  return accumulate.Accumulator(
    extractor.widths,
    moments=("pool", "spatial"),
    classes=True,
    keep={"pool": accumulate.evenly(count, 31)},
  )


# Makes a pass until its input ends.
HOLDER = """
import pathlib, sys
from gmem_jax.evaluate import accumulate
with accumulate.PartialStore(pathlib.Path(sys.argv[1]), 0.0) as store:
  (store.of("these images") / "sums").touch()
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_pass_continues_from_its_last_save(tmp_path):
  pixels = fakes.images(1)
  extractor = fakes.make_extractor(4)
  whole = make_accumulator(extractor, 190)
  accumulate.measure("", arrays_source(pixels), 190, extractor, whole, None)
  for stop in (70, 100, 101, 1000):
    source = Failing(
      {"name": "images"}, 200, pixels.shape[1:], lambda n: pixels[n]
    ).read_until(stop)
    part = make_accumulator(extractor, 190)
    try:
      with accumulate.PartialStore(tmp_path / "partial", 0.0) as store:
        accumulate.measure("", source, 190, extractor, part, store)
    except Killed:
      assert stop < 1000
      continue
  assert part.done == 190
  np.testing.assert_array_equal(part.rows("pool"), whole.rows("pool"))
  assert len(part.rows("pool")) == 31
  assert part.score.score() == pytest.approx(whole.score.score(), rel=1e-12)
  for name in ("pool", "spatial"):
    ours, theirs = (t.moments[name].gaussian() for t in (part, whole))
    np.testing.assert_allclose(ours.cov, theirs.cov, rtol=1e-9, atol=1e-15)
  # Another pass finds all done, and reads nothing.
  source = Failing({"name": "images"}, 200, pixels.shape[1:], never)
  with accumulate.PartialStore(tmp_path / "partial", 0.0) as store:
    for _ in range(2):
      accumulate.measure(
        "", source, 190, extractor, make_accumulator(extractor, 190), store
      )
    store.forget()
  assert not (tmp_path / "partial").exists()


def test_two_jobs_do_not_make_the_same_pass(tmp_path):
  """Nor does one that ends take away what another counts on."""
  partial = tmp_path / "partial"
  held = subprocess.Popen(
    [sys.executable, "-c", HOLDER, partial],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert held.stdout.readline() == "held\n"
  with accumulate.PartialStore(partial, 0.0) as store:
    with pytest.raises(ValueError, match=rf"evaluation .* process {held.pid} "):
      store.of("these images")
    others = store.of("others")
    (others / "sums").touch()
    store.forget()
    assert not others.exists()
  (theirs,) = partial.iterdir()
  assert (theirs / "sums").exists()
  held.communicate()
  with accumulate.PartialStore(partial, 0.0) as store:
    assert store.of("these images") == store.of("these images") == theirs
    store.forget()
  assert not partial.exists()


def test_what_is_not_finite_is_refused():
  class NaN(extractor_lib.Extractor):
    def start(self, numbers, own, pixels):
      found = super().start(numbers, own, pixels)()
      found["pool"] = np.full_like(found["pool"], np.nan)
      return lambda: found

  fake = fakes.make_extractor()
  extractor = NaN([fakes.network()], fake.mesh, 8)
  with pytest.raises(ValueError, match="NaN"):
    make_evaluator(extractor, fakes.images(1))


@pytest.mark.parametrize("count", [12, 201])
def test_too_few_images_are_refused_before_they_are_read(count):
  extractor = fakes.make_extractor()
  evaluator = make_evaluator(extractor, fakes.images(1))
  source = sources.Arrays({}, 200, (6, 6, 3), never)
  match = "too few for a covariance" if count == 12 else "there are 200"
  with pytest.raises(ValueError, match=match):
    evaluator(source, count)
  with pytest.raises(ValueError, match="too few for a covariance"):
    make_evaluator(extractor, fakes.images(1, n=12))


def test_images_that_a_network_cannot_read_are_refused():
  evaluator = make_evaluator(fakes.make_extractor(), fakes.images(1))
  with pytest.raises(ValueError, match="not 6"):
    evaluator(sources.Arrays({}, 200, (7, 7, 3), never), 200)


def test_unknown_scores_are_refused():
  with pytest.raises(ValueError, match=r"\['fud'\]: at least one of"):
    scores.networks_of(["fid", "fud"])
  with pytest.raises(ValueError, match="a reference is needed"):
    scores.require_reference(["fid"], "")
  scores.require_reference(["inception_score"], "")
