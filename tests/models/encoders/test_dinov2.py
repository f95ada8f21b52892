"""DINOv2: golden numbers, an independent implementation, and properties."""

import json
import pathlib
import re

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gmem_jax.convert import rules
from gmem_jax.convert.names import dinov2 as names
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models.encoders import dinov2, resize
from tests import recipe

# Of an array's maximum. Reached: 3e-5 for pixels, where the published code
# computes bicubic coordinates in float32 and ours in float64, and 1.4e-5 for
# the features behind them; 3e-7 for the table of positions.
TOLERANCE = 1e-4
POSITIONS_TOLERANCE = 1e-5


def _small(**fields) -> dinov2.DINOv2:
  settings = {"width": 32, "depth": 3, "heads": 4, "table": 16}
  return dinov2.DINOv2(**(settings | fields))


def _images(batch: int = 2, side: int = 256) -> jax.Array:
  return jax.random.uniform(
    jax.random.key(1), (batch, side, side, 3), minval=-1, maxval=1
  )


def _random_params(model: dinov2.DINOv2, scale: float = 0.3):
  """Random everywhere, so that no parameter can be left out unnoticed."""
  init = jax.eval_shape(model.init, jax.random.key(0), _images(1))["params"]
  leaves, tree = jax.tree.flatten(init)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return tree.unflatten(
    scale * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  )


def _block(model: dinov2.DINOv2) -> dinov2.DINOv2Block:
  hidden = model.hidden or 4 * model.width
  return dinov2.DINOv2Block(model.width, model.heads, hidden, model.dtype)


def _block_params(params, index: int):
  return {"params": jax.tree.map(lambda x: x[index], params["blocks"])}


def _assert_close(ours, theirs: np.ndarray, tolerance: float, what: str):
  ours = np.asarray(ours, np.float64)
  assert ours.shape == theirs.shape, what
  error = np.abs(ours - theirs).max() / np.abs(theirs).max()
  print(f"{what}: {error:.1e}")
  assert error <= tolerance, f"{what} differs by {error:.1e} of its maximum"


# --- golden numbers ----------------------------------------------------------


def _golden_model(directory: pathlib.Path, name: str):
  """The network of a golden file: (model, params, the file's arrays)."""
  arrays = np.load(directory / f"{name}.npz", allow_pickle=False)
  config = json.loads(str(arrays["config"]))
  if "recipe_seed" in config:
    assert config["arch"] == "vit_base", "the manifest is ViT-B/14's"
    model = dinov2.DINOv2()
    shapes = recipe.manifest_shapes("dinov2_vitb14")
    state_dict = recipe.recipe_state_dict(config["recipe_seed"], shapes)
  else:
    assert config["layer_norm_eps"] == 1e-6
    width, patch = config["embed_dim"], config["patch_size"]
    model = dinov2.DINOv2(
      width=width,
      depth=config["depth"],
      heads=config["num_heads"],
      hidden=int(config["mlp_ratio"] * width),
      patch=patch,
      table=config["img_size"] // patch,
    )
    state_dict = torch_file.load(directory / f"{name}.pth")
  params = rules.to_flax(names.RULES, state_dict)
  return model, jax.tree.map(jnp.asarray, params), arrays


