"""The published interval table, its two repairs, and settings refused."""

import json

import pytest

from gmem_jax.diffusion import schedule
from tests.diffusion import common


@pytest.mark.golden
def test_published_table(golden_dir):
  table = json.loads((golden_dir / "transport_check_interval.json").read_text())
  compared = repaired = 0
  for values in table["rows"]:
    row = dict(zip(table["columns"], values, strict=True))
    path = common.PATHS[row["path"]]
    eps = row["sample_eps"] if row["eval"] else row["train_eps"]
    undefined = eps is None
    if undefined:
      eps = schedule.default_sample_eps(path, row["prediction"])
    t0, t1 = schedule.interval(
      path,
      row["prediction"],
      eps=float(eps),
      sde=row["sde"],
      diffusion_form=common.FORMS[row["diffusion_form"]],
      last_step_size=row["last_step_size"],
    )
    expected = row["result"]
    if isinstance(expected, list) and None not in expected:
      if row["reverse"]:
        t0, t1 = 1 - t0, 1 - t1
      assert (t0, t1) == pytest.approx(tuple(expected), abs=1e-12), row
      compared += 1
    else:
      # The published code forgot to give this epsilon a value.
      assert undefined, row
      assert (t0, t1) != (0, 1)
      assert 0 <= t0 < t1 < 1, row
      repaired += 1
  assert compared
  assert repaired


@pytest.mark.golden
def test_default_epsilons(golden_dir):
  table = json.loads((golden_dir / "transport_check_interval.json").read_text())
  rows = [
    dict(zip(table["columns"], row, strict=True)) for row in table["rows"]
  ]
  unset = [row for row in rows if row["arg_train_eps"] is None]
  assert unset
  for row in unset:
    path = common.PATHS[row["path"]]
    assert row["train_eps"] == schedule.default_train_eps(
      path, row["prediction"]
    )


def test_a_given_epsilon_counts():
  # The published code replaces it by 0 here.
  assert schedule.interval(
    "linear", "velocity", eps=0.01, sde=True, diffusion_form="sbdm"
  ) == (0.01, 0.99)


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"steps": 1}, r"config\.sampler\.steps=1:"),
    ({"timestep_shift": -0.3}, r"config\.sampler\.timestep_shift=-0\.3:"),
    ({"sample_eps": 0.0}, r"config\.sampler\.sample_eps=0\.0:"),
    ({"sample_eps": 0.7}, r"config\.sampler\.sample_eps=0\.7:"),
    ({"rtol": -1.0}, r"config\.sampler\.rtol=-1\.0:"),
    ({"rtol": 0.0, "atol": 0.0}, r"config\.sampler\.atol=0\.0,"),
    ({"diffusion_norm": -1.0}, r"config\.sampler\.diffusion_norm=-1\.0:"),
    ({"last_step_size": 0.0}, r"config\.sampler\.last_step_size=0\.0:"),
    ({"last_step_size": 1.0}, r"config\.sampler\.last_step_size=1\.0:"),
    ({"diffusion_form": "sbdm"}, r"set config\.sampler\.sample_eps > 0"),
    ({"last_step": "none"}, r"config\.sampler\.last_step='none':"),
    (
      {"prediction": "noise", "sample_eps": 0.4, "last_step_size": 0.8},
      r"config\.sampler\.last_step_size=0\.8:",
    ),
  ],
)
def test_bad_settings_name_their_key(changes, key):
  with pytest.raises(ValueError, match=key):
    common.sampler_config(**changes)
