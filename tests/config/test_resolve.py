import dataclasses
import importlib.util
import json
import pathlib

import pytest

from gmem_jax.config import resolve
from gmem_jax.train import state as train_state

ROOT = pathlib.Path(__file__).parents[2]


def digits():
  spec = importlib.util.spec_from_file_location(
    "digits", ROOT / "configs" / "digits.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_digits_resolves_to_frozen_sections():
  resolved = resolve.resolve(digits())
  assert resolved.model.width == 96
  with pytest.raises(dataclasses.FrozenInstanceError):
    resolved.seed = 1
  assert hash(resolved) == hash(resolve.resolve(digits()))


def test_json_round_trip():
  resolved = resolve.resolve(digits())
  text = json.dumps(resolve.to_json(resolved))
  assert resolve.resolve(json.loads(text)) == resolved


@pytest.mark.parametrize(
  "key",
  [
    "compile_cache", "data.path", "data.prepared", "encoder.tokenizer_weights",
    "encoder.latent_stats", "encoder.features_weights", "train.init_from",
    "sample.network", "sample.bank", "sample.output", "eval.reference",
    "eval.inception_weights", "eval.images",
  ],
)  # fmt: skip
def test_keys_that_are_paths_know_the_home(monkeypatch, key):
  monkeypatch.setenv("HOME", "/home/me")
  tree = digits()
  tree.update_from_flattened_dict({key: "~/x", "data.holdout": 0})
  resolved = resolve.flatten(resolve.to_json(resolve.resolve(tree)))
  assert resolved[key] == "/home/me/x"


def test_other_keys_may_begin_with_a_tilde(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  tree = digits()
  tree.data.split = "~"
  assert resolve.resolve(tree).data.split == "~"


@pytest.mark.parametrize(
  ("key", "value", "match"),
  [
    (
      "model.conditioning",
      "label",
      r"config\.model\.conditioning='label'.*adaln",
    ),
    ("model.width", 96.0, r"config\.model\.width=96\.0: expected int"),
    ("model.width", True, r"config\.model\.width=True: expected int"),
    ("loss.cosine", 1, r"config\.loss\.cosine=1: expected bool"),
    ("optim.learning_rate", "1", r"config\.optim\.learning_rate='1'"),
    ("optim.b2", 1.5, r"optim\.b2"),
    ("optim.clip_norm", float("inf"), r"optim\.clip_norm=inf: must be finite"),
    ("loss.projection_weight", float("nan"), r"weight=nan: must be finite"),
    (
      "optim.decay_steps",
      400,
      r"config\.optim\.decay_steps=400:.*config\.train\.steps=500",
    ),
    ("train.steps", 801, r"config\.train\.steps=801"),
    ("train.batch_size", 0, r"config\.train\.batch_size=0"),
    ("train.ema_decay", 1.0, r"config\.train\.ema_decay"),
    ("checkpoint.every", 75, r"config\.checkpoint\.every=75.*log_every=50"),
    ("eval.every", 10, r"config\.eval\.every=10"),
    ("eval.count", 0, r"config\.eval\.count"),
    ("sampler.steps", 1, r"sampler\.steps"),
    ("sampler.path", "gvp", r"config\.sampler\.path='gvp'"),
    ("sampler.guidance.scale", -1.0, r"sampler\.guidance\.scale"),
    ("data", 3, r"config\.data=3: a section"),
    ("model.float8", True, r"config\.model\.dtype='float32': must be 'bf"),
  ],
)
def test_wrong_value_names_the_key(key, value, match):
  tree = digits().to_dict()
  section = tree
  *parents, last = key.split(".")
  for name in parents:
    section = section[name]
  section[last] = value
  with pytest.raises(ValueError, match=match):
    resolve.resolve(tree)


def test_unknown_and_missing_keys_are_named():
  tree = digits().to_dict()
  tree["model"]["dpeth"] = 3
  with pytest.raises(ValueError, match=r"\['dpeth'\] in config\.model"):
    resolve.resolve(tree)
  tree = digits().to_dict()
  del tree["optim"]["b1"]
  with pytest.raises(ValueError, match=r"\['b1'\] in config\.optim"):
    resolve.resolve(tree)


def test_recipes_from_before_a_key_have_its_default():
  tree = digits().to_dict()
  del tree["mesh"]["gather"]
  assert resolve.resolve(tree).mesh.gather == "layer"
  tree["mesh"]["gather"] = "never"
  with pytest.raises(ValueError, match=r"config\.mesh\.gather='never'"):
    resolve.resolve(tree)


def test_whole_numbers_serve_as_floats():
  tree = digits().to_dict()
  tree["optim"]["weight_decay"] = 0
  value = resolve.resolve(tree).optim.weight_decay
  assert value == 0.0
  assert isinstance(value, float)


def test_a_cosine_without_an_end_decays_until_the_last_step():
  tree = digits()
  assert tree.optim.decay_steps == 0
  tree.train.steps = 2000
  config = resolve.resolve(tree)
  assert config.optim.decay_steps == 2000
  rate = train_state.learning_rate(config.optim)
  assert all(float(rate(step)) > 0 for step in range(1, 2000, 100))


def test_a_cosine_may_end_after_the_run():
  tree = digits()
  tree.optim.decay_steps = 800
  assert resolve.resolve(tree).optim.decay_steps == 800


def test_a_constant_rate_has_no_end():
  tree = digits()
  tree.optim.schedule = "constant"
  assert resolve.resolve(tree).optim.decay_steps == 0
