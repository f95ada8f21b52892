"""The address of the page holds its settings, so that it can be passed on."""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from gmem_jax.studio import context

# Characters of a text that comes out of an address.
_LONGEST = 2000

# Until the address has been read, the page's own beginning must not change it.
READY = "() => { window.gmemReady = true; }"
# Writes what differs from the defaults into the address; asks no server.
_WRITE = """(...values) => {
  if (!window.gmemReady) return;
  const names = %s, defaults = %s;
  const query = new URLSearchParams(window.location.search);
  names.forEach((name, i) => {
    const same = JSON.stringify(values[i]) === JSON.stringify(defaults[i]);
    if (same || values[i] === null) query.delete(name);
    else query.set(name, String(values[i]));
  });
  const text = query.toString();
  window.history.replaceState(null, "", text ? "?" + text : "?");
}"""
_TAB = """() => {
  if (!window.gmemReady) return;
  const query = new URLSearchParams(window.location.search);
  query.set("tab", %s);
  window.history.replaceState(null, "", "?" + query.toString());
}"""
_COPY = """() => {
  navigator.clipboard?.writeText(window.location.href);
}"""


def connect(
  demo: gr.Blocks,
  tabs: gr.Tabs,
  each_tab: list[gr.Tab],
  named: Mapping[str, Any],
  button: gr.Button,
) -> Any:
  """Keeps address and controls the same; returns the event that has read it.

  Args:
    demo: Reads the address when the page is loaded.
    tabs: Selected by the ids of `each_tab`.
    each_tab: All of them.
    named: Name in the address -> control.
    button: Copies the address.
  """
  names, all_controls = list(named), list(named.values())
  defaults = [each.value for each in all_controls]
  write = _WRITE % (json.dumps(names), json.dumps(defaults))
  gr.on(
    [each.change for each in all_controls],
    None,
    all_controls,
    None,
    js=write,
    trigger_mode="multiple",
    **context.PRIVATE,
  )
  for tab in each_tab:
    tab.select(
      None, None, None, js=_TAB % json.dumps(tab.id), **context.PRIVATE
    )
  ids = [tab.id for tab in each_tab]
  button.click(None, None, None, js=_COPY, **context.PRIVATE)

  def read(request: gr.Request) -> list[Any]:
    query = dict(request.query_params)
    tab = query.get("tab", "")
    chosen = gr.Tabs(selected=tab) if tab in ids else gr.skip()
    return [
      chosen,
      *(
        _value(control, query[name]) if name in query else gr.skip()
        for name, control in named.items()
      ),
    ]

  return demo.load(
    read,
    None,
    [tabs, *all_controls],
    queue=False,
    show_progress="hidden",
    **context.PRIVATE,
  ).then(None, None, None, js=READY, **context.PRIVATE)


def _value(control: Any, text: str) -> Any:
  """A control's new value out of an address; nothing, if it does not fit."""
  if isinstance(control, gr.Slider | gr.Number):
    try:
      value = float(text)
    except ValueError:
      return gr.skip()
    # Numbers have no bounds: Gradio's message would not name what is outside.
    low, high = control.minimum or 0, control.maximum or 2**32
    if not low <= value <= high:
      return gr.skip()
    return int(value) if value == int(value) else value
  if isinstance(control, gr.Dropdown | gr.Radio):
    allowed = [value for _, value in control.choices]
    return text if text in allowed else gr.skip()
  if isinstance(control, gr.Checkbox):
    return text == "true" if text in ("true", "false") else gr.skip()
  return text[:_LONGEST]
