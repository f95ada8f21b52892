"""Banks on disk: written once, read from wherever one lies."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.bank import (
  bank as bank_lib,
  edit,
  features as features_lib,
  files as bank_files,
  images as images_lib,
  storage,
)
from gmem_jax.config import resolve
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.train import directory as directory_lib, setup
from tests import tiny
from tests.convert import helpers

SIZE, WIDTH = 20, 8


@pytest.fixture(scope="module")
def rows():
  random = np.random.default_rng(0)
  return random.normal(size=(SIZE, WIDTH)).astype(np.float32)


def _stored(rows, form="float32", images=None):
  if form == "rank":
    bank = storage.low_rank(rows, 3)
  else:
    bank = storage.encode(rows, form)
  info = bank_lib.make_info(bank, encoder="e(1)", source="s", crop="c")
  return bank_files.Stored(bank, info, images)


def _same(a, b):
  assert type(a) is type(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "rank"])
def test_a_bank_comes_back(rows, form, tmp_path):
  names = images_lib.SourceImages(
    "/photos", tuple(f"{i}.png" for i in range(SIZE))
  )
  stored = _stored(rows, form, names)
  bank_files.write(tmp_path / "bank", stored)
  found = bank_files.read(tmp_path / "bank")
  _same(found.bank, stored.bank)
  assert found.info == stored.info
  assert found.images == names
  assert found.info.digest == bank_lib.digest(found.bank)
  with pytest.raises(FileExistsError):
    bank_files.write(tmp_path / "bank", stored)


def test_a_bank_goes_back_to_pytorch(rows, tmp_path):
  for form in ("float32", "rank"):
    stored = _stored(rows, form)
    bank_files.write(tmp_path / form, stored)
    out = tmp_path / f"{form}.pth"
    code, _, err = helpers.run(tmp_path / form, out, "--to-torch")
    assert code == 0, err
    code, _, err = helpers.run(out, tmp_path / f"{form}_again")
    assert code == 0, err
    found = bank_files.read(tmp_path / f"{form}_again")
    _same(found.bank, stored.bank)
    # A published file tells no encoder.
    assert found.info.encoder == ""
  assert torch_file.load(tmp_path / "float32.pth").shape == rows.shape
  bank_files.write(tmp_path / "int8", _stored(rows, "int8"))
  code, _, err = helpers.run(tmp_path / "int8", tmp_path / "x", "--to-torch")
  assert (code, "int8" in err) == (2, True)
  assert str(tmp_path / "int8") in err


def test_a_network_that_came_with_its_bank(rows, tmp_path):
  counts = np.arange(SIZE)
  weights.save_converted(
    tmp_path / "sit",
    {"params": {"x": rows}, "bank": {"rows": rows, "counts": counts}},
    helpers.metadata("sit"),
  )
  found = bank_files.read(tmp_path / "sit")
  np.testing.assert_array_equal(found.counts, counts)
  new = edit.remove(found.bank, found.info, np.array([0, 5]))
  edited = bank_files.edited(found, new)
  bank_files.write(tmp_path / "edited", edited)
  kept = np.delete(counts, [0, 5])
  np.testing.assert_array_equal(
    bank_files.read(tmp_path / "edited").counts, kept
  )


def test_prepared_data(rows, tmp_path):
  directory = tmp_path / "bank"
  directory.mkdir()
  np.save(directory / "rows.npy", rows)
  info = _stored(rows).info
  bank_files.write_info(directory, info)
  assert (directory / "info.json").exists()
  for path in (directory, tmp_path):
    found = bank_files.read(path)
    np.testing.assert_array_equal(found.bank.rows, rows)
    assert found.info == info
  np.save(directory / "rows.npy", rows[1:])
  with pytest.raises(ValueError, match=r"\(19, 8\), described as \(20, 8\)"):
    bank_files.read(directory)


def test_features_of_8_bit_floats(rows, tmp_path):
  """numpy's own names of types do not have them."""
  narrow = rows.astype(jnp.float8_e4m3fn)
  header = {"dtype": "F8_E4M3", "shape": rows.shape, "data_offsets": [0, 160]}
  text = json.dumps({"features": header}).encode()
  path = tmp_path / "x.safetensors"
  size = len(text).to_bytes(8, "little")
  path.write_bytes(size + text + narrow.tobytes())
  found = features_lib.read(str(path), WIDTH)
  np.testing.assert_array_equal(found, narrow.astype(np.float32))
  path.write_bytes(size + text + narrow.tobytes()[:-1])
  with pytest.raises(ValueError, match=r"x\.safetensors.*cut off"):
    features_lib.read(str(path), WIDTH)


@pytest.mark.parametrize(
  ("file", "value"),
  [
    ("info.json", {"size": SIZE}),
    ("info.json", {"width": "8"}),
    ("info.json", {"colour": "red"}),
    ("images.json", {"folder": "/x", "names": [3] * SIZE}),
    ("images.json", {"folder": "/x", "names": "a" * SIZE}),
  ],
)
def test_a_record_of_another_shape_is_named(rows, tmp_path, file, value):
  np.save(tmp_path / "rows.npy", rows)
  bank_files.write_info(tmp_path, _stored(rows).info)
  whole = json.loads((tmp_path / "info.json").read_text())
  if file == "info.json":
    value = value if "size" in value else whole | value
  (tmp_path / file).write_text(json.dumps(value))
  with pytest.raises(ValueError, match=rf"{file} is damaged"):
    bank_files.read(tmp_path)


