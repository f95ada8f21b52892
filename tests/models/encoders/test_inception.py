"""The FID network: golden numbers, both definitions of its input, names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.convert import rules
from gmem_jax.convert.names import inception as names
from gmem_jax.models.encoders import inception
from tests import recipe

# Of an array's maximum. Reached: 1.1e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def arrays(golden_dir):
  return np.load(golden_dir / "inception.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def state_dict(arrays):
  return recipe.recipe_state_dict(
    int(arrays["recipe_seed"]),
    recipe.manifest_shapes("inception_fid"),
    float(arrays["recipe_gain"]),
  )


@pytest.fixture(scope="module")
def params(state_dict):
  return jax.tree.map(jnp.asarray, rules.to_flax(names.RULES, state_dict))


@jax.jit
def _apply(params, images) -> inception.Activations:
  return inception.InceptionV3().apply({"params": params}, images)


def _images(batch: int = 2, side: int = 96) -> jax.Array:
  return jax.random.randint(
    jax.random.key(3), (batch, side, side, 3), 0, 256, jnp.uint8
  )


def _relative_error(ours, theirs) -> float:
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.golden
def test_golden(arrays, params):
  groups = re.findall(r"\bimages_(\w+)_u8_nhwc\b", " ".join(arrays.files))
  assert groups, "inception.npz holds no images"
  for group in groups:
    ours = _apply(params, jnp.asarray(arrays[f"images_{group}_u8_nhwc"]))
    last = ours.features[:, None, None]
    blocks = (ours.pool1, ours.pool2, ours.mixed_6e, last)
    computed = {
      f"features_{group}": ours.features,
      f"logits_{group}": ours.logits,
    } | {
      f"block{i}_{group}_mean_hw": block.mean(axis=(1, 2))
      for i, block in enumerate(blocks)
    }
    held = {k for k in arrays.files if re.search(rf"_{group}(_mean_hw)?$", k)}
    assert held >= {f"features_{group}", f"logits_{group}"}
    for key in sorted(held):
      error = _relative_error(computed[key], arrays[key])
      print(f"{key}: {error:.1e}")
      assert error <= TOLERANCE, f"{key} differs by {error:.1e} of its maximum"


def test_spatial_map_is_the_1x1_branch_of_mixed_6d(params):
  @jax.jit
  def spatial_and_branch(params, images):
    ours, captured = inception.InceptionV3().apply(
      {"params": params},
      images,
      capture_intermediates=lambda module, _: module.name == "branch1x1",
    )
    blocks = captured["intermediates"]
    return ours.spatial, blocks["Mixed_6d"]["branch1x1"]["__call__"][0]

  spatial, branch = spatial_and_branch(params, _images(1))
  assert spatial.shape == (1, 17, 17, 7)
  np.testing.assert_array_equal(spatial, branch[..., :7])
  assert float(spatial.min()) == 0.0  # after ReLU, as in the 2015 graph


def test_batch_members_do_not_meet(params):
  images = _images()
  other = images.at[1].set(255 - images[1])
  first, second = _apply(params, images), _apply(params, other)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
  assert _relative_error(first.features[1], second.features[1]) > 1e-3


@pytest.mark.parametrize("preprocessing", inception.PREPROCESSING)
def test_bytes_and_unit_floats_agree(preprocessing):
  images = _images()
  np.testing.assert_allclose(
    inception.preprocess(images.astype(jnp.float32) / 255, preprocessing),
    inception.preprocess(images, preprocessing),
    atol=1e-6,
  )


def test_preprocessing_of_images_of_the_own_size():
  """No resampling is left, so that only the scaling shows."""
  images = _images(1, inception.INPUT_SIDE)
  levels = np.asarray(images, np.float64)
  np.testing.assert_allclose(
    inception.preprocess(images), levels / 127.5 - 1, atol=1e-6
  )
  np.testing.assert_allclose(
    inception.preprocess(images, "adm"), (levels - 128) / 128, atol=1e-6
  )


def test_adm_preprocessing_moves_the_image():
  """The ADM suite's grid starts at the corner: a ramp is read further left."""
  side = 23  # 299 / 13
  ramp = jnp.linspace(0, 1, side, dtype=jnp.float32)
  images = jnp.broadcast_to(ramp[None, None, :, None], (1, side, side, 3))
  centred = (inception.preprocess(images)[0, 0, :, 0] + 1) / 2 * (side - 1)
  corner = inception.preprocess(images, "adm")[0, 0, :, 0]
  corner = (corner * 128 + 128) / 255 * (side - 1)
  position = np.arange(inception.INPUT_SIDE)
  inside = slice(13, -13)
  np.testing.assert_allclose(
    centred[inside], (position[inside] + 0.5) / 13 - 0.5, atol=1e-4
  )
  np.testing.assert_allclose(corner[inside], position[inside] / 13, atol=1e-4)


def test_batch_norm_uses_the_running_statistics():
  layer = inception.ConvNorm(4, (3, 3))
  keys = jax.random.split(jax.random.key(0), 5)
  x = jax.random.normal(keys[0], (2, 5, 5, 3))
  params = {
    "kernel": jax.random.normal(keys[1], (3, 3, 3, 4)),
    "scale": jnp.array([1.0, -2.0, 0.5, 3.0]),
    "bias": jnp.array([0.1, 0.2, -0.3, 0.4]),
    "mean": jnp.array([1.0, -1.0, 2.0, 0.0]),
    "var": jnp.array([1.0, 4.0, 0.25, 0.0]),
  }
  y = jax.lax.conv_general_dilated(
    x,
    params["kernel"],
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  scale, bias, mean, var = (
    np.asarray(params[k]) for k in ("scale", "bias", "mean", "var")
  )
  expected = (np.asarray(y) - mean) / np.sqrt(var + 1e-3) * scale + bias
  ours = layer.apply({"params": params}, x)
  assert _relative_error(ours, np.maximum(expected, 0)) < 1e-5


def test_file_survives_the_round_trip(state_dict, params):
  shapes = {
    key: value.shape
    for key, value in state_dict.items()
    if not key.endswith("num_batches_tracked")
  }
  ours = rules.to_torch(names.RULES, params, shapes)
  ours |= rules.buffers(names.RULES, state_dict)
  assert sorted(ours) == sorted(state_dict)
  for key, value in state_dict.items():
    assert ours[key].dtype == value.dtype
    np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_names_and_shapes_are_those_of_the_published_file(params):
  model = inception.InceptionV3()
  init = jax.eval_shape(model.init, jax.random.key(0), _images(1))["params"]
  assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8])
def test_images_of_unknown_range_are_refused(dtype):
  with pytest.raises(ValueError, match="must be uint8, or floating point"):
    inception.preprocess(jnp.zeros((1, 8, 8, 3), dtype))


def test_unknown_preprocessing_is_refused(params):
  model = inception.InceptionV3(preprocessing="tf")
  with pytest.raises(ValueError, match="preprocessing='tf': must be one of"):
    model.apply({"params": params}, _images(1))
