import math

import pytest

from gmem_jax.bench import float8


def test_the_excess_is_the_mean_over_seeds_of_the_last_quarter():
  pairs = [([9.0, 2.0], [9.5, 2.2]), ([1.0, 4.0], [0.1, 3.6])]
  assert float8.excess(pairs) == pytest.approx((0.1 - 0.1) / 2, abs=1e-12)
  assert float8.excess(pairs[:1]) == pytest.approx(0.1)
  assert math.isnan(float8.excess([*pairs, ([1.0, 1.0], [1.0, math.nan])]))


@pytest.mark.parametrize(
  ("eight", "status"), [(1.01, 0), (0.5, 0), (1.03, 1), (math.nan, 1)]
)
def test_the_gate_closes_above_two_percent(monkeypatch, capsys, eight, status):
  asked = []

  def curve(config, changes):
    del config
    asked.append((changes["seed"], changes["model.float8"]))
    # The second seed's losses are others, and no worse in 8 bits.
    scale = 1.0 + changes["seed"]
    worse = changes["model.float8"] and changes["seed"] == 0
    return [3.0 * scale, (2 * eight - 1 if worse else 1.0) * scale]

  monkeypatch.setattr(float8, "loss_curve", curve)
  assert float8.main(["--size=small", "--seeds=2"]) == status
  assert asked == [(0, False), (0, True), (1, False), (1, True)]
  rows = capsys.readouterr().out.splitlines()[-5:]
  assert [row.split("|")[1].strip() for row in rows] == [*"0011", "all"]
  assert rows[-1].split("|")[-2].strip() == f"{eight - 1:+.2%}"


@pytest.mark.process
def test_a_run_that_fails_is_an_error(capsys):
  with pytest.raises(RuntimeError, match=r"failed with status 2: .*nowhere"):
    float8.loss_curve("nowhere.py", {})
  assert capsys.readouterr().out == ""


def test_a_dtype_that_does_not_fit_is_refused_before_training(capsys):
  with pytest.raises(SystemExit):
    float8.main(["--size=small", "--change=model.dtype=float32"])
  assert "config.model.dtype must be 'bfloat16'" in capsys.readouterr().err


def test_no_seed_is_refused(capsys):
  with pytest.raises(SystemExit):
    float8.main(["--size=small", "--seeds=0"])
  assert "--seeds=0: at least one is needed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
def test_both_runs_learn(capsys):
  status = float8.main(["--seeds=1"])
  rows = capsys.readouterr().out.splitlines()[-3:-1]
  plain, eight = ([float(x) for x in r.split("|")[3:7]] for r in rows)
  assert plain != eight
  for curve in (plain, eight):
    assert curve[-1] < curve[0] / 2
  assert eight[-1] < 1.1 * plain[-1]
  assert status == (eight[-1] > plain[-1] * (1 + float8.GATE))
