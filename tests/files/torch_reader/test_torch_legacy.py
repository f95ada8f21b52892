"""Files of PyTorch before 1.6, such as the published Inception weights."""

import collections
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gmem_jax.convert import torch_export
from gmem_jax.files.torch_reader import torch_file, torch_legacy
from tests.convert import helpers

VALUE = {
  "state": {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
  },
  "step": 3,
}


def write(path, value, machine=None, number=None, change=lambda parts: parts):
  """The old form of what the exporter writes as a zip."""
  zipped = path.with_suffix(".zip")
  zipped.unlink(missing_ok=True)
  torch_export.save(value, zipped)
  with zipfile.ZipFile(zipped) as archive:
    names = archive.namelist()
    (program,) = (archive.read(n) for n in names if n.endswith("data.pkl"))
    storages = {
      n.split("/data/")[1]: archive.read(n) for n in names if "/data/" in n
    }
  machine = machine or {"little_endian": True}
  sizes = {"weight": 4, "count": 8, "empty": 4}
  keys = list(storages)[::-1]  # the order is the file's own
  parts = [
    pickle.dumps(number or torch_legacy._NUMBER, 2),
    pickle.dumps(1001, 2),
    pickle.dumps({"protocol_version": 1001, **machine}, 2),
    program,
    pickle.dumps(keys, 2),
  ]
  widths = dict(zip(storages, sizes.values(), strict=False))
  for key in keys:
    data = storages[key]
    parts.append(struct.pack("<q", len(data) // widths[key]) + data)
  path.write_bytes(b"".join(change(parts)))
  return path


def test_old_files_are_read(tmp_path):
  file = torch_file.TorchFile(write(tmp_path / "x.pth", VALUE))
  helpers.assert_same(file.value, VALUE)
  file.verify()  # nothing to compare
  file.release()
  helpers.assert_same(file.value, VALUE)


def cut(parts):
  return [*parts[:-1], parts[-1][:-1]]


def longer(parts):
  return [*parts, b"more"]


def other_count(parts):
  return [*parts[:5], struct.pack("<q", 5) + parts[5][8:], *parts[6:]]


def other_names(parts):
  return [*parts[:4], pickle.dumps(["0", "9", "2"], 2), *parts[5:]]


def no_names(parts):
  return parts[:4]


def foreign(parts):
  value = collections.Counter("ab")
  return [*parts[:3], pickle.dumps(value, 2), *parts[4:]]


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (cut, r"cut off: (\d+) bytes of (?!\1)\d+"),
    (longer, "4 bytes follow"),
    (other_count, "elements, . are expected"),
    (other_names, "list of storages is damaged"),
    (no_names, r"x\.pth: cut off or damaged"),
    (foreign, "refused to load collections.Counter"),
  ],
)
def test_damaged_or_foreign_files_are_refused(tmp_path, change, match):
  path = write(tmp_path / "x.pth", VALUE, change=change)
  with pytest.raises(torch_file.TorchFileError, match=match):
    torch_file.load(path)


def test_big_endian_files_are_refused(tmp_path):
  path = write(tmp_path / "x.pth", VALUE, {"little_endian": False})
  with pytest.raises(torch_file.TorchFileError, match="big-endian"):
    torch_file.load(path)


def test_every_cut_is_an_error(tmp_path):
  data = write(tmp_path / "x.pth", VALUE).read_bytes()
  for size in range(1, len(data), 7):
    (tmp_path / "x.pth").write_bytes(data[:size])
    # Of the first bytes alone it cannot be told what they are of.
    with pytest.raises(torch_file.TorchFileError) as error:
      torch_file.load(tmp_path / "x.pth")
    assert "cut off" in str(error.value) or size < 16, (size, error.value)


@pytest.mark.torch
def test_what_torch_writes_is_read(tmp_path):
  torch = pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
  tensor = torch.arange(24.0).reshape(4, 6)
  value = {
    "whole": tensor,
    "part": tensor[1:3, ::2],
    "half": tensor.to(torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "count": torch.tensor(5),
  }
  torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
  ours = torch_file.load(tmp_path / "x.pth")
  assert list(ours) == list(value)
  for name, theirs in value.items():
    np.testing.assert_array_equal(
      ours[name].astype(np.float32), theirs.detach().float().numpy()
    )
