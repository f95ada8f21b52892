"""Files of networks that were aligned to several image encoders."""

import re

import pytest

from gmem_jax.convert import torch_export
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from tests.convert import helpers
from tests.models import networks


@pytest.mark.golden
@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_two_projectors_go_there_and_back(golden_dir, tmp_path, file_format):
  networks.add_projector(golden_dir, tmp_path)
  path, out = tmp_path / "sit_tiny.pth", tmp_path / "out"
  options = [f"--format={file_format}", *helpers.settings(path)]
  code, _, err = helpers.run(path, out, *options)
  assert code == 0, err
  params, metadata = weights.load_converted(out)
  widths = helpers.configuration(path)["z_dims"]
  assert len(widths) >= 2
  assert metadata["model"]["token_dim"] == widths
  # The first is where a network with one has it.
  assert params["projector"]["fc3"]["kernel"].shape[1] == widths[0]
  for i, width in enumerate(widths[1:], 1):
    assert params[f"projector_{i}"]["fc3"]["kernel"].shape[1] == width
  assert helpers.run(out, tmp_path / "back.pth", "--to-torch")[0] == 0
  published = torch_file.load(path)
  helpers.assert_same(torch_file.load(tmp_path / "back.pth"), published)


@pytest.mark.golden
def test_lightning_dit_may_have_several_too(golden_dir, tmp_path):
  source = golden_dir / "lightningdit_a.pth"
  state = {**torch_file.load(source)}
  for name, tensor in list(state.items()):
    if name.startswith("projector.0."):
      state[re.sub(r"\.0\.", ".1.", name, count=1)] = tensor
  torch_export.save(state, tmp_path / "x.pth")
  options = ["--format=safetensors", *helpers.settings(source)]
  code, _, err = helpers.run(tmp_path / "x.pth", tmp_path / "out", *options)
  assert code == 0, err
  params, _ = weights.load_converted(tmp_path / "out")
  helpers.assert_same(params["projector_1"], params["projector"])
