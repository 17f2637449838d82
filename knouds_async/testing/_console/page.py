"""The status page: the state of an emulator as HTML, whole in one answer, for people and for screen readers.

All that came from outside is escaped, and the page may load and run nothing but what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Final

from knouds_async.testing._console.console import PageQuery, View
from knouds_async.testing._service.runs import Run
from knouds_async.testing.faults import GRAMMAR, KINDS
from knouds_async.testing.messages import Response

__all__ = ["page"]

_RUNS, _CHARGES, _REQUESTS = 100, 50, 50
_HOST: Final = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")
_STATUSES: Final = ("processing", "cancel_requested", "completed", "failed", "cancelled")

_START_OVER: Final = "Start over? Runs, charges, requests, faults and changed settings are forgotten."

Row = Mapping[str, Any]


def page(view: View, asked: PageQuery) -> Response:
    """Render one run; or the newest runs (of one status, if asked for), with windows, charges, requests and faults."""
    state: Row = view.state()
    run = None if asked.run is None else view.service.run(asked.run)
    if asked.run is None:
        status, main = 200, _overview(view, state, asked.status)
    else:
        status, main = 404 if run is None else 200, _live("run", _one_run(view, run), wraps="section")
    style, script = _part("page.css"), _part("page.js")
    body = f"{_header(state, asked.host)}\n<main>\n{main}\n</main>"
    return Response(status, _headers(style, script), _document(body, style, script).encode())


def _overview(view: View, state: Row, status: str | None) -> str:
    return "\n".join(
        [
            _live("sums", _sums(state)),
            _live("windows", _windows(view.limits()), wraps="section"),
            _live("runs", _runs(view, state, status), wraps="section"),
            '<div class="pair">',
            _live("charges", _charges(view, state), wraps="section"),
            _live("requests", _requests(view, state), wraps="section"),
            "</div>",
            _live("faults", _faults(state["faults"]), wraps="section"),
        ]
    )


def _document(body: str, style: str, script: str) -> str:
    """Return the HTML document around the page's body."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<title>Knouds emulator</title>\n<link rel="icon" href="data:,">\n'
        '<noscript><meta http-equiv="refresh" content="3"></noscript>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n"
        "<footer><p>Times are seconds since the first request. Tests in any language can read and change its state "
        'under <a href="__emulator__/">/__emulator__/</a>.</p></footer>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _headers(style: str, script: str) -> dict[str, str]:
    """Return headers that allow the page's own style and script, and nothing else."""
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _part(name: str) -> str:
    return resources.files("knouds_async.testing._console").joinpath(name).read_text(encoding="utf-8")


@cache
def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _live(name: str, content: str, *, wraps: str = "div") -> str:
    label = f' aria-labelledby="{name}-title"' if wraps == "section" else ""
    return f'<{wraps} id="{name}" data-live{label}>{content}</{wraps}>'


def _header(state: Row, host: str) -> str:
    address = f"<code>http://{escape(host)}</code>, " if _HOST.fullmatch(host) else ""
    return (
        f"<header>\n<h1>Knouds emulator</h1>\n<p>{address}tier {escape(str(state['tier']))}; nothing is paid. "
        "The key is printed where it was started.</p>\n"
        '<div class="state"><span id="said" role="status"></span><button id="pause" type="button" hidden>Pause</button>'
        f"{_form('POST reset', '', 'Start over', ask=_START_OVER)}</div>\n</header>"
    )


def _sums(state: Row) -> str:
    runs, charges, requests = state["runs"], state["charges"], state["requests"]
    counted = [
        f'<a href="?status={status}">{runs[status]:,} {status.replace("_", " ")}</a>'
        for status in _STATUSES
        if runs.get(status)
    ]
    grant = f", {charges['grant']:,} from the trial grant" if charges["grant"] else ""
    refused = f"{requests['refused']:,} refused with 429"
    struck = sum(fault["struck"] for fault in state["faults"])
    return '<dl class="tiles">' + "".join(
        [
            _tile("Runs", f"{runs['total']:,}", ", ".join(counted) or "none yet"),
            _tile("Credits charged", f"{charges['credits']:,}", f"{charges['total']:,} charges{grant}"),
            _tile(
                "Requests",
                f"{requests['total']:,}",
                f'<span class="refused">{refused}</span>' if requests["refused"] else refused,
            ),
            _tile("Faults struck", f"{struck:,}", f"{len(state['faults'])} attached"),
            _tile("Running for", _seconds(state["elapsed"]), "since the first request"),
        ]
    ) + "</dl>"  # fmt: skip


