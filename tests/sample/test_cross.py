"""Sampling with cross-attention: other banks, images, interpolation."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.commands import sample as sample_command
from gmem_jax.data import write_images
from gmem_jax.diffusion import guidance
from gmem_jax.files import weights
from gmem_jax.models import retrieval
from gmem_jax.parallel import sharding
from gmem_jax.sample import source as source_lib
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  directory as directory_lib,
  setup,
)
from tests import tiny

CROSS = {
  "model__conditioning": "adaln+cross",
  "retrieval__neighbours": 3,
  "sample__count": 4,
  "sample__device_batch": 4,
  "sample__rows": (0, 1, 2, 3),
  "sample__grid": 0,
  "mesh__data": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's directory, its dataset and its memory."""
  config = tiny.make_config(**CROSS)
  workdir = tmp_path_factory.mktemp("cross") / "run"
  mesh = sharding.make_mesh(config.mesh)
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  directory_lib.claim(config, workdir)
  setup.save_memory(workdir / "memory", memory)
  state = tiny.loud(jax.jit(setup.make_init(config, memory))())
  with checkpoint.opened(workdir / "checkpoints", config.checkpoint) as kept:
    kept.save(8, jax.tree.map(jnp.asarray, state), {"train_seconds": 1.0})
  return workdir, dataset, memory


def save_bank(path: pathlib.Path, rows: np.ndarray) -> str:
  source = {"file": path.name, "sha256": "0" * 64}
  weights.save_converted(
    path,
    {"bank": {"rows": np.asarray(rows, np.float32)}},
    {
      "kind": "bank",
      "title": "memory bank",
      "model": {},
      "weights": None,
      "step": None,
      "source": source,
    },
  )
  return str(path)


def make(workdir, output, images=(), pairs=(), **changes):
  """Samples into a new directory; returns pixels and the record."""
  config = tiny.make_config(**{**CROSS, **changes, "sample__output": output})
  sample_command.sample_mode(config, workdir, images, pairs)
  files = sorted(pathlib.Path(output).glob("[0-9]*.png"))
  record = json.loads((pathlib.Path(output) / "sample.json").read_text())
  return np.stack([write_images.read_png(f) for f in files]), record


def fingerprint(workdir: pathlib.Path) -> dict[str, str]:
  return {
    str(f.relative_to(workdir)): hashlib.sha256(f.read_bytes()).hexdigest()
    for f in sorted(workdir.rglob("*"))
    if f.is_file()
  }


def test_another_bank_changes_the_samples_and_nothing_else(run, tmp_path):
  workdir, dataset, memory = run
  before = fingerprint(workdir)
  rows = np.asarray(memory.bank.rows)
  never_trained_on = np.asarray(dataset.heldout.bank.rows)
  # The same snippets, and other neighbours.
  mixed = np.concatenate([rows[:4], never_trained_on])
  banks = {
    "own": "",
    "copy": save_bank(tmp_path / "copy", rows),
    "other": save_bank(tmp_path / "other", never_trained_on),
    "mixed": save_bank(tmp_path / "mixed", mixed),
  }
  made = {
    name: make(workdir, str(tmp_path / f"out_{name}"), sample__bank=bank)
    for name, bank in banks.items()
  }
  own, record = made["own"]
  np.testing.assert_array_equal(made["copy"][0], own)
  for name in ("other", "mixed"):
    pixels, theirs = made[name]
    assert (pixels != own).any(axis=(1, 2, 3)).all(), name
    assert theirs.pop("bank") != record["bank"]
    assert theirs == {k: v for k, v in record.items() if k != "bank"}
  assert fingerprint(workdir) == before


@pytest.mark.slow
def test_where_the_bank_lies_changes_no_sample(run, tmp_path):
  whole, _ = make(run[0], str(tmp_path / "whole"))
  split, _ = make(run[0], str(tmp_path / "split"), bank__placement="sharded")
  # The last bit of a score may differ.
  assert np.abs(split.astype(int) - whole).max() <= 1


