"""Published files to pictures: conversion, sampling, manipulation, kills."""

import itertools
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax import rngs
from gmem_jax.bank import interpolate
from gmem_jax.commands import sample as sample_command, train as train_command
from gmem_jax.data import decode_image, load_encoders, write_images
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.sample import draw_rows, host_bank, source as source_lib
from tests import published, tiny

pytestmark = [pytest.mark.golden, pytest.mark.process]


@pytest.fixture(scope="module")
def converted(golden_dir, tmp_path_factory):
  return published.convert_all(golden_dir, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


def command(workdir, values, config="b_in1k.py"):
  return [
    sys.executable, "-m", "gmem_jax.main", "--mode=sample",
    f"--config={tiny.ROOT}/configs/{config}",
    f"--workdir={workdir}",
    *[f"--config.{key}={value}" for key, value in values.items()],
  ]  # fmt: skip


def run(workdir, values, cache, devices=1, config="b_in1k.py"):
  result = subprocess.run(
    command(workdir, values, config),
    env=published.environment(cache, devices),
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def pictures(workdir: pathlib.Path) -> dict[str, bytes]:
  found = sorted((workdir / "images").rglob("0*.png"))
  return {path.name: path.read_bytes() for path in found}


def pixels_of(workdir: pathlib.Path) -> np.ndarray:
  found = sorted((workdir / "images").rglob("0*.png"))
  return np.stack([write_images.read_png(path) for path in found])


def record(workdir: pathlib.Path):
  (path,) = (workdir / "images").glob("*/sample.json")
  return json.loads(path.read_text())


def test_python_loads_converted_weights(converted, tmp_path):
  values = published.changes(converted)
  config = published.make_config("b_in1k", values)
  sample_command.sample_mode(config, tmp_path)
  changes = [f"{key}={value}" for key, value in values.items()]
  network = converted / "network"
  generator = gmem_jax.load(network, *changes, config="b_in1k")
  np.testing.assert_array_equal(generator.sample(6).pixels, pixels_of(tmp_path))
  with pytest.raises(ValueError, match="config=NAME, one of b_in1k, digits"):
    gmem_jax.load(network)
  # Of a size of our own, which both recipes have then.
  with pytest.raises(ValueError, match=r"config=NAME, one of b_in1k, xl_in1k$"):
    gmem_jax.load(network, *changes)
  with pytest.raises(ValueError, match=r"--config\.sampler\.step: there is no"):
    gmem_jax.load(network, "sampler.step=3")
  with pytest.raises(
    ValueError, match=rf"path={converted / 'bank'}: it is a ba"
  ):
    gmem_jax.load(converted / "bank")


def test_the_recipe_of_converted_weights_is_found(converted, caplog):
  changes = [f"{key}={value}" for key, value in sit_changes(converted).items()]
  network = converted / "sit"
  found = gmem_jax.load(network, *changes)
  (line,) = [r.message for r in caplog.records if "recipe" in r.message]
  assert (
    line == f"path={network}: taken to be of the recipe config='sit_xl2_in1k'"
  )
  named = gmem_jax.load(network, *changes, config="sit_xl2_in1k")
  assert found.config == named.config
  np.testing.assert_array_equal(found.sample(1).pixels, named.sample(1).pixels)
  # A recipe of another network never stands in.
  with pytest.raises(ValueError, match="config=NAME, one of b_in1k, digits"):
    gmem_jax.load(network, *changes, "model.depth=1", "model.projector_depth=1")


def assert_same_pixels(actual, expected):
  """Truncation turns rounding into a level, rarely."""
  difference = np.abs(actual.astype(int) - expected.astype(int))
  assert actual.shape == expected.shape
  assert difference.max() <= 1
  assert np.mean(difference > 0) < 0.01
  assert actual.std() > 1


def load(config):
  mesh = sharding.make_mesh(config.mesh)
  return source_lib.load(config, pathlib.Path(), mesh)


def euler(config, features, *, release=False):
  """Images by an Euler loop in the words of the paper; slow and plain."""
  source = load(config)
  sampler = source.sampler
  params = jax.tree.map(jnp.asarray, source.weights.params)
  tokenizer = jax.tree.map(jnp.asarray, load_encoders.load_tokenizer(config))
  channels = sampler.latent_shape[-1]
  stats = load_encoders.load_stats(config, tokenizer, channels)
  keys = rngs.keys(
    config.sample.seed, "sample/noise", jnp.arange(len(features))
  )
  x = jnp.stack([jax.random.normal(k, sampler.latent_shape) for k in keys])
  c = features / np.linalg.norm(features, axis=-1, keepdims=True)
  apply = jax.jit(sampler.network.apply)
  grid = np.linspace(0, 1, config.sampler.steps)
  shift = config.sampler.timestep_shift
  if shift:
    grid = shift * grid / (1 + (shift - 1) * grid)
  if release:
    grid = 1 - grid
  for now, after in itertools.pairwise(grid):
    t = jnp.full(len(x), now, jnp.float32)
    v = apply({"params": params}, x, t, jnp.asarray(c))
    x = x + np.float32(after - now) * v
  latents = np.asarray(x) * np.asarray(stats.std) + np.asarray(stats.mean)
  decoded = np.asarray(jax.jit(lambda x: tokenizer.decode(x))(latents))
  levels = 255 * (decoded + 1) / 2 if release else 127.5 * decoded + 128
  return np.trunc(np.clip(levels, 0, 255)).astype(np.uint8)


@pytest.fixture(scope="module")
def sde(converted, cache, tmp_path_factory):
  """(values, PNGs) of an undisturbed run on one device."""
  workdir = tmp_path_factory.mktemp("sde")
  values = published.changes(converted, sample__count=33)
  values["sample.batch_size"] = 7
  out = run(workdir, values, cache)
  assert "33 images made, 33 in" in out
  return values, pictures(workdir)


def test_pth_to_png_agrees_with_a_plain_loop(converted, cache, tmp_path):
  values = published.changes(converted)
  run(tmp_path, values, cache, config="b_in1k.py:ode")
  config = published.make_config("b_in1k", values, "ode")
  bank = host_bank.load(config).rows
  rows = draw_rows.draw_rows(0, jnp.arange(6), len(bank))
  assert_same_pixels(pixels_of(tmp_path), euler(config, bank[np.asarray(rows)]))
  found = record(tmp_path)
  assert found["network_calls"] == {"conditional": 2, "unconditional": 0}
  assert found["sampler"]["method"] == "ode_euler"
  assert found["sampler"]["guidance"]["scale"] == 1
  assert (found["dtype"], found["seed"]) == ("float32", 0)
  assert len(found["network"]["sha256"]) == len(found["bank"]["sha256"]) == 64
  assert list(tmp_path.rglob("grid.png"))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 32])
