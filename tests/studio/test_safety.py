"""What a visitor must not be able to do, and what must not stay."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

import pytest

from gmem_jax.studio import __main__ as studio_main
from tests.studio import conftest


def ask(url, data=None, headers=()):
  """(status, headers, body)."""
  request = urllib.request.Request(url, data, dict(headers))
  try:
    with urllib.request.urlopen(request, timeout=20) as answer:
      return answer.status, answer.headers, answer.read()
  except urllib.error.HTTPError as error:
    return error.code, error.headers, error.read()


def upload(url, name, contents):
  """Uploads a file as the page does."""
  mark = uuid.uuid4().hex
  body = (
    (
      f'--{mark}\r\nContent-Disposition: form-data; name="files";'
      f' filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    ).encode()
    + contents
    + f"\r\n--{mark}--\r\n".encode()
  )
  kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
  return ask(url + "gradio_api/upload", body, kind)


@pytest.mark.parametrize(
  "path",
  [
    "/etc/passwd",
    "{workdir}/config.json",
    "{temporary}/../temporary.log",
    "setup.cfg",
    "gmem_jax/main.py",
    "../../../../etc/passwd",
  ],
)
def test_no_file_of_the_server_is_read(server, path):
  path = path.format(workdir=server.workdir, temporary=server.temporary)
  for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
    status, _, body = ask(server.url + route + path)
    assert status in (403, 404), (route, status)
    assert b"root:" not in body
    assert b"train" not in body


def test_nor_is_one_taken_for_an_upload(server):
  with urllib.request.urlopen(server.url + "config") as answer:
    config = json.load(answer)
  types = {part["id"]: part for part in config["components"]}
  # Of the tab "Make", which alone asks where memories come from and for files.
  event = next(
    each
    for each in config["dependencies"]
    if {"radio", "file"} <= {types[n]["type"] for n in each["inputs"]}
  )
  data = []
  for number in event["inputs"]:
    part = types[number]
    value = part["props"].get("value")
    if part["type"] == "radio":
      value = "pictures"
    if part["type"] == "file":
      value = [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
    data.append(value)
  body = json.dumps(
    {"data": data, "fn_index": event["id"], "session_hash": "intruder"}
  ).encode()
  kind = {"Content-Type": "application/json"}
  status, _, answer = ask(server.url + "gradio_api/queue/join", body, kind)
  if status == 200:
    stream = server.url + "gradio_api/queue/data?session_hash=intruder"
    _, _, answer = ask(stream)
  assert b"root:" not in answer
  assert b"gm-line" not in answer
  assert b'"success":true' not in answer.replace(b" ", b"")


def test_uploads_are_bounded(server):
  status, _, _ = upload(server.url, "large.png", b"0" * (17 << 20))
  assert status == 413
  status, _, _ = upload(server.url, "small.png", b"0" * 1000)
  assert status == 200


def test_a_visitor_may_leave_during_an_upload(server):
  """The server's log, which is looked at when it ends, has no stack of it."""
  where = urllib.parse.urlsplit(server.url)
  for _ in range(3):
    with socket.create_connection((where.hostname, where.port)) as visitor:
      visitor.sendall(
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 100000\r\n\r\n--x\r\n"
      )
      time.sleep(0.3)
  assert ask(server.url)[0] == 200


def test_nothing_comes_from_elsewhere(server):
  status, headers, body = ask(server.url)
  assert status == 200
  assert "default-src 'self'" in headers["content-security-policy"]
  assert "frame-ancestors 'none'" in headers["content-security-policy"]
  for stranger in (b"googleapis", b"cdnjs", b"jsdelivr", b"unpkg"):
    assert stranger not in body


def test_a_password_is_asked_and_nothing_stays(workdir, tmp_path):
  with conftest.serving(
    workdir, tmp_path / "temporary", "--password=open sesame"
  ) as running:
    for route in ("config", "gradio_api/info", "gradio_api/queue/status"):
      assert ask(running.url + route)[0] == 401, route
    assert upload(running.url, "small.png", b"0")[0] == 401
    assert b"memories" not in ask(running.url)[2]
    login = running.url + "login"
    form = "username=ada&password="
    assert ask(login, (form + "guess").encode())[0] == 400
    status, headers, _ = ask(login, (form + "open+sesame").encode())
    assert status == 200
    cookie = {"Cookie": headers["set-cookie"].split(";")[0]}
    status, _, body = ask(running.url + "config", headers=cookie)
    assert status == 200
    assert b"Random rows" in body
    assert list(running.temporary.iterdir())
  assert not list(running.temporary.iterdir()), "uploads and downloads"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--workdir=gone"], "--workdir=gone: there is no such directory"),
    (["--workdir=x", "--host=0.0.0.0"], "--host=0.0.0.0.*--password"),
    (["--workdir=x", "--port=many"], "argument --port"),
    ([], "--workdir"),
  ],
)
def test_bad_flags_end_with_a_line(flags, message, capsys):
  import re

  try:
    status = studio_main.main(flags)
  except SystemExit as ended:
    status = ended.code
  assert status == 2
  said = capsys.readouterr().err
  assert re.search(message, said), said
  assert said.count("\n") == 1


def test_help_needs_no_jax():
  code = (
    "import sys; sys.modules['jax'] = None; sys.modules['gradio'] = None;"
    " from gmem_jax.studio import __main__; __main__.main(['--help'])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert "--password" in done.stdout