def test_images_and_points_between_rows_are_looked_up(run, tmp_path):
  workdir, dataset, _ = run
  path = tmp_path / "seven.png"
  write_images.save_png(path, dataset.heldout_images.pixels[7])
  pixels, record = make(
    workdir, str(tmp_path / "image"), images=[str(path)], sample__rows=()
  )
  assert len(pixels) == 1
  assert record["bank"]
  between, _ = make(
    workdir,
    str(tmp_path / "between"),
    pairs=[("0", "5")],
    sample__rows=(),
    sample__points=3,
  )
  assert len(between) == 3
  assert (between[0] != between[2]).any()


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((9, 5), r"config\.sample\.bank: its rows are 5 wide, the network takes"),
    ((3, 768), r"config\.retrieval\.neighbours=3: the bank has 2 rows besides"),
  ],
)
def test_banks_that_do_not_fit_are_refused(run, tmp_path, shape, message):
  rows = np.random.default_rng(0).standard_normal(shape)
  bank = save_bank(tmp_path / "bank", rows)
  with pytest.raises(ValueError, match=message):
    make(run[0], str(tmp_path / "out"), sample__bank=bank)


def test_samples_from_another_bank_go_elsewhere(run, tmp_path):
  other = save_bank(tmp_path / "other", np.asarray(run[2].bank.rows))
  mesh = sharding.make_mesh(tiny.make_config(**CROSS).mesh)
  own, swapped = (
    source_lib.load(
      tiny.make_config(**CROSS, sample__bank=bank), run[0], mesh
    ).name
    for bank in ("", other)
  )
  assert swapped == f"{own}_bank_other"


def test_snippets_are_read_on_the_host_and_neighbours_on_the_devices(run):
  """A process reads any row, though its devices may have only some of them."""
  config = tiny.make_config(**CROSS, bank__placement="sharded")
  mesh = sharding.make_mesh(config.mesh)
  source = source_lib.load(config, run[0], mesh)
  assert type(source.bank.rows) is np.ndarray
  np.testing.assert_array_equal(source.bank.rows, run[2].bank.rows)
  unit = source.weights.bank
  assert not unit.sharding.is_fully_replicated
  assert len(unit.rows.addressable_shards) == 4


def test_guidance_drops_the_whole_memory(run):
  """At scale 0 all that is left is the network without snippet and bank."""
  workdir, _, memory = run
  config = tiny.make_config(**CROSS)
  mesh = sharding.make_mesh(config.mesh)
  _, params = source_lib.load_params(config, workdir, mesh)
  made = {}
  for scale in (0.0, 1.0):
    guided = guidance.GuidanceConfig(scale, 0.0, 1.0, "conditional")
    changed = dataclasses.replace(
      config,
      sampler=dataclasses.replace(config.sampler, guidance=guided),
      sample=dataclasses.replace(config.sample, device_batch=1),
    )
    sampler = source_lib.make_sampler(changed, memory, mesh)
    loaded = source_lib.make_weights(config, memory, params)
    features = np.asarray(memory.bank.rows)
    made[scale] = [
      sampler(loaded, 0, np.arange(4), features[rows], rows)
      for rows in (np.arange(4), np.arange(10, 14))
    ]
  np.testing.assert_array_equal(*made[0.0])
  assert (made[1.0][0] != made[1.0][1]).any()
  assert (made[1.0][0] != made[0.0][0]).any()


def test_own_rows_are_left_out_only_where_they_are_known(run):
  workdir, _, memory = run
  config = tiny.make_config(**CROSS)
  mesh = sharding.make_mesh(config.mesh)
  _, params = source_lib.load_params(config, workdir, mesh)
  sampler = source_lib.make_sampler(config, memory, mesh)
  loaded = source_lib.make_weights(config, memory, params)
  rows = np.arange(4)
  features = np.asarray(memory.bank.rows)[rows]
  known = sampler(loaded, 0, rows, features, rows)
  unknown = sampler(loaded, 0, rows, features)
  outside = np.full(4, retrieval.OUTSIDE)
  np.testing.assert_array_equal(
    unknown, sampler(loaded, 0, rows, features, outside)
  )
  assert (known != unknown).any()
