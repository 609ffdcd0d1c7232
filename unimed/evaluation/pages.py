"""Self-contained HTML pages about runs: one run with its worst cases, and a leaderboard over several.

A page is one file: no script, no network, everything that came from data or models is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimed.evaluation.comparing import Aligned, by_stratum, pairs, ranking, stability
from unimed.files import write_text
from unimed.io.findings import NOTICE
from unimed.markup import for_html
from unimed.metrics.statistics import Interval
from unimed.version import __version__

_STYLE = """
:root { color-scheme: light; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 1100px; padding: 12px 18px; color: #1b1f24; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.4em 0 .3em; }
.notice { background: #fff3cd; border: 1px solid #d9b44a; padding: 5px 10px; border-radius: 4px; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; min-width: 50%; }
th, td { text-align: left; padding: 3px 9px; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
.cases { display: flex; flex-wrap: wrap; gap: 12px; } figure { margin: 0; width: 320px; }
figure img { width: 100%; background: #000; } figcaption { font-size: 12px; overflow-wrap: anywhere; }
code { background: #f1f3f5; padding: 1px 4px; overflow-wrap: anywhere; } .note { color: #57606a; font-size: 13px; }
""".strip()
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, *parts: str) -> str:
    """A whole page. `title` is escaped; `parts` are HTML and must be already."""
    name = for_html(title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title><style>{_STYLE}</style></head><body>",
            f'<p class="notice">{for_html(NOTICE)}</p>',
            f"<h1>{name}</h1>",
            *(part for part in parts if part),
            f'<p class="note">unimed {__version__}</p></body></html>\n',
        ]
    )


def table(rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> str:
    """Rows as a table; numbers stand on the right, NaN and missing ones are a dash."""
    columns = list(columns or dict.fromkeys(key for row in rows for key in row))
    numeric = {c for c in columns if all(_is_number(row.get(c)) for row in rows if row.get(c) not in (None, ""))}
    kind = {c: ' class="n"' if c in numeric else "" for c in columns}
    head = "".join(f"<th{kind[c]}>{for_html(c.replace('_', ' '))}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{kind[c]}>{for_html(_cell(row.get(c)))}</td>" for c in columns) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def forest(lines: Sequence[tuple[str, Interval]], *, zero: bool = False, label: str = "") -> str:
    """Values with their intervals as an SVG, one line each.

    Args:
        zero: draw a line at 0, for differences.
    """
    known = [one for _, one in lines if not math.isnan(one.value)]
    if not known:
        return ""
    ends = [end for one in known for end in (one.value, one.low, one.high) if math.isfinite(end)] + [0.0] * zero
    low, high = min(ends), max(ends)
    if high == low:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    left = min(420, 12 + 7 * max(len(name) for name, _ in lines))
    width, row, top = 920, 24, 8
    bottom = top + row * len(lines)

    def x(value: float) -> float:
        return left + (width - left - 20) * (value - low) / (high - low)

    marks = []
    for place in range(5):
        value = low + (high - low) * place / 4
        marks.append(
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom}" stroke="#e5e7eb"/>'
            f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>'
        )
    if zero:
        marks.append(f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{bottom}" stroke="#1b1f24"/>')
    for number, (name, one) in enumerate(lines):
        y = top + row * number + row / 2
        marks.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{for_html(_short(name, 58))}</text>')
        if math.isnan(one.value):
            continue
        if math.isfinite(one.low) and math.isfinite(one.high):
            marks.append(
                f'<line x1="{x(one.low):.1f}" x2="{x(one.high):.1f}" y1="{y}" y2="{y}" stroke="#0072b2" '
                'stroke-width="2"/>'
            )
        marks.append(f'<circle cx="{x(one.value):.1f}" cy="{y}" r="4.5" fill="#0072b2"/>')
    named = for_html(label)
    return (
        f'<svg viewBox="0 0 {width} {bottom + 40}" width="{width}" role="img" aria-label="{named}">'
        f"{''.join(marks)}"
        f'<text x="{(left + width - 20) / 2:.0f}" y="{bottom + 34}" text-anchor="middle">{named}</text></svg>'
    )


def image(png: bytes, caption: str) -> str:
    """A PNG inside the page with an escaped caption."""
    held = base64.b64encode(png).decode()
    text = for_html(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{held}"><figcaption>{text}</figcaption></figure>'


def leaderboard(aligned: Aligned, *, title: str, command: str = "", resamples: int = 1000, seed: int = 0) -> str:
    """The page over several runs: ranks with their stability, pairs with tests, strata."""
    options = {"resamples": resamples, "seed": seed}
    lines = ranking(aligned, **options)
    metric = aligned.metric
    parts = [
        f'<p class="note">{for_html(about(aligned))}</p>',
        "<h2>Ranking</h2>",
        table(lines),
        forest([(line["run"], line[metric]) for line in lines], label=f"{metric}, {aligned.better} is better"),
    ]
    if len(aligned.names) > 1:
        tau = stability(aligned, **options)
        if not math.isnan(tau.value):
            parts.append(
                f"<p>Kendall's tau between this order and orders of resampled patients: {for_html(str(tau))} "
                "(1: always the same).</p>"
            )
        compared = pairs(aligned, **options)
        parts += [
            "<h2>Pairs</h2>",
            table(compared),
            '<p class="note">Differences are first minus second with 95 % intervals over resampled patients; p by '
            "permutation of whole patients, corrected by Holm for the number of pairs; Cohen's d of the patients' "
            "means; superiority: share of patients for whom the first is better, ties half.</p>",
            forest([(f"{p['first']} - {p['second']}", p["difference"]) for p in compared], zero=True, label=metric),
        ]
    if strata := by_stratum(aligned, resamples=min(resamples, 500), seed=seed):
        parts += ["<h2>By stratum</h2>", table(strata)]
    if command:
        parts.append(f"<p><code>{for_html(command)}</code></p>")
    return page(title, *parts)


def run_page(
    title: str,
    means: Sequence[Mapping],
    *,
    manifest: Mapping | None = None,
    worst: Sequence[tuple[bytes, str]] = (),
    further: Mapping[str, Sequence[Mapping]] | None = None,
    command: str = "",
) -> str:
    """The page of one run.

    Args:
        means: lines of `Rows.means`.
        manifest: what the run was made of (model, data, version, seed); shown as it is.
        worst: (PNG, caption) of the worst cases, the worst first.
        further: title -> rows of more tables (leaks, baselines, strata).
    """
    parts = ["<h2>Means</h2>", table(means)]
    shown = [
        (" ".join(str(line.get(k, "")) for k in ("kind", "task", "target", "metric") if line.get(k)), line["mean"])
        for line in means
        if isinstance(line.get("mean"), Interval) and 0 <= line["mean"].value <= 1
    ]
    parts.append(forest(shown, label="mean with 95 % interval over patients"))
    for name, rows in (further or {}).items():
        parts += [f"<h2>{for_html(name)}</h2>", table(rows) if rows else "<p>none</p>"]
    if worst:
        parts += ["<h2>Worst cases</h2>", f'<div class="cases">{"".join(image(*one) for one in worst)}</div>']
    if manifest:
        parts += ["<h2>How it was made</h2>", table([{"": key, "value": value} for key, value in _flat(manifest)])]
    if command:
        parts.append(f"<p><code>{for_html(command)}</code></p>")
    return page(title, *parts)


def about(aligned: Aligned) -> str:
    """What is compared, in one sentence, with what was left out."""
    text = f"{aligned.metric} of {len(aligned.groups)} cases of {len(set(aligned.groups))} patients"
    if left := {name: count for name, count in aligned.left_out.items() if count}:
        text += "; left out because a run misses them: " + ", ".join(f"{n} misses {c}" for n, c in left.items())
    return text


def write_page(path: str | Path, text: str) -> Path:
    """Write a page, whole or not at all."""
    return write_text(path, text)


def _flat(held: Mapping, prefix: str = ""):
    for key, value in held.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, (int, float, str)) else str(value)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, Interval)) and not isinstance(value, bool)


def _cell(value) -> str:
    if isinstance(value, Interval):
        if math.isnan(value.value):
            return "-"
        return f"{value.value:.3f}" if math.isnan(value.low) else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return "-" if value is None else str(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"
