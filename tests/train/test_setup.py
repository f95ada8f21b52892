import json

import pytest

from gmem_jax.config import resolve
from gmem_jax.train import setup
from tests import tiny


def test_a_directory_of_another_config_is_refused_with_the_keys(tmp_path):
  ours = tiny.make_config()
  setup.claim(ours, tmp_path / "run")
  setup.claim(ours, tmp_path / "run")
  depth = ours.model.depth
  with pytest.raises(ValueError, match="another config") as error:
    setup.claim(
      tiny.make_config(model__depth=depth + 1, seed=7), tmp_path / "run"
    )
  message = str(error.value)
  assert f"config.model.depth: {depth} there, {depth + 1} now" in message
  assert f"config.seed: {ours.seed} there, 7 now" in message
  assert "width" not in message
  kept = json.loads((tmp_path / "run/config.json").read_text())
  assert kept["seed"] == ours.seed


def test_free_keys_may_change(tmp_path):
  setup.claim(tiny.make_config(), tmp_path)
  setup.claim(
    tiny.make_config(train__steps=1600, mesh__fsdp=2, model__scan_layers=True),
    tmp_path,
  )
  kept = json.loads((tmp_path / "config.json").read_text())
  assert kept["train"]["steps"] == 1600


def test_free_keys_exist():
  flat = resolve.flatten(resolve.to_json(tiny.make_config()))
  for key in setup.FREE:
    assert any(k.startswith(key) for k in flat), key