def test_names_follow_their_rows(rows):
  names = tuple(f"{i}.png" for i in range(SIZE))
  stored = _stored(rows, images=images_lib.SourceImages("/a", names))
  new = edit.append(stored.bank, stored.info, rows[:2])
  added = images_lib.SourceImages("/b", ("x.png", "/a/y.png"))
  found = bank_files.edited(stored, new, added)
  assert found.images.names == (*names, "/b/x.png", "y.png")
  assert str(found.images.path(SIZE)) == "/b/x.png"
  assert str(found.images.path(3, "/moved")) == "/moved/3.png"
  new = edit.remove(found.bank, found.info, np.arange(19))
  assert bank_files.edited(found, new).images.names == (
    "19.png", "/b/x.png", "y.png",
  )  # fmt: skip
  unnamed = _stored(rows)
  new = edit.append(unnamed.bank, unnamed.info, rows[:1])
  found = bank_files.edited(unnamed, new, images_lib.SourceImages("/b", ("x",)))
  assert found.images.path(0) is None
  assert str(found.images.path(SIZE)) == "/b/x"


def test_what_is_no_bank_is_named(rows, tmp_path):
  with pytest.raises(ValueError, match="absent: there is no such bank"):
    bank_files.read(tmp_path / "absent")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty is not a bank: expected"):
    bank_files.read(tmp_path / "empty")
  safetensors.numpy.save_file({"rows": rows}, tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match=r"x\.safetensors is not a bank"):
    bank_files.read(tmp_path / "x.safetensors")
  weights.save_converted(
    tmp_path / "net", {"params": {"x": rows}}, helpers.metadata("sit")
  )
  with pytest.raises(ValueError, match=r"net: cannot be read.*no 'bank'"):
    bank_files.read(tmp_path / "net")
  bad = rows.copy()
  bad[3] = np.inf
  stored = _stored(rows)
  bank_files.write(
    tmp_path / "bad",
    dataclasses.replace(stored, bank=bank_lib.MemoryBank(bad)),
  )
  with pytest.raises(ValueError, match=r"rows \[3\] are not finite"):
    bank_files.read(tmp_path / "bad")


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(sharding.MeshConfig(2, 2, 1))


def _memory(rows, mesh, form, placement):
  from gmem_jax.bank import sharding as bank_sharding

  stored = _stored(rows, form)
  stats = protocols.LatentStats(jnp.zeros(4), jnp.ones(4))
  fields = {
    "bank": bank_sharding.place(stored.bank, mesh, placement),
    "info": stored.info,
    "stats": stats,
    "latent_shape": (2, 2, 4),
    "token_dim": 0,
  }
  known = {field.name for field in dataclasses.fields(setup.RunMemory)}
  return stored, setup.RunMemory(
    **{k: v for k, v in fields.items() if k in known}
  )


@pytest.mark.multidevice
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_runs_memory_comes_back_on_any_placement(rows, mesh, form, tmp_path):
  """19 rows do not divide by 4: on disk there is no padding."""
  stored, memory = _memory(rows[:19], mesh, form, "sharded")
  assert memory.bank.padding == 1
  setup.save_memory(tmp_path / "memory", memory)
  _same(bank_files.read(tmp_path / "memory").bank, stored.bank)
  for placement in ("replicated", "sharded"):
    found = setup.load_memory(tmp_path / "memory", mesh, placement)
    _same(bank_lib.on_host(found.bank), stored.bank)
    assert found.bank.padding == (placement == "sharded")
    assert found.info == stored.info
  (tmp_path / "checkpoints" / "8").mkdir(parents=True)
  setup.save_memory(tmp_path / "memory", memory)
  _, other = _memory(rows[:18], mesh, form, "replicated")
  with pytest.raises(ValueError, match="keeps the bank of other images"):
    setup.save_memory(tmp_path / "memory", other)


@pytest.mark.parametrize("text", ["", "{"])
def test_a_runs_memory_without_its_description_is_named(
  rows, mesh, tmp_path, text
):
  _, memory = _memory(rows[:19], mesh, "float32", "replicated")
  path = tmp_path / "memory"
  setup.save_memory(path, memory)
  (path / "_CHECKPOINT_METADATA").write_text(text)
  for read in (setup.save_memory, lambda path, _: bank_files.read(path)):
    (tmp_path / "checkpoints" / "8").mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
      read(path, memory)
  # Before the first checkpoint nothing depends on it.
  (tmp_path / "checkpoints" / "8").rmdir()
  setup.save_memory(path, memory)
  assert setup.load_memory(path, mesh).info == memory.info


def test_the_memory_of_a_try_without_a_checkpoint_is_replaced(
  rows, mesh, tmp_path
):
  for size in (19, 18):
    _, memory = _memory(rows[:size], mesh, "float32", "replicated")
    setup.save_memory(tmp_path / "memory", memory)
  assert setup.load_memory(tmp_path / "memory", mesh).info == memory.info


def test_runs_made_before_banks_had_a_storage_are_read(rows, mesh, tmp_path):
  info = dataclasses.asdict(_stored(rows).info)
  del info["crop"], info["edit"]
  ones = np.ones(4, np.float32)
  weights.save_tree(
    tmp_path / "memory",
    {"rows": rows, "mean": ones, "std": ones},
    {"info": info, "latent_shape": [2, 2, 4], "token_dim": 0},
  )
  found = setup.load_memory(tmp_path / "memory", mesh)
  np.testing.assert_array_equal(found.bank.rows, rows)
  assert bank_files.read(tmp_path).info.crop == ""

  now = tiny.make_config()
  then = resolve.to_json(now)
  del then["bank"]
  (tmp_path / "config.json").write_text(json.dumps(then))
  directory_lib.check(now, tmp_path)
  with pytest.raises(ValueError, match=r"bank\.storage: 'float32' there"):
    directory_lib.check(tiny.make_config(bank__storage="int8"), tmp_path)