def test_no_batch_changes_a_bit(sde, cache, tmp_path, batch_size):
  values, expected = sde
  assert len(expected) == 33
  assert len(set(expected.values())) == 33
  run(tmp_path, values | {"sample.batch_size": batch_size}, cache)
  assert pictures(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.multidevice
def test_four_devices_change_nothing(sde, cache, tmp_path):
  values, expected = sde
  for batch_size in (7, 32):
    workdir = tmp_path / str(batch_size)
    run(workdir, values | {"sample.batch_size": batch_size}, cache, 4)
    assert pictures(workdir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 5])
def test_kills_change_nothing(kills, sde, cache, tmp_path):
  values, expected = sde
  values = values | {"sample.batch_size": 1}
  for _ in range(kills):
    before = len(pictures(tmp_path))
    process = subprocess.Popen(
      command(tmp_path, values),
      env=published.environment(cache),
      cwd=tiny.ROOT,
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and len(pictures(tmp_path)) <= before:
      time.sleep(0.001)
    process.kill()
    process.wait()
    assert before < len(pictures(tmp_path)) < 33, "the kill came too late"
  left = 33 - len(pictures(tmp_path))
  assert f"{left} images made, 33 in" in run(tmp_path, values, cache)
  assert pictures(tmp_path) == expected


@pytest.mark.slow
def test_guidance_costs_its_interval_alone(converted, cache, tmp_path):
  values = published.changes(converted, sampler__steps=50, sample__count=2)
  out = run(tmp_path, values, cache, config="b_in1k.py:guided")
  assert "111 network calls per image (12 of them for guidance)" in out
  calls = {"conditional": 99, "unconditional": 12}
  assert record(tmp_path)["network_calls"] == calls


def sample(config, workdir, **flags):
  """In this process, on four devices."""
  sample_command.sample_mode(config, workdir, **flags)
  return pixels_of(workdir)


def test_rows_and_several_samples_of_each(converted, tmp_path):
  values = published.changes(
    converted, sample__rows=(5, 3), sample__per_row=2, sample__format="both"
  )
  config = published.make_config("b_in1k", values, "ode")
  pixels = sample(config, tmp_path)
  bank = host_bank.load(config).rows
  assert_same_pixels(pixels, euler(config, bank[[5, 5, 3, 3]]))
  (path,) = tmp_path.rglob("samples_4.npz")
  with np.load(path) as file:
    assert file.files == ["arr_0"]
    assert file["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(file["arr_0"], pixels)
  (grid,) = tmp_path.rglob("grid.png")
  height, width, _ = write_images.read_png(grid).shape
  side = 2 * pixels.shape[1]  # enlarged, as there are few
  assert (height, width) == (2 * side + 6, 160 + 2 * side + 6)
  labels = write_images.read_png(grid)[:, :160]
  assert (labels[: height // 2] < 128).any()
  assert (labels[height // 2 :] < 128).any()


def test_only_the_npz(converted, tmp_path, capsys):
  values = published.changes(converted, sample__format="npz")
  config = published.make_config("b_in1k", values, "ode")
  sample_command.sample_mode(config, tmp_path)
  sample_command.sample_mode(config, tmp_path)
  lines = capsys.readouterr().out.splitlines()
  assert [x[:13] for x in lines if "made" in x[:13]] == [
    "6 images made", "0 images made",
  ]  # fmt: skip
  assert not pictures(tmp_path)
  (path,) = tmp_path.rglob("samples_6.npz")
  with np.load(path) as file:
    assert len(file["arr_0"]) == 6
    assert file["arr_0"].std() > 1


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Two image files of odd sizes."""
  directory = tmp_path_factory.mktemp("photographs")
  random = np.random.default_rng(0)
  for name, shape in (("a.png", (9, 7, 3)), ("b.jpg", (6, 8, 3))):
    small = Image.fromarray(random.integers(0, 256, shape, np.uint8))
    small.resize((shape[1] * 40, shape[0] * 40)).save(directory / name)
  return directory


def feature(config, path, *, published_reading=False):
  pixels = np.asarray(Image.open(path).convert("RGB"))
  cut = (
    decode_image.bilinear_crop
    if published_reading
    else decode_image.center_crop
  )
  floats = cut(pixels, 256).astype(np.float32) / 127.5 - 1
  if published_reading:
    floats = (floats + 1) / 2
  return np.asarray(
    load_encoders.load_features(config, 3)(jnp.asarray(floats)[None])[0]
  )[0]


@pytest.mark.parametrize("reading", ["bank", "published"])
def test_external_images(converted, tmp_path, photographs, reading):
  values = published.changes(
    converted, sample__per_row=2, sample__reading=reading, sample__bank=""
  )
  config = published.make_config("b_in1k", values, "ode")
  files = [str(photographs / name) for name in ("a.png", "b.jpg")]
  pixels = sample(config, tmp_path, images=files)
  features = np.stack(
    [
      feature(config, file, published_reading=reading == "published")
      for file in files
    ]
  )
  assert_same_pixels(pixels, euler(config, features.repeat(2, axis=0)))
  assert [m["image"] for m in record(tmp_path)["memories"]] == [
    "a.png", "b.jpg",
  ]  # fmt: skip


@pytest.mark.parametrize(
  "method",
  [
    "linear",
    "mask",
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("spherical", "concat")),
  ],
)
def test_between_two_memories(converted, tmp_path, photographs, method):
  values = published.changes(
    converted, sample__interpolation=method, sample__points=3
  )
  config = published.make_config("b_in1k", values, "ode")
  file = str(photographs / "a.png")
  ends = ["7", file] if method == "linear" else ["7", "2"]
  pixels = sample(config, tmp_path, pairs=[ends])
  bank = host_bank.load(config).rows
  b = feature(config, file) if method == "linear" else bank[2]
  a, b = (x / np.linalg.norm(x) for x in (bank[7], b))
  if method == "linear":
    features = np.stack([a, (a + b) / 2, b])
  elif method == "spherical":
    features = np.stack([a, a + b, b])  # the middle of the arc
  elif method == "concat":
    features = np.concatenate([a[: len(a) // 2], b[len(b) // 2 :]])[None]
  else:
    key = rngs.key(0, "sample/mask")
    features = np.asarray(
      interpolate.between("mask", jnp.asarray(a), jnp.asarray(b), 3, key)
    )
    assert len({f.tobytes() for f in features}) == 3
  assert_same_pixels(pixels, euler(config, features))


def sit_changes(converted, **extra):
  """The first release on a tokenizer of ours, whose scale is 1."""
  return published.changes(
    converted,
    "sit",
    encoder__tokenizer="va_vae",
    encoder__latent_stats=str(converted / "stats"),
    **extra,
  )


def test_first_release(converted, golden_dir, tmp_path):
  config = published.make_config("sit_xl2_in1k", sit_changes(converted), "ode")
  pixels = sample(config, tmp_path)
  source = load(config)
  sampler, bank = source.sampler, source.bank
  assert not any("projector" in name for name in source.weights.params)
  keys = rngs.keys(0, "sample/noise", jnp.arange(6))
  noise = jnp.stack([jax.random.normal(k, sampler.latent_shape) for k in keys])
  rows = np.asarray(draw_rows.select_row(noise, bank.frequencies))
  assert len(set(rows.tolist())) > 1
  assert_same_pixels(pixels, euler(config, bank.rows[rows], release=True))
  assert record(tmp_path)["draw"] == "noise"


def test_first_release_as_published(converted, cache, tmp_path):
  values = sit_changes(converted, sampler__steps=250, sample__count=2)
  out = run(tmp_path, values, cache, config="sit_xl2_in1k.py")
  assert "250 network calls per image, sde_euler" in out
  assert len(pictures(tmp_path)) == 2


BAD_INPUT = {
  "no weights": (
    {"sample.network": "nope"}, {}, r"config\.sample\.network='nope'.*exist",
  ),
  "a bank for a network": (
    {"sample.network": "BANK"}, {},
    r"config\.sample\.network='.*it is a bank, not a lightning_dit or sit",
  ),
  "another network": (
    {"model.width": 128, "model.heads": 2}, {},
    r"config\.model\.heads: .* there, 2 now\n"
    r"|config\.model\.width: .* there, 128 now",
  ),
  "no bank": ({"sample.bank": ""}, {}, r"config\.sample\.bank is empty"),
  "a network for a bank": (
    {"sample.bank": "NETWORK"}, {},
    r"config\.sample\.bank='.*holds no 'bank' but .* a converted lightning_dit",
  ),
  "row out of range": (
    {"sample.rows": (3, 10**6)}, {},
    r"config\.sample\.rows: rows \[1000000\] are not in the bank's \[0, ",
  ),
  "no frequencies": (
    {"sample.draw": "noise"}, {}, r"config\.sample\.draw='noise' needs",
  ),
  "no statistics": (
    {"encoder.latent_stats": ""}, {},
    r"config\.encoder\.latent_stats is empty.*'va_vae' has no scale",
  ),
  "another tokenizer": (
    {"encoder.tokenizer": "mar_vae"}, {},
    r"not of config\.encoder\.tokenizer='mar_vae': its decoder_attention",
  ),
  "no tokenizer": (
    {"encoder.tokenizer_weights": ""}, {},
    r"config\.encoder\.tokenizer_weights is empty",
  ),
  "no features": (
    {"encoder.features_weights": ""}, {"images": ["GOOD"]},
    r"config\.encoder\.features_weights is empty",
  ),
  "narrow features": (
    {"encoder.features_weights": "NARROW"}, {"images": ["GOOD"]},
    r"config\.encoder\.features='dinov2' makes features \d+ wide",
  ),
  "absent image": (
    {}, {"images": ["nope.png"]}, r"--image=nope\.png: there is no such",
  ),
  "unreadable image": (
    {}, {"images": ["BROKEN"]}, r"--image: cannot read .*broken\.png",
  ),
  "unreadable end": (
    {}, {"pairs": [["1", "BROKEN"]]},
    r"--interpolate: cannot read .*broken\.png",
  ),
  "end out of range": (
    {}, {"pairs": [["1", "1000000"]]},
    r"--interpolate: rows \[1000000\] are not in the bank's \[0, ",
  ),
  "both": (
    {}, {"pairs": [["1", "2"]], "images": ["GOOD"]},
    "--image and --interpolate exclude each other",
  ),
  "steps": ({"sampler.steps": 1}, {}, r"config\.sampler\.steps=1"),
  "sbdm at 0": ({"sampler.diffusion_form": "sbdm"}, {}, r"sampler\.sample_eps"),
  "no last step": ({"sampler.last_step": "none"}, {}, r"sampler\.last_step"),
  "guidance reversed": (
    {"sampler.guidance.start": 0.9, "sampler.guidance.end": 0.8}, {},
    r"config\.sampler\.guidance\.start=0\.9,",
  ),
  "draw and rows": (
    {"sample.draw": "noise", "sample.rows": (1,)}, {},
    r"config\.sample\.rows=\(1,\) must be \(\)",
  ),
  "one point": ({"sample.points": 1}, {}, r"config\.sample\.points=1"),
  "negative row": ({"sample.rows": (-1,)}, {}, r"config\.sample\.rows=\(-1,\)"),
  "small images": (
    {"encoder.image_size": 128}, {}, r"config\.encoder\.image_size=128",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_its_key(converted, tmp_path, photographs, case):
  changes, flags, message = BAD_INPUT[case]
  broken = tmp_path / "broken.png"
  broken.write_text("no image")
  words = {
    "BANK": converted / "bank",
    "NETWORK": converted / "network",
    "NARROW": converted / "narrow_dinov2",
    "GOOD": photographs / "a.png",
    "BROKEN": broken,
  }

  def path(value):
    if isinstance(value, list):
      return [path(each) for each in value]
    return str(words.get(value, value)) if isinstance(value, str) else value

  changes = {key: path(value) for key, value in changes.items()}
  flags = {key: path(value) for key, value in flags.items()}
  with pytest.raises(ValueError, match=message):
    sample_command.sample_mode(
      published.make_config("b_in1k", published.changes(converted) | changes),
      tmp_path / "run",
      **flags,
    )
  assert not (tmp_path / "run").exists()


def test_channels_must_agree(converted):
  config = published.make_config("b_in1k", published.changes(converted))
  tokenizer = load_encoders.load_tokenizer(config)
  channels = tokenizer.network.latent_channels
  with pytest.raises(ValueError, match=rf"tokenizer_weights.*of {channels} ch"):
    load_encoders.load_stats(config, tokenizer, channels + 1)
  plain = protocols.IdentityTokenizer()
  with pytest.raises(ValueError, match=rf"latent_stats.*of {channels} ch"):
    load_encoders.load_stats(config, plain, channels + 1)


def test_samples_of_other_settings_are_not_mixed(converted, tmp_path):
  values = published.changes(
    converted, sample__count=1, sample__output=str(tmp_path / "out")
  )
  config = published.make_config("b_in1k", values, "ode")
  sample_command.sample_mode(config, tmp_path)
  values["sampler.steps"] = 4
  with pytest.raises(ValueError, match=r"  sampler\.steps: 3 there, 4 now"):
    sample(published.make_config("b_in1k", values, "ode"), tmp_path)


@pytest.mark.parametrize("name", ["xl_in1k", "b_in1k", "sit_xl2_in1k"])
def test_training_asks_for_prepared_data(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = published.make_config(name, {"train.batch_size": 4}, "train")
  with pytest.raises(
    ValueError, match=r"config\.data\.prepared=.*mode=prepare"
  ):
    train_command.train_mode(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
