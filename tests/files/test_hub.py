"""Addresses of the hub, fetched from a server of its endpoints on loopback."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.files import hub
from tests.files import hub_server


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
  """A stored bank."""
  rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
  made = bank_lib.MemoryBank(rows)
  about = bank_lib.make_info(made, encoder="", source="test")
  path = tmp_path_factory.mktemp("bank") / "bank"
  bank_files.write(path, bank_files.Stored(made, about))
  return path


@pytest.fixture
def served(bank, tmp_path):
  """Serves the bank; gives its handler, and what reads an address of it."""
  pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    handler.repos["owner/name"] = hub_server.files_of(bank, "banks/")
    handler.private.add("owner/secret")

    def read(text: str, **changes: str) -> tuple[str, str]:
      """The digest of a bank's rows, or ""; and the error."""
      code = (
        "import sys, hashlib, numpy as np; from gmem_jax.bank import files\n"
        "try: rows = files.read(sys.argv[1]).bank.rows\n"
        "except (ValueError, ModuleNotFoundError) as e: sys.exit(str(e))\n"
        "print(hashlib.sha256(np.asarray(rows).tobytes()).hexdigest())"
      )
      done = subprocess.run(
        [sys.executable, "-c", code, text],
        env=os.environ | environment | changes,
        capture_output=True, text=True, check=False,
      )  # fmt: skip
      return done.stdout.strip(), done.stderr.strip().splitlines()[-1:]

    yield handler, read


def digest_of(bank):
  rows = np.asarray(bank_files.read(bank).bank.rows)
  return hashlib.sha256(rows.tobytes()).hexdigest()


def test_a_bank_comes_once_and_is_there_without_network(served, bank):
  handler, read = served
  address = "hf://owner/name/banks"
  largest = max(map(len, handler.repos["owner/name"].values()))
  handler.cut.append(largest // 2)  # It goes on from there.
  assert read(address)[0] == digest_of(bank)
  assert not handler.cut, "no transfer was cut off"
  fetched = [path for method, path in handler.log if method == "GET"]
  assert any("/resolve/" in path for path in fetched)
  handler.log.clear()
  assert read(address)[0] == digest_of(bank)
  assert not [
    path
    for method, path in handler.log
    if method == "GET" and "resolve" in path
  ]
  handler.log.clear()
  assert read(address, HF_HUB_OFFLINE="1")[0] == digest_of(bank)
  assert not handler.log


def test_what_cannot_be_had_is_one_line(served, bank):
  _, read = served
  for address, message, environment in (
    # Before anything is in the cache, which would do.
    ("hf://owner/name/banks", "HF_HUB_OFFLINE", {"HF_HUB_OFFLINE": "1"}),
    ("hf://owner/name/banks", "", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ("hf://owner/secret/banks", "Repository Not Found", {}),
    ("hf://owner/secret/banks", "hf auth login", {}),
    ("hf://owner/name/nothing", "owner/name has no 'nothing'", {}),
    ("hf://owner/name", "is not a bank", {}),
  ):
    found, (error,) = read(address, **environment)
    assert found == ""
    assert message in error
    if not message.startswith("is not"):
      assert error.startswith(f"{address}: ")


def test_a_file_of_another_digest_is_refused_and_removed(served, bank):
  handler, read = served
  handler.digest = "0" * 64
  found, (error,) = read("hf://owner/name/banks")
  assert found == ""
  assert "the hub promised 000000000000" in error
  handler.digest = ""
  assert read("hf://owner/name/banks")[0] == digest_of(bank)


@pytest.mark.parametrize(
  "text", ["hf://", "hf://owner", "hf://owner/name@", "hf://o/n/../../etc"]
)
def test_an_address_has_a_form(text):
  with pytest.raises(ValueError, match="hf://OWNER/NAME"):
    hub.parse(text)


def test_an_address_is_read():
  assert hub.parse("hf://a/b-c.d@v1.0/e/f.npz") == (
    "a/b-c.d",
    "v1.0",
    "e/f.npz",
  )
  assert hub.parse("hf://a/b") == ("a/b", None, "")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ModuleNotFoundError, match=r"gmem_jax\[hub\]"):
    hub.local("hf://owner/name")