class _Computed:
  """Everything that a golden file may hold, computed when asked for by name."""

  def __init__(self, model: dinov2.DINOv2, params, images_u8: np.ndarray):
    unit = jnp.asarray(images_u8, jnp.float32) / 255
    self.model, self.params = model, params
    self.pixels = dinov2.preprocess(2 * unit - 1)
    apply = jax.jit(model.apply)
    self.cls, self.tokens = apply({"params": params}, 2 * unit - 1)
    self.cls_unmapped, _ = apply({"params": params}, unit)

  def positions(self, rows: int, columns: int, channels: int) -> jax.Array:
    table = self.model.apply(
      {"params": self.params}, rows, columns, method="positions"
    )
    return table[..., :: table.shape[-1] // channels]

  def after_block(self, index: int) -> jax.Array:
    """Tokens after block `index`; those that enter the first for -1."""
    tokens = self.model.apply(
      {"params": self.params}, self.pixels, method="embed"
    )
    for i in range(index + 1):
      tokens = _block(self.model).apply(_block_params(self.params, i), tokens)
    return tokens

  def __getitem__(self, name: str):
    pixels = einops.rearrange(np.asarray(self.pixels), "b h w c -> b c h w")
    every = re.fullmatch(r"(.+)_every(\d+)", name)
    if every and every[1] == "pre":
      return pixels[:, :, :: int(every[2]), :: int(every[2])]
    if every:
      return self[every[1]][:, :: int(every[2])]
    if block := re.fullmatch(r"mid_block(\d+)", name):
      return self.after_block(int(block[1]))
    norm = jnp.linalg.norm(self.cls, axis=-1, keepdims=True)
    return {
      "pre_shape": lambda: np.array(pixels.shape),
      "pre_rows0": lambda: pixels[:, :, 0],
      "pre_cols_last": lambda: pixels[..., -1],
      "pre_sum_per_channel": lambda: pixels.sum((2, 3), dtype=np.float64),
      "pre_min_max": lambda: np.array([pixels.min(), pixels.max()]),
      "x_norm_clstoken": lambda: self.cls,
      "x_norm_patchtokens": lambda: self.tokens,
      "patch_token_mean": lambda: self.tokens.mean(axis=1),
      "cls_normalised": lambda: self.cls / norm,
      "clstoken_if_image_in_0_1": lambda: self.cls_unmapped,
      "mid_tokens_in": lambda: self.after_block(-1),
    }[name]()


@pytest.mark.golden
@pytest.mark.parametrize(
  "name",
  [
    "dinov2_tiny",
    pytest.param("dinov2_recipe_full", marks=pytest.mark.slow),
  ],
)
@jax.default_matmul_precision("highest")
def test_golden(golden_dir, name):
  model, params, arrays = _golden_model(golden_dir, name)
  computed = _Computed(model, params, arrays["images_u8_nhwc"])
  compared = []
  for key in set(arrays.files) - {"config", "images_u8_nhwc"}:
    theirs = arrays[key]
    if theirs.dtype.kind == "U":  # notes
      continue
    if grid := re.fullmatch(r"pos_embed_(\d+)x(\d+)", key):
      rows, columns = int(grid[1]), int(grid[2])
      ours = computed.positions(rows, columns, theirs.shape[-1])
      _assert_close(ours, theirs, POSITIONS_TOLERANCE, key)
    else:
      _assert_close(computed[key], theirs, TOLERANCE, key)
    compared.append(key)
  stems = {re.split(r"_|\d", key)[0] for key in compared}
  assert stems >= {"pos", "pre", "x", "mid"}, f"{name} held only {compared}"


@pytest.mark.golden
def test_file_survives_the_round_trip(golden_dir):
  theirs = torch_file.load(golden_dir / "dinov2_tiny.pth")
  shapes = {
    key: value.shape for key, value in theirs.items() if key != "mask_token"
  }
  params = rules.to_flax(names.RULES, theirs)
  ours = rules.to_torch(names.RULES, params, shapes)
  ours |= rules.buffers(names.RULES, theirs)
  assert sorted(ours) == sorted(theirs)
  for key, value in theirs.items():
    np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_names_are_those_of_the_published_file():
  shapes = recipe.manifest_shapes("dinov2_vitb14")
  paths, buffers, problems = rules.plan(names.RULES, shapes)
  assert (problems, buffers) == ([], ["mask_token"])
  model = dinov2.DINOv2()
  init = jax.eval_shape(model.init, jax.random.key(0), _images(1))["params"]
  assert set(paths) == set(traverse_util.flatten_dict(init, sep="/"))
  count = sum(leaf.size for leaf in jax.tree.leaves(init))
  total = sum(int(np.prod(shape)) for shape in shapes.values())
  assert count + int(np.prod(shapes["mask_token"])) == total


# --- an independent implementation ------------------------------------------

_TRANSFORMERS_NAMES = (
  ("cls_token", "embeddings.cls_token"),
  ("pos_embed", "embeddings.position_embeddings"),
  ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
  ("blocks.", "encoder.layer."),
  ("attn.proj", "attention.o_proj"),
  ("ls1.gamma", "layer_scale1.lambda1"),
  ("ls2.gamma", "layer_scale2.lambda1"),
)


def _transformers_state_dict(params) -> dict[str, np.ndarray]:
  """Our parameters under the names of `transformers`."""
  out = {}
  for key, value in rules.to_torch(names.RULES, params).items():
    key = re.sub(r"^norm\.", "layernorm.", key)
    for hub, theirs in _TRANSFORMERS_NAMES:
      key = key.replace(hub, theirs)
    if "attn.qkv" in key:
      for part, third in zip("qkv", np.split(value, 3), strict=True):
        out[key.replace("attn.qkv", f"attention.{part}_proj")] = third
    else:
      out[key] = value
  return out


@pytest.mark.torch
@jax.default_matmul_precision("highest")
def test_equals_transformers():
  """Reached: 8e-7 of the maximum."""
  torch = pytest.importorskip("torch", reason='needs the extra "oracle"')
  transformers = pytest.importorskip(
    "transformers", reason='needs the extra "oracle"'
  )
  model = _small()
  params = _random_params(model)
  config = transformers.Dinov2Config(
    hidden_size=model.width,
    num_hidden_layers=model.depth,
    num_attention_heads=model.heads,
    mlp_ratio=4,
    patch_size=model.patch,
    image_size=model.patch * model.table,
  )
  # Its table has the grid's size here: the two resample it differently.
  state_dict = {
    key: torch.from_numpy(np.array(value))
    for key, value in _transformers_state_dict(params).items()
  }
  state_dict["embeddings.mask_token"] = torch.zeros(1, model.width)
  theirs = transformers.Dinov2Model(config).eval()
  theirs.load_state_dict(state_dict, strict=True)

  images = _images()
  pixels = np.array(
    einops.rearrange(dinov2.preprocess(images), "b h w c -> b c h w")
  )
  with torch.no_grad():
    expected = theirs(torch.from_numpy(pixels)).last_hidden_state.numpy()
  cls, tokens = model.apply({"params": params}, images)
  _assert_close(cls, expected[:, 0], 1e-5, "cls")
  _assert_close(tokens, expected[:, 1:], 1e-5, "tokens")


# --- properties --------------------------------------------------------------


def test_scan_equals_a_loop():
  model = _small()
  params = _random_params(model)
  images = _images()
  cls, _ = model.apply({"params": params}, images)
  tokens = model.apply(
    {"params": params}, dinov2.preprocess(images), method="embed"
  )
  for i in range(model.depth):
    tokens = _block(model).apply(_block_params(params, i), tokens)
  tokens = tokens - tokens.mean(-1, keepdims=True)
  tokens /= jnp.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6)
  scale, bias = params["norm"]["scale"], params["norm"]["bias"]
  expected = tokens * scale[None, None] + bias[None, None]
  np.testing.assert_allclose(cls, expected[:, 0], atol=1e-5)


