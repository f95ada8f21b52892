"""A job of two processes outlives what befalls it."""

import pytest

from tests import soak


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("where", tuple(soak.KINDS))
def test_a_disturbed_job_ends_as_if_alone(where, tmp_path):
  flags = "--steps=1000", "--every=100", "--times=1"
  assert not soak.main(
    [*flags, f"--where={where}", f"--directory={tmp_path}/s"]
  )
