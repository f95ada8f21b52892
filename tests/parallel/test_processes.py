import signal

import numpy as np
import pytest

from gmem_jax.parallel import processes


def test_one_process_agrees_with_itself(tmp_path):
  assert processes.agree(3) == 3
  np.testing.assert_array_equal(processes.agree(np.arange(3)), [0, 1, 2])
  assert processes.everywhere(True)
  assert not processes.everywhere(False)
  processes.check_shared(tmp_path / "run", "--workdir")
  assert list(tmp_path.iterdir()) == [tmp_path / "run"]
  assert processes.is_main()
  assert not processes.is_joined()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_noted_only_inside(name):
  number = signal.Signals[name]
  before = signal.getsignal(number)
  with processes.StopRequest() as stop:
    assert not stop.reached()
    signal.raise_signal(number)
    assert stop.reached()
    assert stop.cause == name
  assert signal.getsignal(number) is before


def test_a_signal_that_was_ignored_stays_so():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with processes.StopRequest() as stop:
      signal.raise_signal(signal.SIGHUP)
      assert not stop.reached()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_failing_alone_says_why(capsys):
  assert processes.fail("no such file", 2) == 2
  assert capsys.readouterr().err == "gmem_jax: no such file\n"
