"""The published shards: against the published reader, and damaged."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.data import schema, upstream
from gmem_jax.models.encoders import protocols
from tests.fuzz import hostile

AS_IS = schema.Flips(False, False, False)
ARRAYS = ("latents", "representations", "cls_tokens")


def make_shard(path, images=3, seed=0, **changes):
  """A shard of tiny shapes; a change replaces an array, None leaves it out."""
  random = np.random.default_rng(seed)
  shapes = {"latents": (2, 4, 4), "representations": (4, 6), "cls_tokens": (6,)}
  arrays = {"labels": random.integers(0, 9, images)}
  for name, shape in shapes.items():
    for end in ("", "_flip"):
      value = random.standard_normal((images, *shape)).astype(np.float32)
      arrays[name + end] = value
  arrays = {n: a for n, a in (arrays | changes).items() if a is not None}
  path.parent.mkdir(exist_ok=True)
  safetensors.numpy.save_file(arrays, path)
  return arrays


def all_close(actual, expected, name):
  """To 1e-4 of the maximum, as goldens are held."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, atol=1e-4 * scale, err_msg=name)


@pytest.fixture(scope="module")
def golden(golden_dir):
  data = dict(np.load(golden_dir / "data.npz"))
  opened = upstream.UpstreamRecords(golden_dir / "data_shards")
  stats = protocols.LatentStats(*map(jnp.asarray, opened.statistics()))
  return data, opened, stats


def check(data, prefix, record, stats, flips, label):
  """One of our records against what the published reader returned."""
  feature = f"{prefix}_feature_flip{int(flips.latent)}"
  latent = jnp.asarray(record["latent"])[None]
  normalised = protocols.normalise_latents(latent, stats)[0]
  all_close(np.moveaxis(normalised, -1, 0), data[feature], feature)
  for name, ours, flipped in (
    ("representation", record["tokens"], flips.tokens),
    ("cls", record["feature"], flips.feature),
  ):
    keys = [
      k for k in data if k.startswith(f"{prefix}_{name}_flip{int(flipped)}")
    ]
    assert len(keys) == 1, keys
    expected = data[keys[0]]  # Its first channels.
    all_close(ours[..., : expected.shape[-1]], expected, keys[0])
  assert record["label"] == label


@pytest.mark.golden
def test_items_golden(golden):
  data, opened, stats = golden
  assert len(opened) == int(data["len"])
  assert len(data["indices"]) > 0
  combinations = data["combos_flip_latent_repr_cls"].astype(bool).tolist()
  assert len(combinations) > 0
  for index in data["indices"].tolist():
    label = int(data[f"i{index}_label"])
    for flips in combinations:
      flips = schema.Flips(*flips)
      record = opened.read(index, flips)
      check(data, f"i{index}", record, stats, flips, label)


@pytest.mark.golden
def test_statistics_golden(golden, golden_dir, tmp_path):
  data, opened, stats = golden
  for name in ("mean", "std"):
    expected = data[f"latent_{name}"].reshape(-1)
    all_close(getattr(stats, name), expected, name)
  # Measured, where the published code has not left them beside the shards.
  for path in opened.paths:
    shutil.copy(path, tmp_path)
  measured = upstream.UpstreamRecords(tmp_path).statistics()
  for name, ours in zip(("mean", "std"), measured, strict=True):
    all_close(ours, data[f"latent_{name}"].reshape(-1), name)


@pytest.mark.golden
def test_scaled_and_denormalised_latents_golden(golden):
  data, opened, stats = golden
  keys = [k for k in data if k.startswith("nonorm_mult")]
  assert keys
  for key in keys:
    scale, index = key.removeprefix("nonorm_mult").split("_i")
    latent = opened.read(int(index), AS_IS)["latent"]
    all_close(np.moveaxis(latent, -1, 0) * float(scale), data[key], key)
  ours = protocols.denormalise_latents(
    jnp.moveaxis(jnp.asarray(data["denorm_in"]), 1, -1), stats
  )
  expected = np.moveaxis(data["denorm_out_mult1"], 1, -1)
  all_close(np.asarray(ours), expected, "denormalised")


@pytest.mark.golden
def test_bank_is_of_the_images_as_they_are_golden(golden):
  data, opened, _ = golden
  rows = opened.bank_rows()
  assert rows.shape[0] == len(opened)
  for index in data["indices"].tolist():
    key = next(k for k in data if k.startswith(f"i{index}_cls_flip0"))
    all_close(rows[index, : data[key].size], data[key], key)