def test_batch_members_do_not_meet():
  model = _small()
  params = _random_params(model)
  images = _images(3)
  together = model.apply({"params": params}, images)
  for i in range(3):
    alone = model.apply({"params": params}, images[i : i + 1])
    for ours, theirs in zip(together, alone, strict=True):
      np.testing.assert_allclose(ours[i], theirs[0], atol=1e-5)


def test_bfloat16_stays_near_float32():
  """Reached: 1e-2 of the maximum; the results are float32 all the same."""
  model = _small()
  params = _random_params(model)
  exact = model.apply({"params": params}, _images())
  rounded = model.clone(dtype=jnp.bfloat16).apply({"params": params}, _images())
  for a, b in zip(rounded, exact, strict=True):
    assert a.dtype == jnp.float32
    error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
    assert 1e-5 < error < 4e-2, error


def test_larger_images_have_more_tokens():
  model = _small(depth=1)
  cls, tokens = model.apply({"params": _random_params(model)}, _images(1, 512))
  assert cls.shape == (1, 32)
  assert tokens.shape == (1, 32 * 32, 32)


def test_positions_of_the_own_grid_are_the_table():
  model = _small()
  params = _random_params(model)
  table = model.apply({"params": params}, 16, 16, method="positions")
  np.testing.assert_array_equal(table, params["pos_embed"])


def test_positions_follow_rows_then_columns():
  """A table that grows with the row stays constant along every row."""
  model = _small()
  params = _random_params(model)
  rows = jnp.repeat(jnp.arange(16.0), 16)[None, :, None]
  params["pos_embed"] = jnp.concatenate(
    [jnp.full((1, 1, 32), 7.0), jnp.broadcast_to(rows, (1, 256, 32))], axis=1
  )
  table = model.apply({"params": params}, 4, 8, method="positions")
  np.testing.assert_array_equal(table[:, 0], 7.0)
  grid = table[0, 1:, 0].reshape(4, 8)
  np.testing.assert_allclose(grid, jnp.tile(grid[:, :1], (1, 8)), atol=1e-5)
  assert np.all(np.diff(grid[:, 0]) > 3)


@pytest.mark.parametrize("shape", [(1, 256, 288, 3), (1, 224, 224, 3)])
def test_wrong_image_sizes_are_refused(shape):
  with pytest.raises(ValueError, match="must be square and at least 256"):
    dinov2.preprocess(jnp.zeros(shape))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"heads": 5}, "width=32: must be a multiple of heads=5"),
    ({"patch": 15}, "patch=15: must divide 224"),
  ],
)
def test_wrong_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    _small(**fields).init(jax.random.key(0), _images(1))


def test_positions_resampled_twice():
  """Differs from once at 512 pixels alone."""
  once, twice = _small(table=37), _small(table=37, position_grid=16)
  params = {"params": _random_params(once)}

  def positions(model, side):
    return np.asarray(model.apply(params, side, side, method="positions"))

  np.testing.assert_array_equal(positions(twice, 16), positions(once, 16))
  small = positions(twice, 16)
  large = positions(twice, 32)
  np.testing.assert_array_equal(large[:, :1], small[:, :1])
  grid = jnp.asarray(small[:, 1:]).reshape(1, 16, 16, 32)
  grid = resize.bicubic_offset(grid, (32, 32), 0.1)
  np.testing.assert_array_equal(large[:, 1:], grid.reshape(1, -1, 32))
  # Twice has lost what 16 x 16 cannot hold.
  assert np.abs(large - positions(once, 32)).max() > 0.1
