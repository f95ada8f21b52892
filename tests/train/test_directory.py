"""Whose a run's directory is, and what may change in it."""

import json
import logging

import numpy as np
import pytest

from gmem_jax.config import resolve
from gmem_jax.train import directory, state as train_state
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")

TO_END = {"optim__decay_steps": 0}


@pytest.fixture
def run(tmp_path):
  """The directory of a run that got to a checkpoint at step 80."""
  directory.claim(tiny.make_config(**TO_END), tmp_path)
  (tmp_path / "checkpoints" / "80").mkdir(parents=True)
  return tmp_path


def record(run):
  return json.loads((run / "config.json").read_text())


def test_a_directory_of_another_config_is_refused_with_the_keys(run):
  ours, before = tiny.make_config(**TO_END), record(run)
  directory.claim(ours, run)
  depth = ours.model.depth
  other = tiny.make_config(model__depth=depth + 1, seed=7, **TO_END)
  for check in (directory.claim, directory.check):
    with pytest.raises(ValueError, match="another config") as error:
      check(other, run)
    message = str(error.value)
    assert f"config.model.depth: {depth} there, {depth + 1} now" in message
    assert f"config.seed: {ours.seed} there, 7 now" in message
    assert "another --workdir" in message
    assert "width" not in message
    assert "\n" not in message
  assert record(run) == before


def test_before_the_first_checkpoint_everything_may_change(tmp_path):
  directory.claim(tiny.make_config(), tmp_path)
  directory.claim(tiny.make_config(seed=7), tmp_path)
  assert record(tmp_path)["seed"] == 7


def test_damaged_checkpoints_are_a_run_too(tmp_path):
  directory.claim(tiny.make_config(), tmp_path)
  (tmp_path / "checkpoints" / "unreadable-8-0").mkdir(parents=True)
  with pytest.raises(ValueError, match="another config"):
    directory.claim(tiny.make_config(seed=7), tmp_path)


def test_free_keys_may_change(run):
  changes = {"mesh__fsdp": 2, "model__scan_layers": True}
  directory.claim(tiny.make_config(**TO_END, **changes), run)
  assert record(run)["mesh"]["fsdp"] == 2


def test_training_changes_on_purpose_only(run, caplog):
  changes = {"optim__learning_rate": 1e-3, "train__batch_size": 8} | TO_END
  with pytest.raises(ValueError, match="another config") as error:
    directory.claim(tiny.make_config(**changes), run)
  message = str(error.value)
  assert "config.optim.learning_rate: 0.002 there, 0.001 now" in message
  assert "config.train.batch_size: 16 there, 8 now" in message
  assert "--config.train.allow_changes=True" in message
  assert "\n" not in message

  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    directory.claim(tiny.make_config(**changes, train__allow_changes=True), run)
  assert "learning_rate: 0.002 there, 0.001 now" in caplog.text
  assert record(run)["optim"]["learning_rate"] == 1e-3
  # What is in force now is what a later start has to name.
  directory.claim(tiny.make_config(**changes), run)


def test_a_network_does_not_change_on_purpose(run):
  config = tiny.make_config(
    model__depth=3, optim__b2=0.99, train__allow_changes=True, **TO_END
  )
  with pytest.raises(ValueError, match=r"model\.depth: 2 there") as error:
    directory.claim(config, run)
  assert "b2" not in str(error.value)


def test_sampling_asks_for_no_settings_of_the_training(run):
  before = record(run)
  directory.check(
    tiny.make_config(optim__learning_rate=1e-3, train__batch_size=8), run
  )
  assert record(run) == before


def test_more_steps_stretch_a_schedule_that_ends_with_them(run, caplog):
  longer = tiny.make_config(train__steps=320, **TO_END)
  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    directory.claim(longer, run)
  (line,) = caplog.messages
  rate = float(train_state.learning_rate(longer.optim)(80))
  assert "config.train.steps: 160 there, 320 now" in line
  assert (
    f"decays until step 320, and goes on from {rate:.3g} at step 80" in line
  )
  assert record(run)["optim"]["decay_steps"] == 320
  caplog.clear()
  directory.claim(longer, run)
  assert not caplog.messages


def test_a_schedule_with_an_end_of_its_own_is_a_setting(tmp_path):
  directory.claim(tiny.make_config(optim__decay_steps=320), tmp_path)
  (tmp_path / "checkpoints" / "80").mkdir(parents=True)
  directory.claim(
    tiny.make_config(optim__decay_steps=320, train__steps=240), tmp_path
  )
  with pytest.raises(ValueError, match=r"decay_steps: 320 there, 0 now"):
    directory.claim(tiny.make_config(train__steps=240, **TO_END), tmp_path)


def test_a_schedule_until_the_last_step_may_end_early(tmp_path):
  """The decay is the same; that the run was to end with it is no setting."""
  long = tiny.make_config(optim__decay_steps=320, train__steps=320)
  directory.claim(long, tmp_path)
  (tmp_path / "checkpoints" / "80").mkdir(parents=True)
  shorter = tiny.make_config(optim__decay_steps=320, train__steps=160)
  directory.claim(shorter, tmp_path)
  directory.claim(long, tmp_path)


def test_keys_exist():
  flat = resolve.flatten(resolve.to_json(tiny.make_config()))
  for key in (*directory.FREE, *directory.TRAINING):
    assert any(k.startswith(key) for k in flat), key
  assert np.all([key in flat for key in directory.BEFORE])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_residual_stream_of_older_runs_was_as_wide_as_the_matmuls(
  tmp_path, dtype
):
  old = record_of_old_run(tmp_path, dtype)
  assert "residual_dtype" not in old["model"]
  ours = tiny.make_config(model__dtype=dtype, **TO_END)
  directory.check(ours, tmp_path)  # Sampling does not depend on it.
  assert directory.config_of(tmp_path).model.residual_dtype == dtype
  if dtype == "float32":
    directory.claim(ours, tmp_path)
    return
  with pytest.raises(ValueError, match="residual_dtype: 'bfloat16' there") as e:
    directory.claim(ours, tmp_path)
  assert "allow_changes" in str(e.value)
  directory.claim(
    tiny.make_config(
      model__dtype=dtype, model__residual_dtype="bfloat16", **TO_END
    ),
    tmp_path,
  )


def record_of_old_run(workdir, dtype):
  """Claims a directory as it was before the key existed."""
  directory.claim(tiny.make_config(model__dtype=dtype, **TO_END), workdir)
  (workdir / "checkpoints" / "80").mkdir(parents=True)
  old = record(workdir)
  del old["model"]["residual_dtype"]
  (workdir / "config.json").write_text(json.dumps(old))
  return old
