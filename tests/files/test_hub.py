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


CAUGHT = """
import sys
from gmem_jax.files import hub
sys.excepthook = lambda kind, error, trace: print(error, file=sys.stderr)
"""
# Of a bank's rows.
DIGEST = """
import hashlib
import numpy as np
from gmem_jax.bank import files
rows = np.asarray(files.read(sys.argv[1]).bank.rows)
print(hashlib.sha256(rows.tobytes()).hexdigest())
"""
BEGINS = """
print(hub.local(sys.argv[1]).read_text()[:3])
"""
# What an address brought, beside each other.
LISTED = """
print(*sorted(p.name for p in hub.local(sys.argv[1]).parent.iterdir()))
"""


@pytest.fixture
def served(bank, tmp_path):
  """Serves the bank; gives its handler, and what reads an address of it."""
  pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    handler.repos["owner/name"] = hub_server.files_of(bank, "banks/")
    handler.private.add("owner/secret")

    def read(text: str, code: str = DIGEST, **changes: str) -> tuple[str, str]:
      """What the code prints of an address, or ""; and the error."""
      done = subprocess.run(
        [sys.executable, "-c", f"{CAUGHT}{code}", text],
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
  handler, read = served
  for address, message, environment in (
    # Before anything is in the cache, which would do.
    ("hf://owner/name/banks", "HF_HUB_OFFLINE", {"HF_HUB_OFFLINE": "1"}),
    ("hf://owner/name/banks", "", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ("hf://owner/secret/banks", "Repository Not Found", {}),
    ("hf://owner/secret/banks", "hf auth login", {}),
    ("hf://owner/name/nothing", "owner/name has no 'nothing', but bank", {}),
    ("hf://owner/name/nothing", "HF_HUB_OFFLINE", {"HF_HUB_OFFLINE": "1"}),
    # A star is a letter of a name: nothing is fetched and then refused.
    ("hf://owner/name/bank*", "owner/name has no 'bank*'", {}),
    ("hf://owner/name", "is not a bank", {}),
  ):
    found, (error,) = read(address, **environment)
    assert found == ""
    assert message in error
    if not message.startswith("is not"):
      assert error.startswith(f"{address}: ")
    if address.endswith("*"):
      assert not [path for _, path in handler.log if "/resolve/" in path]
    handler.log.clear()


def test_a_file_of_another_digest_is_refused_and_removed(served, bank):
  handler, read = served
  handler.digest = "0" * 64
  found, (error,) = read("hf://owner/name/banks")
  assert found == ""
  assert "the hub promised 000000000000" in error
  handler.digest = ""
  assert read("hf://owner/name/banks")[0] == digest_of(bank)


def test_no_wrong_file_stays_behind_another_one(served, tmp_path):
  handler, read = served
  handler.repos["owner/two"] = {
    name: name.encode() * hub_server.LARGE for name in ("a", "b")
  }
  # Whole files, of other bytes than their digests say.
  handler.damaged = True
  assert "2 removed from the cache" in read("hf://owner/two", LISTED)[1][0]
  assert not list(tmp_path.rglob("blobs/*"))
  handler.damaged = False
  assert read("hf://owner/two/b", BEGINS)[0] == "bbb"


def test_an_index_brings_its_shards(served):
  handler, read = served
  index = "model.safetensors.index.json"
  shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  handler.repos["owner/shards"] = {
    f"vae/{name}": name.encode()
    for name in (index, *shards, "model-00001-of-00001.bin", "else.json")
  }
  found, _ = read(f"hf://owner/shards/vae/{index}", LISTED)
  assert found.split() == [*shards, index]


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
