"""Our reader and writer against PyTorch's own."""

import argparse

import numpy as np
import pytest

from gmem_jax.convert import torch_export
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.files.torch_reader.torch_types import DTYPES
from tests.convert import helpers

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason='needs the extra "oracle"')


def as_numpy(value):
  """PyTorch's containers with numpy arrays in the place of tensors."""
  if isinstance(value, torch.Tensor):
    dtype = DTYPES[str(value.dtype).removeprefix("torch.")][0]
    flat = value.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    return raw.view(dtype).reshape(tuple(value.shape))
  if isinstance(value, torch.Size):
    return tuple(value)
  if isinstance(value, dict):
    return {k: as_numpy(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(as_numpy, value))
  return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_saves(tmp_path, protocol):
  base = torch.arange(24.0).reshape(2, 3, 4)
  powers = torch.tensor([1.0, 2.0, 4.0])
  value = {
    "dtypes": [powers.to(getattr(torch, name)) for name in DTYPES],
    "view": base[:, 1:, ::2],
    "transposed": base.transpose(0, 2),
    "shared": [base, base[0], base.reshape(-1)[5:]],
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "expanded": torch.ones(1).expand(4, 4),
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "parameter": torch.nn.Parameter(base),
    "size": base.shape,
    "state": dict(torch.nn.Linear(2, 3).state_dict()),
    "plain": [1, -5, 2**80, 1.5, "text", None, True, {"a": (1, 2)}],
    "bytes": b"abc\xff",
    "set": {1, 2},
    "complex": 1 + 2j,
  }
  path = tmp_path / "x.pt"
  torch.save(value, path, pickle_protocol=protocol)
  file = torch_file.TorchFile(path)
  file.verify()
  helpers.assert_same(file.value, as_numpy(value))


def test_reads_files_without_checksums(tmp_path):
  path = tmp_path / "x.pt"
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"a": torch.arange(5)}, path)
  finally:
    torch.serialization.set_crc32_options(True)
  file = torch_file.TorchFile(path)
  file.verify()
  np.testing.assert_array_equal(file.value["a"], np.arange(5))


def test_lazy_operations_are_refused(tmp_path):
  path = tmp_path / "x.pt"
  torch.save(torch.tensor([1 + 2j]).conj(), path)
  with pytest.raises(torch_file.TorchFileError, match="lazy operations"):
    torch_file.load(path)


def test_a_namespace_is_refused(tmp_path):
  path = tmp_path / "x.pt"
  torch.save({"args": argparse.Namespace(lr=1), "w": torch.ones(2)}, path)
  with pytest.raises(torch_file.TorchFileError, match=r"argparse\.Namespace"):
    torch_file.load(path)


@pytest.mark.golden
def test_golden_files_are_what_torch_reads(golden_dir):
  for path in helpers.golden_files(golden_dir):
    theirs = as_numpy(torch.load(path, weights_only=True))
    helpers.assert_same(torch_file.load(path), theirs)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write(tmp_path, mmap):
  value = {
    **{n: np.array([1, 2, 4]).astype(d) for n, (d, _) in DTYPES.items()},
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "scalar": np.array(7),
    "empty": np.zeros((0, 2), np.float32),
    "plain": [1, -5, 2**40, 1.5, "tëxt", None, True, (1, 2), {"a": []}],
  }
  path = tmp_path / "x.pth"
  torch_export.save(value, path)
  theirs = torch.load(path, weights_only=True, mmap=mmap)
  helpers.assert_same(as_numpy(theirs), value)
