"""`--mode=prepare` fits the linear tokenizer; training and sampling read it."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.commands import prepare
from gmem_jax.convert import __main__ as convert
from gmem_jax.data import load_encoders, schema, sources
from gmem_jax.files import weights
from gmem_jax.models.encoders import protocols
from gmem_jax.train import dataset
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
