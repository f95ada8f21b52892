import json
import re

import jax
import numpy as np
import pytest
from jax.extend import core as jax_core

from gmem_jax import rngs
from gmem_jax.data import write_images
from gmem_jax.parallel import sharding
from gmem_jax.sample import source as source_lib
from gmem_jax.train import dataset as dataset_lib, setup
from tests import tiny


@pytest.fixture(scope="module")
def sampling():
  """(sampler, weights, rows of the bank) of an untrained network."""
  return make_sampling()


def make_sampling(**changes):
  config = tiny.make_config(model__family="lightning_dit", **changes)
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.make_memory(config, dataset_lib.load(config), mesh)
  with jax.numpy_dtype_promotion("standard"):
    params = jax.jit(setup.make_init(config, memory))().params
  weights = source_lib.make_weights(config, memory, params)
  sampler = source_lib.make_sampler(config, memory, mesh)
  return sampler, weights, np.asarray(memory.bank.rows)


def images_of(sampling, images, batch_size):
  sampler, weights, rows = sampling
  images = np.asarray(images, np.int32)
  parts = [
    images[start : start + batch_size]
    for start in range(0, len(images), batch_size)
  ]
  return np.concatenate(
    [sampler(weights, 0, part, rows[(part * 7) % 100]) for part in parts]
  )


def test_an_image_does_not_depend_on_its_batch(sampling):
  whole = images_of(sampling, range(20), 20)
  assert whole.shape == (20, 8, 8, 1)
  assert whole.std() > 0
  assert len({image.tobytes() for image in whole}) == 20
  np.testing.assert_array_equal(images_of(sampling, range(20), 6), whole)
  np.testing.assert_array_equal(images_of(sampling, [17, 3], 8), whole[[17, 3]])


def test_one_program_serves_all_seeds(sampling):
  sampler, weights, rows = sampling
  numbers, features = np.arange(8, dtype=np.int32), rows[:8]
  first, second = (sampler(weights, s, numbers, features) for s in (0, 7))
  assert (first != second).any(axis=(1, 2, 3)).all()
  assert sampler.jitted._cache_size() == 1


def test_samples_are_made_without_8_bit_products():
  # Whose scales are a batch's.
  plain, other = (
    make_sampling(
      model__dtype="bfloat16", model__float8=float8, sample__dtype="bfloat16"
    )
    for float8 in (False, True)
  )
  np.testing.assert_array_equal(
    images_of(other, range(4), 4), images_of(plain, range(4), 4)
  )


def test_a_network_is_sampled_in_its_own_dtype(sampling):
  whole = images_of(sampling, range(4), 4)
  trained = make_sampling(model__dtype="bfloat16")
  np.testing.assert_array_equal(images_of(trained, range(4), 4), whole)
  rounded = make_sampling(sample__dtype="bfloat16")
  assert (images_of(rounded, range(4), 4) != whole).any()


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_accelerators_are_asked_for_the_precision(precision):
  sampler, weights, rows = make_sampling(sample__precision=precision)
  numbers = np.zeros(sampler.call_size, np.int32)
  program = sampler.jitted.lower(
    weights, rngs.root(0), numbers, np.asarray(rows[numbers]), numbers
  )
  asked = re.findall(r"precision = \[(\w+), \w+\]", program.as_text())
  # Embeddings of time and snippet are always float32.
  assert set(asked) == {precision.upper(), "HIGHEST"}


def test_no_step_cuts_or_casts_weights():
  """What is the same at each step is done once, before them."""
  sampler, weights, rows = make_sampling(sample__dtype="bfloat16")
  numbers = np.zeros(sampler.call_size, np.int32)
  traced = sampler.jitted.trace(
    weights, rngs.root(0), numbers, np.asarray(rows[numbers]), numbers
  )
  (loop,) = loops(traced.jaxpr.jaxpr)
  assert loop.params["num_consts"] > 20, "the weights do not come from outside"
  constants = loop.params["jaxpr"].jaxpr.invars[: loop.params["num_consts"]]
  width = sampler.network.width
  made = list(of_constants(loop.params["jaxpr"].jaxpr, constants))
  assert made, "nothing is known to depend on weights alone"
  large = [x for x in made if x.outvars[0].aval.size >= width**2]
  assert not large, large


def loops(jaxpr):
  """The scans of a program, outermost ones alone."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      yield equation
    else:
      for inner in jax_core.jaxprs_in_params(equation.params):
        yield from loops(inner)


def of_constants(jaxpr, constants):
  """The equations whose operands are all among the constants, or made of them.

  Products are left out: they are of weights and activations.
  """
  known = set(constants)
  for equation in jaxpr.eqns:
    operands = [x for x in equation.invars if not hasattr(x, "val")]
    inner = list(jax_core.jaxprs_in_params(equation.params))
    if inner:
      given = zip(inner[0].invars, equation.invars, strict=False)
      yield from of_constants(
        inner[0], [x for x, y in given if not hasattr(y, "val") and y in known]
      )
    elif operands and all(x in known for x in operands):
      known.update(equation.outvars)
      yield equation


def test_the_row_matters(sampling):
  sampler, weights, rows = sampling
  a = sampler(weights, 0, np.zeros(1, np.int32), rows[:1])
  b = sampler(weights, 0, np.zeros(1, np.int32), rows[1:2])
  assert (a != b).any()


def fake(images):
  return np.stack([np.full((8, 8, 1), i, np.uint8) for i in images])


def test_images_are_numbered_and_continue(tmp_path):
  made = []

  def make(images):
    made.extend(images.tolist())
    if len(made) > 9:
      raise KeyboardInterrupt
    return fake(images)

  with pytest.raises(KeyboardInterrupt):
    write_images.write_folder(tmp_path, 20, 5, make)
  assert len(list(tmp_path.glob("*.png"))) == 5
  assert write_images.write_folder(tmp_path, 20, 5, fake) == 15
  assert write_images.write_folder(tmp_path, 20, 5, fake) == 0
  for i in range(20):
    pixels = write_images.read_png(tmp_path / f"{i:06d}.png")
    np.testing.assert_array_equal(pixels, np.full((8, 8, 1), i))
  assert len(list(tmp_path.iterdir())) == 20, "no temporary file is left"


def test_grid_keeps_every_image():
  images = fake(range(1, 8))
  grid = write_images.make_grid(images, 3, scale=2, gap=1)
  assert grid.shape == (3 * 17 + 1, 3 * 17 + 1, 1)
  assert grid[1, 1, 0] == 1
  assert grid[18, 18, 0] == 5
  assert (grid[0] == 255).all()
  assert (grid[35:, 18:] == 255).all()


def test_colour_images_are_saved(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
  write_images.save_png(tmp_path / "a.png", pixels)
  np.testing.assert_array_equal(
    write_images.read_png(tmp_path / "a.png"), pixels
  )


def test_directory_of_other_settings_is_refused(tmp_path):
  def claim(seed):
    with write_images.claimed(tmp_path / "d", {"seed": seed, "step": 5}):
      pass

  claim(0)
  claim(0)
  with pytest.raises(ValueError, match=r"seed: 0 there, 1 now"):
    claim(1)
  stored = json.loads((tmp_path / "d" / "sample.json").read_text())
  del stored["made_on"]
  assert stored == {"seed": 0, "step": 5}