def test_images_are_numbered_file_after_file(tmp_path):
  folder = tmp_path / "shards"
  second = make_shard(folder / "latents_rank01_shard000.safetensors", 2, 1)
  first = make_shard(folder / "latents_rank00_shard001.safetensors", 3, 2)
  opened = upstream.UpstreamRecords(folder)
  assert len(opened) == 5
  for index in range(5):
    arrays, inside = (first, index) if index < 3 else (second, index - 3)
    for flips in (AS_IS, schema.Flips(True, True, True)):
      record = opened.read(index, flips)
      end = "_flip" * flips.latent
      latent = np.moveaxis(record["latent"], -1, 0)
      np.testing.assert_array_equal(latent, arrays["latents" + end][inside])
      for name, field in (
        ("representations", "tokens"),
        ("cls_tokens", "feature"),
      ):
        expected = arrays[name + end][inside]
        np.testing.assert_array_equal(record[field], expected)
      assert record["label"] == arrays["labels"][inside]
      assert record["row"] == index
      for name, spec in opened.spec().items():
        assert (record[name].shape, record[name].dtype) == spec
  with pytest.raises(IndexError):
    opened.read(5, AS_IS)


def test_statistics_of_many_images_are_those_of_a_sample(tmp_path, monkeypatch):
  arrays = make_shard(tmp_path / "a.safetensors", images=50)
  monkeypatch.setattr(upstream, "_SAMPLE", 11)
  monkeypatch.setattr(upstream, "_CHUNK", 4)
  mean, std = upstream.UpstreamRecords(tmp_path).statistics()
  sample = arrays["latents"][np.linspace(0, 49, 11).astype(int)]
  np.testing.assert_allclose(mean, sample.mean((0, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(std, sample.std((0, 2, 3), ddof=1), rtol=1e-5)


def test_no_shards(tmp_path):
  with pytest.raises(ValueError, match=r"holds no \.safetensors"):
    upstream.UpstreamRecords(tmp_path)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"latents_flip": None}, "lacks latents_flip"),
    ({"labels": None, "cls_tokens": None}, "lacks cls_tokens, labels"),
    (
      {"representations": np.zeros((3, 4, 5), np.float32)},
      r"representations.*\[3, 4, 5\], expected \[3, 4, 6\]",
    ),
    (
      {"cls_tokens_flip": np.zeros((2, 6), np.float32)},
      r"cls_tokens_flip.*\[2, 6\], expected \[3, 6\]",
    ),
    (
      {"latents": np.zeros((3, 2, 4, 4), np.float16)},
      r"latents is F16 .* not F32 of 4 axes",
    ),
    ({"labels": np.zeros((3, 1), np.int64)}, "labels is I64"),
  ],
)
def test_bad_shard_is_named(tmp_path, changes, match):
  make_shard(tmp_path / "good.safetensors")
  make_shard(tmp_path / "hurt.safetensors", **changes)
  with pytest.raises(ValueError, match=f"hurt.safetensors.*{match}"):
    upstream.UpstreamRecords(tmp_path)


@pytest.mark.parametrize("left", [0, 5, 200, -1])
def test_cut_shard_is_named(tmp_path, left):
  path = tmp_path / "cut.safetensors"
  make_shard(path)
  path.write_bytes(path.read_bytes()[:left])
  with pytest.raises(ValueError, match=r"cut\.safetensors is damaged or cut"):
    upstream.UpstreamRecords(tmp_path)


def test_hostile_statistics_are_named(tmp_path):
  """Lists of 2^60 parts, and tensors of gigabytes in 64 bytes."""
  make_shard(tmp_path / "a.safetensors")
  records = upstream.UpstreamRecords(tmp_path)
  for name, message in (
    ("a doubling list of norms", "are no tensors"),
    ("repeated norms", "are not those of latents"),
  ):
    hostile.CASES["torch"][name](tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match=rf"latents_stats\.pt.*{message}"):
      records.statistics()


def test_bad_statistics_are_named(tmp_path):
  make_shard(tmp_path / "a.safetensors")
  (tmp_path / "latents_stats.pt").write_text(json.dumps({"mean": 0}))
  with pytest.raises(ValueError, match=r"latents_stats\.pt holds no latent"):
    upstream.UpstreamRecords(tmp_path).statistics()
