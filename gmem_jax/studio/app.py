"""The page: its tabs, and how it is served."""

import contextlib
import hmac
import importlib.resources
import pathlib
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from gmem_jax.sample.generator import Generator
from gmem_jax.studio import (
  bank_tab,
  between,
  compare,
  context,
  edit,
  link,
  make,
  own_banks,
  uploads,
  watch,
)
from gmem_jax.train import checkpoint

TITLE = "gmem_jax studio"
# Seconds: how often files of visitors are looked through, and how old they get.
SWEEP, OLDEST = 300, 3600
# Nothing comes from elsewhere, and nobody else may show the page in a frame.
# Gradio's scripts and styles are inline, and some make workers out of text.
_POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
  " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src"
  " 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:;"
  " frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)


def build(studio: context.Studio) -> gr.Blocks:
  """Builds the page."""
  # Gradio deletes what visitors brought when they and it are gone.
  with gr.Blocks(
    title=TITLE, analytics_enabled=False, delete_cache=(SWEEP, OLDEST)
  ) as demo:
    # A visitor's own generator; Gradio drops it an hour after the visitor left.
    visit = gr.State(
      None, delete_callback=lambda visit: own_banks.discard(studio, visit)
    )
    with gr.Row(elem_id="gm-head"):
      about = gr.Markdown(_about(studio, None))
      copy = gr.Button("Copy link", size="sm", scale=0, min_width=110)
    with gr.Tabs(selected="make") as tabs:
      with gr.Tab("Make", id="make") as make_tab:
        named = make.build(studio, visit)
      with gr.Tab("Bank", id="bank") as bank:
        bank_named, page, forget, taken = bank_tab.build(studio, visit)
      with gr.Tab("Between", id="between") as between_tab:
        named |= between.build(studio, visit)
      with gr.Tab("Compare", id="compare") as compare_tab:
        named |= compare.build(studio, visit, compare_tab)
      with gr.Tab("Edit", id="edit") as edit_tab:
        edited, new_rows, take_new = edit.build(studio, visit)
      with gr.Tab("Watch", id="watch") as watch_tab:
        watch.build(studio.workdir, studio.has_run, watch_tab)
    all_tabs = [make_tab, bank, between_tab, compare_tab, edit_tab, watch_tab]
    read = link.connect(demo, tabs, all_tabs, {**named, **bank_named}, copy)
    # Of the page that the address names.
    read.then(**page)

    def to_make(row):
      if not row:
        return gr.skip(), gr.skip(), gr.skip()
      return gr.Tabs(selected="make"), make.ROWS, row

    for rows, button in (taken, (new_rows, take_new)):
      button.click(
        to_make, rows, [tabs, named["make_source"], named["make_rows"]],
        show_progress="hidden", **context.PRIVATE,
      )  # fmt: skip
    for event in edited:
      # Rows of the tab Bank are others now.
      event.then(**forget).then(**page)
      event.then(
        lambda visit: _about(studio, visit), visit, about,
        show_progress="hidden", **context.PRIVATE,
      )  # fmt: skip
  return demo


def build_watch(workdir: pathlib.Path) -> gr.Blocks:
  """Builds the page of a run that has no checkpoint yet: it is watched."""
  with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
    with gr.Row(elem_id="gm-head"):
      about = gr.Markdown(_about_young(workdir))
    with gr.Tabs(), gr.Tab("Watch", id="watch") as tab:
      look = watch.build(workdir, True, tab)
    demo.load(**look).then(None, None, None, js=link.READY, **context.PRIVATE)
    timer = gr.Timer(watch.EVERY)
    timer.tick(
      lambda: _about_young(workdir), None, about, show_progress="hidden",
      **context.PRIVATE,
    )  # fmt: skip
  return demo


def _about_young(workdir: pathlib.Path) -> str:
  """The title, and why there is nothing but the tab Watch."""
  text = (
    "no checkpoint yet, so there is nothing to sample from; its training can be"
    " watched"
  )
  if checkpoint.exist(workdir / "checkpoints"):
    text = "it has a checkpoint now: start the studio again to sample from it"
  return f"# {TITLE}\n`{workdir.name}` · {text}"


def _about(studio: context.Studio, visit: Generator | None) -> str:
  """The title, and what is looked at, in a line."""
  source = studio.generator.source
  size = len(studio.current(visit).source.require_bank().rows)
  step, weights = (source.info.get(key) for key in ("step", "weights"))
  what = [f"step {step:,}"] if step is not None else []
  what += [str(weights)] if weights else []
  network = ", ".join([f"`{studio.workdir.name}`", *what])
  whose = "your bank's " if visit else ""
  return f"# {TITLE}\n{network} · {whose}{size:,} memories"


def launch(
  demo: gr.Blocks, folder: str, host: str, port: int, password: str
) -> str:
  """Starts to serve the page in a thread; returns its address.

  `folder` is where visitors' files are.

  Raises:
    OSError: If the port is taken.
  """
  css = importlib.resources.files("gmem_jax.studio") / "style.css"
  demo.queue(max_size=32, api_open=False)

  def admit(user: str, given: str) -> bool:
    del user
    return hmac.compare_digest(given.encode(), password.encode())

  _, url, _ = demo.launch(
    prevent_thread_lock=True,
    quiet=True,
    share=False,
    server_name=host,
    server_port=port,
    auth=admit if password else None,
    auth_message="Any name, and the password that the studio was started with.",
    max_file_size=uploads.MAX_BYTES,
    allowed_paths=[],
    show_error=False,
    footer_links=[],
    run_history=False,
    enable_monitoring=False,
    ssr_mode=False,
    pwa=False,
    mcp_server=False,
    theme=_theme(),
    css=css.read_text(),
    app_kwargs={
      "middleware": [Middleware(_Guard, folder=folder)],
      "docs_url": None, "redoc_url": None, "openapi_url": None,
    },
  )  # fmt: skip
  return url


def _theme() -> gr.themes.Base:
  # Fonts of the machine: others would come from elsewhere.
  return gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
  )


class _Guard:
  """Adds the policy to all answers; refuses uploads while too many are kept."""

  def __init__(self, app: Any, folder: str):
    self._app, self._folder = app, folder

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    if scope["path"].endswith("/upload") and (
      uploads.size_of(self._folder) > uploads.MAX_KEPT
    ):
      answer = PlainTextResponse("too many files are kept; try later", 507)
      await answer(scope, receive, send)
      return

    async def guarded(message: Any) -> None:
      if message["type"] == "http.response.start":
        message["headers"] = [
          *message["headers"],
          (b"content-security-policy", _POLICY.encode()),
          (b"x-content-type-options", b"nosniff"),
          (b"referrer-policy", b"no-referrer"),
        ]
      await send(message)

    # A visitor who leaves in the middle of an upload is no fault.
    with contextlib.suppress(ClientDisconnect):
      await self._app(scope, receive, guarded)