def _tile(name: str, value: str, more: str) -> str:
    return f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd>{more}</dd></div>'


def _windows(windows: Iterable[Row]) -> str:
    rows = [
        [
            f"<td>{_code(one['route'])}</td>",
            f"<td>{escape(one['user'])}</td>",
            f'<td class="narrow"><meter max="{one["limit"]}" value="{one["used"]}" high="{one["limit"] * 0.95}" '
            f'aria-label="used">{one["used"]}</meter> {one["used"]:,} of {one["limit"]:,}</td>',
            f'<td class="number">{one["remaining"]:,}</td>',
            f'<td class="number">{_seconds(one["resetsIn"]) if one["resetsIn"] else "idle"}</td>',
        ]
        for one in windows
    ]
    empty = "No route is limited: the account is unlimited."
    return _table("windows", "Rate-limit windows", "", ("Route", "User", "Used", "#Left", "#Resets in"), rows, empty)


def _runs(view: View, state: Row, status: str | None) -> str:
    keep = None if status is None else (lambda run: run.status_at(view.now) == status)
    shown = view.runs(limit=_RUNS, keep=keep)
    rows = [_run(run, state["elapsed"]) for run in shown]
    of = f'with the status {escape(status)}; <a href="./">show all</a>' if status else f"of {state['runs']['total']:,}"
    heads = ("Run", "Target", "Inputs", "Status", "Time", "#Credits", "#Polls", "End seen")
    empty = f"No run {of}." if status else "No run yet."
    return _table("runs", "Runs", f"The newest {len(rows):,} {of}", heads, rows, empty)


def _run(run: Row, elapsed: float) -> list[str]:
    inputs = escape(json.dumps(run["inputs"], ensure_ascii=False))
    status, took = str(run["status"]), run["endsAt"] - run["startedAt"]
    if status in ("processing", "cancel_requested"):
        gone = min(took, max(0.0, elapsed - run["startedAt"]))
        time = f'<progress max="{took:.3f}" value="{gone:.3f}" aria-label="elapsed"></progress> {_seconds(gone)}'
    else:
        time = _seconds(took)
    seen = "" if run["endSeenAt"] is None else f"{_seconds(run['endSeenAt'] - run['endsAt'])} after"
    way = "" if run["isAsync"] else " (synchronous)"
    return [
        f'<th scope="row" class="id">{_run_link(run["executionId"])}</th>',
        f"<td>{escape(run['target'])}{way}</td>",
        f'<td class="inputs" title="{inputs}">{inputs}</td>',
        f'<td><span class="status {escape(status)}">{escape(status.replace("_", " "))}</span></td>',
        f'<td class="narrow">{time}</td>',
        f'<td class="number">{run["cost"]:,}</td>',
        f'<td class="number">{run["polls"]:,}</td>',
        f'<td class="narrow">{seen}</td>',
    ]


def _run_link(execution_id: str) -> str:
    """Return the start of a run's id as a link to all there is of it."""
    shown = escape(execution_id)
    return f'<a href="?run={shown}" title="{shown}">{shown[:8]}</a>'


def _one_run(view: View, found: Run | None) -> str:
    """Return all there is of a run, and what ends it."""
    back = '<p><a href="./">All runs</a></p>'
    if found is None:
        why = "It was never started here, or the emulator was started over since."
        return f'<h2 id="run-title">No run has this id</h2><p class="nothing">{why}</p>{back}'
    run = view.run_and_result(found)
    status = str(run["status"])
    parts = {
        "Execution": _code(run["executionId"], "whole"),
        "Request": _code(run["requestId"], "whole"),
        "Target": escape(f"{run['target']} ({run['kind']}{'' if run['isAsync'] else ', synchronous'})"),
        "Status": f'<span class="status {escape(status)}">{escape(status.replace("_", " "))}</span>',
        "Started": f"at {_seconds(run['startedAt'])}",
        "Ends" if view.now < found.ends else "Ended": f"at {_seconds(run['endsAt'])}",
        "Credits": f"{run['cost']:,}",
        "Polls": f"{run['polls']:,}",
        "End seen": "not yet" if run["endSeenAt"] is None else f"at {_seconds(run['endSeenAt'])}",
        "Inputs": _json(run["inputs"]),
        "Error" if run["error"] else "Result": escape(run["error"] or "") or _result(run["result"]),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in parts.items())
    ends = _ends(run["executionId"]) if run["isAsync"] and not found.is_finished_at(view.now) else ""
    return f'<h2 id="run-title">Run</h2><dl class="parts">{rows}</dl>{ends}{back}'


