"""Images that are seen while they are made, mixtures, and searches."""

import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import bank as bank_lib
from gmem_jax.data import holdout, sources, write_images
from gmem_jax.diffusion import schedule
from gmem_jax.sample import search as search_lib
from tests import tiny

# Of all kinds: with one program for all steps, with several, of an SDE with its
# last step, and without a plan.
SETTINGS = {
  "ode": (),
  "guided": (
    "sampler.method=ode_heun2_euler",
    "sampler.steps=6",
    "sampler.guidance.scale=2.0",
    "sampler.guidance.start=0.3",
    "sampler.guidance.end=0.7",
  ),
  "sde": ("sampler.method=sde_heun", "sampler.steps=4"),
  "adaptive": ("sampler.method=ode_dopri5",),
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "digits"
  tiny.save_run(workdir)
  return gmem_jax.load(workdir)


def digits() -> np.ndarray:
  return holdout.split(sources.digits(), 360, (), 0)[0].pixels


@pytest.mark.parametrize("name", SETTINGS)
def test_who_looks_on_gets_the_same_images(generator, name):
  changed = generator.with_config(*SETTINGS[name])
  # The second call is not full.
  size = changed.source.sampler.call_size
  arguments = {"rows": [3, 7, 9], "per_row": size // 2, "seed": 2}
  expected = changed.sample(**arguments)
  seen = []
  made = changed.sample(**arguments, on_step=seen.append)
  # Compiled apart, the steps may round otherwise.
  difference = made.pixels.astype(int) - expected.pixels
  assert abs(difference).max() <= 1
  assert made.info == expected.info

  config = changed.config.sampler
  steps = 1
  if name != "adaptive":
    steps = len(schedule.plan(config))
    assert [p.step for p in seen] == [*range(steps + 1)] * 2
  assert {p.steps for p in seen} == {steps}
  numbers = np.unique(np.concatenate([p.numbers for p in seen]))
  np.testing.assert_array_equal(numbers, np.arange(size * 3 // 2))
  np.testing.assert_array_equal(seen[-1].pixels(), made.pixels[size:])


def test_images_grow_out_of_noise(generator):
  rows, seen = [3, 7, 9, 11], []
  made = generator.sample(rows=rows, on_step=lambda p: seen.append(p.pixels()))
  away = [abs(pixels.astype(float) - made.pixels).mean() for pixels in seen]
  assert away[0] > 30, "noise"
  assert away == sorted(away, reverse=True), "nearer at each step"
  assert away[-1] == 0


def test_what_is_raised_ends_the_work(generator):
  class EnoughError(Exception):
    pass

  steps = []

  def stop(preview):
    steps.append(preview.step)
    if preview.step == 1:
      raise EnoughError

  with pytest.raises(EnoughError):
    generator.sample(20, on_step=stop)
  assert steps == [0, 1]


def test_a_mixture_of_one_memory_is_that_memory(generator):
  made = generator.mix([5], [0.3], per_row=3, seed=4)
  expected = generator.sample(rows=[5], per_row=3, seed=4)
  difference = made.pixels.astype(int) - expected.pixels
  assert abs(difference).max() <= 1
  assert made.info["weights"] == [1]


def test_rows_files_and_pixels_can_be_mixed(generator, tmp_path):
  file = tmp_path / "five.png"
  write_images.save_png(file, digits()[5])
  # The same memory three times.
  made = generator.mix([5, file, digits()[5]], [1, 2, 1], per_row=2)
  np.testing.assert_allclose(
    made.pixels, generator.mix([5], [1], per_row=2).pixels, atol=1
  )
  assert made.info["weights"] == [0.25, 0.5, 0.25]
  assert len(made.info["memories"]) == 3
  other = generator.mix([5, 900], [1, 1], per_row=2)
  assert (other.pixels != made.pixels).any()
  np.testing.assert_array_equal(
    generator.mix([5, 900], [4, 4], per_row=2).pixels, other.pixels
  )


def test_pixels_have_the_features_of_their_rows(generator):
  pixels = digits()
  features = generator.features([5, pixels[5], np.repeat(pixels[5], 3, 2)])
  np.testing.assert_allclose(features[1], features[0], atol=1e-5)
  np.testing.assert_allclose(features[2], features[1], atol=1e-5)
  scores, rows = generator.search(features, k=2)
  assert (rows[:, 0] == 5).all()
  assert (scores[:, 0] > scores[:, 1]).all()
  assert generator.nearest(pixels[5], k=1).rows[0] == 5


def test_how_near_real_images_are(generator):
  bank = generator.source.bank
  near = search_lib.closeness(bank, count=len(bank.rows))
  unit = np.asarray(bank_lib.normalise(bank.rows))
  cosines = unit @ unit.T
  np.fill_diagonal(cosines, -1)
  np.testing.assert_allclose(near, np.sort(cosines.max(axis=1)), atol=1e-5)
  assert len(search_lib.closeness(bank, count=10)) == 10


@pytest.mark.parametrize(
  ("memories", "weights", "message"),
  [
    ([3, 5], [1], r"weights=\[1\]: one for each of 2"),
    ([], [], "one for each of 0"),
    ([3, 5], [1, -1], "at least 0"),
    ([3, 5], [0, 0], "one of them more"),
    ([3, 5], [1, float("nan")], "at least 0"),
    ([3, 5000], [1, 1], r"memories.*5000"),
    ([np.zeros((8, 8), np.uint8)], [1], r"uint8 of shape \(8, 8\) is no image"),
    ([np.zeros((8, 8, 3))], [1], "float64 of shape"),
  ],
)
def test_bad_mixtures_are_refused(generator, memories, weights, message):
  with pytest.raises(ValueError, match=message):
    generator.mix(memories, weights)
