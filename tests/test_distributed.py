import signal

import numpy as np

from gmem_jax import distributed


def test_one_process_agrees_with_itself(tmp_path):
  assert distributed.agree(3) == 3
  np.testing.assert_array_equal(distributed.agree(np.arange(3)), [0, 1, 2])
  assert distributed.everywhere(True)
  assert not distributed.everywhere(False)
  distributed.check_shared(tmp_path / "run", "--workdir")
  assert list(tmp_path.iterdir()) == [tmp_path / "run"]
  assert distributed.is_main()
  assert not distributed.is_joined()


def test_sigterm_is_noted_only_inside():
  before = signal.getsignal(signal.SIGTERM)
  with distributed.StopRequest() as stop:
    assert not stop.reached()
    signal.raise_signal(signal.SIGTERM)
    assert stop.reached()
  assert signal.getsignal(signal.SIGTERM) is before


def test_failing_alone_says_why(capsys):
  assert distributed.fail("no such file", 2) == 2
  assert capsys.readouterr().err == "gmem_jax: no such file\n"
