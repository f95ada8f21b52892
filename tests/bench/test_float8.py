import pytest

from gmem_jax.bench import float8


def test_the_gate_closes_above_two_percent():
  assert float8.passes([3.0, 1.019], [2.0, 1.0])
  assert float8.passes([3.0, 0.5], [2.0, 1.0])
  assert not float8.passes([0.1, 1.021], [2.0, 1.0])
  assert not float8.passes([0.1, float("nan")], [2.0, 1.0])


@pytest.mark.process
def test_a_run_that_fails_is_an_error(capsys):
  with pytest.raises(RuntimeError, match=r"failed with status 2: .*nowhere"):
    float8.loss_curve("nowhere.py", {})
  assert capsys.readouterr().out == ""


def test_a_dtype_that_does_not_fit_is_refused_before_training(capsys):
  with pytest.raises(SystemExit):
    float8.main(["--size=small", "--change=model.dtype=float32"])
  assert "config.model.dtype must be 'bfloat16'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
def test_all_three_runs_learn(capsys):
  status = float8.main([])
  rows = capsys.readouterr().out.splitlines()[-3:]
  plain, eight, other = ([float(x) for x in r.split("|")[2:6]] for r in rows)
  assert plain != eight != other
  for curve in (plain, eight, other):
    assert curve[-1] < curve[0] / 2
  assert eight[-1] < 1.1 * plain[-1]
  assert status == (eight[-1] > plain[-1] * (1 + float8.GATE))
