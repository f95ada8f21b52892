import signal

import numpy as np

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


def test_sigterm_is_noted_only_inside():
  before = signal.getsignal(signal.SIGTERM)
  with processes.StopRequest() as stop:
    assert not stop.reached()
    signal.raise_signal(signal.SIGTERM)
    assert stop.reached()
  assert signal.getsignal(signal.SIGTERM) is before


def test_failing_alone_says_why(capsys):
  assert processes.fail("no such file", 2) == 2
  assert capsys.readouterr().err == "gmem_jax: no such file\n"
