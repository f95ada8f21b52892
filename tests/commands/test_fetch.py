"""The published files, small ones in their place, from a hub on loopback."""

import os
import subprocess
import sys

import pytest

from gmem_jax.commands import fetch
from gmem_jax.files import weights
from tests.files import hub_server

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

# Repository -> name there -> golden file that stands for it.
GOLDEN = {
  "Tangentone/GMem": {
    "GMem_XL_160Epoch_in1k256_network.pth": "lightningdit_a.pth",
    "Memory_bank_in1k.pth": "bank_full.pth",
  },
  "hustvl/vavae-imagenet256-f16d32-dinov2": {
    "vavae-imagenet256-f16d32-dinov2.pt": "vavae_tiny.pt",
    "latents_stats.pt": "data_shards/latents_stats.pt",
  },
}
PUBLISHED = ("gmem_xl", "bank_in1k", "va_vae", "latent_stats")


def call(*arguments: str, **environment: str) -> tuple[int, str, list[str]]:
  """Status, what it said, and the lines of its errors."""
  done = subprocess.run(
    [sys.executable, "-m", "gmem_jax.convert", *arguments],
    env=os.environ | environment,
    stdin=subprocess.DEVNULL,
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  errors = [x for x in done.stderr.splitlines() if x.startswith("gmem_jax: ")]
  return done.returncode, done.stdout, errors


def test_all_parts_come_once_and_go_on_where_they_were_cut(
  golden_dir, tmp_path
):
  out = tmp_path / "weights"
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    for repo, files in GOLDEN.items():
      handler.repos[repo] = {
        name: (golden_dir / golden).read_bytes()
        for name, golden in files.items()
      }
    handler.licences["Tangentone/GMem"] = "mit"

    status, said, (error,) = call("fetch", str(out), **environment)
    assert status == 2
    assert error == "gmem_jax: nothing was fetched; --yes does not ask"
    assert not out.exists()
    assert not [path for _, path in handler.log if "/resolve/" in path]
    size = (golden_dir / "lightningdit_a.pth").stat().st_size
    assert f"network.pth, {size / 1e6:,.1f} MB, licence: mit" in said
    assert "/Memory_bank_in1k.pth, " in said
    assert "licence: see http://127.0.0.1" in said  # That of VA-VAE.

    handler.cut.append(size // 2)
    status, said, errors = call("fetch", str(out), "--yes", **environment)
    assert (status, errors) == (0, [])
    assert not handler.cut, "no transfer was cut off"
    for name in PUBLISHED:
      kind = weights.read_metadata(out / name)["kind"]
      assert kind in fetch.PARTS[name].kinds, name

    handler.log.clear()
    status, said, errors = call("fetch", str(out), "--yes", **environment)
    assert (status, errors) == (0, [])
    assert f"{out} has all of {', '.join(PUBLISHED)}" in said
    assert not handler.log, "the hub was asked for what is there"
    assert f"--config.sample.bank={out / 'bank_in1k'}" in said.splitlines()[-1]

    handler.repos["owner/page"] = {"model.pth": b"<html>"}
    page = "hf://owner/page/model.pth"
    status, said, (error,) = call(page, str(out), **environment)
    assert (status, error) == (
      2,
      f"gmem_jax: {out} already exists; it is left as it is",
    )
    assert not handler.log, "it was fetched for nothing"
    status, said, (error,) = call(page, str(tmp_path / "page"), **environment)
    assert status == 2
    assert error.startswith(f"gmem_jax: {page}: ")
    assert "is a web page" in error
    assert not (tmp_path / "page").exists()


def test_a_part_of_another_kind_is_named(golden_dir, tmp_path, capsys):
  bank = golden_dir / "bank_full.pth"
  local = [f"{name}={bank}" for name in PUBLISHED]
  status = fetch.main([str(tmp_path), "--yes", "--source", *local])
  assert status == 2
  message = "it is a bank, not a lightning_dit"
  assert f"{bank}: {message}" in capsys.readouterr().err
  assert not (tmp_path / "gmem_xl").exists()
  # Nothing is on the hub: there is nothing to agree to.
  assert fetch.main([str(tmp_path), "--source", *local]) == 2
  assert message in capsys.readouterr().err
  for source, message in (
    ("dinov2=gone.pth", "--source dinov2=gone.pth: there is no such file"),
    ("dino=x", "--source dino=x: expected NAME=SRC, NAME one of gmem_xl, "),
  ):
    with pytest.raises(SystemExit) as caught:
      fetch.main([str(tmp_path), "--source", source])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
