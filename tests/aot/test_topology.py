"""What machines are known, and what can be compiled for them here."""

import dataclasses
import importlib.metadata

import pytest

from gmem_jax.aot import chips, topology


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("compiler", ["jax-cuda12-pjrt 1", ""])
def test_cudnn_is_taken_where_it_can_be_compiled(
  monkeypatch, platform, installed, compiler
):
  def version(name):
    assert name == "nvidia-cudnn-cu12"
    if not installed:
      raise importlib.metadata.PackageNotFoundError(name)
    return "9"

  monkeypatch.setattr(importlib.metadata, "version", version)
  machine = topology.Topology(
    name="a:1",
    chip=chips.CHIPS["h200"],
    count=1,
    slices=1,
    platform=platform,
    devices=(),
    compiler=compiler,
    options={},
  )
  expected = platform == "cuda" and installed and bool(compiler)
  assert machine.has_cudnn == expected
  other = dataclasses.replace(machine, compiler="")
  assert not other.has_cudnn