def _ends(execution_id: str) -> str:
    result = (
        '<textarea name="result" data-json rows="2" aria-label="Result as JSON" placeholder="usual result"></textarea>'
    )
    message = '<input name="message" aria-label="Error message" placeholder="why it failed">'
    finish = _form(f"POST runs/{execution_id}/finish", result, "Finish now")
    return f"{finish}{_form(f'POST runs/{execution_id}/fail', message, 'Fail now')}"


def _result(result: object) -> str:
    if result is None:
        return "none yet"
    links = "".join(f'<li><a href="{escape(url)}" rel="noreferrer">{escape(url)}</a></li>' for url in _urls(result))
    return f"{_json(result)}{f'<ul>{links}</ul>' if links else ''}"


def _urls(value: object) -> Iterator[str]:
    """Return the addresses of files anywhere in a result."""
    if isinstance(value, str):
        yield from [value] if value.startswith(("https://", "http://")) else ()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _urls(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _urls(inner)


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=2))}</pre>"


def _form(send: str, fields: str, button: str, *, ask: str = "") -> str:
    """Return a form that the page's script sends to the control API, after a question; hidden without the script."""
    question = f' data-ask="{escape(ask)}"' if ask else ""
    return (
        f'<form class="control" data-send="{escape(send)}"{question}>{fields}<button>{escape(button)}</button>'
        '<output role="alert"></output></form>'
    )


def _charges(view: View, state: Row) -> str:
    charges: Iterable[Row] = view.charges(limit=_CHARGES)
    rows = [
        [
            f'<td class="number">{_seconds(one["at"])}</td>',
            f'<td class="id">{_run_link(one["executionId"])}</td>',
            f"<td>{escape(one['target'])}</td>",
            f'<td class="number">{one["amount"]:,}</td>',
            f"<td>{one['paidBy']}</td>",
        ]
        for one in charges
    ]
    words = f"The newest {len(rows)} of {state['charges']['total']:,}"
    return _table("charges", "Charges", words, ("#At", "Run", "Target", "#Credits", "From"), rows, "No charge yet.")


def _requests(view: View, state: Row) -> str:
    requests: Iterable[Row] = view.latest_requests(limit=_REQUESTS)
    rows = [
        [
            f'<td class="number">{_seconds(one["at"])}</td>',
            f"<td>{_code(one['route'] + ('?' + one['query'] if one['query'] else ''))}</td>",
            f'<td class="narrow {"failed" if (one["status"] or 599) >= 400 else ""}">{one["status"] or "none"}</td>',
        ]
        for one in requests
    ]
    words = f"The newest {len(rows)} of {state['requests']['total']:,}"
    return _table("requests", "Requests", words, ("#At", "Route", "Answer"), rows, "No request yet.")


def _faults(faults: Iterable[Row]) -> str:
    rows = [
        [
            f"<td>{_code(one['fault'])}</td>",
            f'<td class="number">{one["met"]:,}</td>',
            f'<td class="number">{one["struck"]:,}</td>',
            f"<td>{_form('DELETE faults/' + str(one['number']), '', 'Remove')}</td>",
        ]
        for one in faults
    ]
    heads = ("Fault", "#Requests met", "#Struck", "")
    kinds = "".join(f'<option value="{kind}"></option>' for kind in KINDS)
    field = (
        '<input name="fault" required list="kinds" size="44" aria-label="Fault" '
        'placeholder="closed after_run on submit nth=1">'
        f'<datalist id="kinds">{kinds}</datalist>'
    )
    add = f'{_form("POST faults", field, "Add fault")}<p class="control nothing">{_code(GRAMMAR)}</p>'
    return _table("faults", "Faults", "", heads, rows, "No fault is attached.") + add


def _table(name: str, title: str, words: str, heads: Iterable[str], rows: Iterable[list[str]], empty: str) -> str:
    heading = f'<h2 id="{name}-title">{title}</h2>'
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    if not lines:
        return f'{heading}<p class="nothing">{empty}</p>'
    columns = "".join(
        f'<th scope="col"{" class=number" if head.startswith("#") else ""}>{head.lstrip("#")}</th>' for head in heads
    )
    caption = f"<caption>{words}</caption>" if words else ""
    return (
        f'{heading}<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}-title">'
        f"<table>{caption}<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _code(text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f"<code{named}>{escape(text)}</code>"


def _seconds(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 100 else f"{seconds:.1f} s"
