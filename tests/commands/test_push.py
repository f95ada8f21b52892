"""Weights, banks and runs to the hub and back, on loopback."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import edit, files as bank_files, images
from gmem_jax.commands import convert, push
from gmem_jax.files import atomic, hub
from tests import tiny
from tests.files import hub_server

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

# Runs commands in one process: [environment, arguments] of each.
COMMANDS = """
import json, os, sys
from gmem_jax.convert import __main__ as program
for environment, arguments in json.loads(sys.argv[1]):
  os.environ.update(environment)
  print("status", program.main(arguments), flush=True)
"""
LOADED = """
import sys
import numpy as np
import gmem_jax
from gmem_jax.bank import files
generator = gmem_jax.load("hf://owner/run")
images = generator.sample(rows=[3, 7], seed=1).pixels
other = generator.with_bank("hf://owner/banks/small").sample(rows=[1]).pixels
np.savez(sys.argv[1], images=images, other=other)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny.save_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def bank(run, tmp_path_factory):
  """The first rows of the run's bank."""
  stored = bank_files.read(run)
  rest = np.arange(20, stored.bank.size)
  path = tmp_path_factory.mktemp("banks") / "small"
  new = edit.remove(stored.bank, stored.info, rest)
  bank_files.write(path, bank_files.edited(stored, new))
  names = images.SourceImages("/home/me", tuple(f"{i}.png" for i in range(20)))
  images.write(path, names)
  return path


def call(code: str, argument: str, **environment: str):
  return subprocess.run(
    [sys.executable, "-c", code, argument],
    env=os.environ | environment,
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_what_was_pushed_samples_the_same(run, bank, golden_dir, tmp_path):
  network, scores = tmp_path / "network", tmp_path / "scores.json"
  convert.convert(str(golden_dir / "lightningdit_a.pth"), str(network))
  atomic.write_json(
    scores, {"scores": {"fid": 12.51234}, "images": {"count": 5000}}
  )
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    token = {"HF_TOKEN": "hf_token"}
    # Of an earlier push; a name of the user's own.
    handler.repos["owner/run"] = {
      name: b"x" for name in ("checkpoints/99/old", "memories.txt", "a/b")
    }
    licence = "--license=mit"
    commands = [
      ({}, ["push", str(run), "hf://owner/run", licence]),  # Nobody.
      ({"HF_TOKEN": "hf_wrong"}, ["push", str(run), "hf://owner/run", licence]),
      (token, ["push", str(run), "hf://other/run", licence]),
      (token, ["push", str(run), "hf://owner/run@v1", licence]),
      ({}, ["push", str(run), "hf://owner/run", licence, "--scores", str(run)]),
      ({}, ["push", str(tmp_path), "hf://owner/run", licence]),
      ({}, ["push", str(run), "hf://owner/run", licence, "--dry-run"]),
      ({}, ["push", str(run), "hf://owner/run", licence]),
      (
        {},
        ["push", str(bank), "hf://owner/banks/small", licence, "--private"],
      ),
      (
        {},
        [
          "push", str(network), "hf://owner/network", licence,
          "--scores", str(scores),
        ],
      ),
    ]  # fmt: skip
    done = call(COMMANDS, json.dumps(commands), **environment)
    statuses = [
      int(line.split()[1])
      for line in done.stdout.splitlines()
      if line.startswith("status ")
    ]
    assert statuses == [2, 2, 2, 2, 2, 2, 0, 0, 0, 0], done.stdout + done.stderr
    nobody, wrong, other, old, none, nothing = done.stderr.splitlines()[:6]
    assert nobody.startswith("gmem_jax: hf://owner/run: nobody is logged in; ")
    for line in (wrong, other):
      assert "hf auth login" in line
    assert "files go to the main branch, without @v1" in old
    assert none.startswith(f"gmem_jax: --scores: {run}")
    assert nothing.startswith(
      f"gmem_jax: {tmp_path}: expected is the directory"
    )
    assert "nothing was sent (--dry-run)" in done.stdout
    for name in ("run", "banks/small", "network"):
      assert f"\nWrote hf://owner/{name}: " in done.stdout
    ending = done.stdout.split("\nWrote hf://owner/run: ")[1]
    assert 'gmem_jax.load("hf://owner/run")' in ending

    scored = "| score | 5,000 images |\n| --- | --- |\n| fid | 12.5123 |"
    network = check_card(handler.repos["owner/network"], scored, "a.pth")
    assert "pipeline_tag: unconditional-image-generation" in network
    kept = {"memories.txt", "a/b"}
    held = set(handler.repos["owner/run"])
    assert kept < held
    for name in kept:
      del handler.repos["owner/run"][name]
    assert "checkpoints/99/old" not in held
    assert not [name for name in held if name.endswith("commit_success.txt")]
    card = check_card(handler.repos["owner/run"], '"hf://owner/run")', "step")
    params = gmem_jax.load(run).source.weights.params
    count = sum(x.size for x in jax.tree.leaves(params))
    assert f"| parameters | {count:,} |" in card
    small = handler.repos["owner/banks"]
    assert b"pipeline_tag" not in small["small/README.md"]
    assert not [name for name in small if "images.json" in name]
    assert handler.private == {"owner/banks"}

    done = call(LOADED, str(tmp_path / "x.npz"), **environment, **token)
    assert done.returncode == 0, done.stderr
  with np.load(tmp_path / "x.npz") as found:
    here = gmem_jax.load(run)
    pixels = here.sample(rows=[3, 7], seed=1).pixels
    np.testing.assert_array_equal(found["images"], pixels)
    pixels = here.with_bank(bank).sample(rows=[1]).pixels
    np.testing.assert_array_equal(found["other"], pixels)


def check_card(files: dict[str, bytes], *texts: str) -> str:
  """The card names what it must, and each file by its digest."""
  card = files["README.md"].decode()
  head = card.split("---")[1].splitlines()
  assert {"license: mit", "library_name: gmem_jax"} <= set(head)
  for text in texts:
    assert text in card, text
  for name, data in files.items():
    if name != "README.md":
      assert (
        f"| `{name}` | {len(data):,} | `{hub_server.digest(data)}` |" in card
      )
  return card


def test_what_is_pushed_is_all_that_samples_need_and_no_log(run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(run, copy)
  (copy / "metrics.jsonl").touch()
  fitted = copy / "encoders" / "tokenizer" / "metadata"
  fitted.mkdir(parents=True)
  (fitted / "manifest").touch()
  cargo = push._cargo(copy)
  parts = {name.partition("/")[0] for name in cargo.files}
  assert parts == {"config.json", "checkpoints", "memory", "encoders"}
  assert "encoders/tokenizer/metadata/manifest" in cargo.files
  assert cargo.facts["step"] == 8


@pytest.mark.parametrize("folder", ["", "a/b/"])
def test_only_folders_that_are_written_anew_lose_files(folder):
  new = [f"{folder}{name}" for name in ("README.md", "params/1", "bank/x/1")]
  held = [f"{folder}{name}" for name in (
    "old.md", "params/0", "params/1", "bank/x/0", "params2/0", "other/params/0",
  )]  # fmt: skip
  stale = [f"{folder}{name}" for name in ("params/0", "bank/x/0")]
  assert hub._stale([*held, "params.md", "bank.md"], new, folder) == stale
