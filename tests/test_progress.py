import logging

from gmem_jax import progress


def test_progress_off_a_terminal_is_a_log_line(caplog):
  line = progress.Progress("train", 0, 100)
  with caplog.at_level(logging.INFO, logger="gmem_jax"):
    line.update(50)  # Metrics are fetched late.
    line.report(40, 12.0, {"train/loss": 0.5})
  line.close()
  assert "train 40/100 steps" in caplog.text
  assert "ETA 00:05" in caplog.text
  assert "loss 0.5" in caplog.text
