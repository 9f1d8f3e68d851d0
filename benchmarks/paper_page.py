"""`docs/paper.html`: the tables, curves and pictures of `paper` in one file, all from its rows."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm_dream.errors import UserError
from ldm_dream.writing import whole_file

from . import claims
from .discrepancy import SAMPLING, TRAINING
from .paper_pictures import pictures
from .paper_rows import TITLES, Models, Results, difference, signed
from .paper_systems import (
    ARMS,
    BICUBIC,
    DISCREPANCY,
    DREAM,
    MAIN,
    ORIGINAL,
    REGRESSION,
    SHARES,
    STANDARD,
    STEPS,
    SYSTEMS,
    TIME,
    Point,
    System,
)
from .record import RESULTS, Row, read
from .tables import SPREAD, TABLES, asked, cost, newest, runs

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 3rem } h3 { margin-top: 2rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: right }
th:first-child, td:first-child, td.text { text-align: left }
caption, .note { color: #555; text-align: left } code { background: #f4f4f4; padding: 0 .2rem }
pre { background: #f4f4f4; overflow-x: auto; padding: .7rem } svg { height: auto; max-width: 100% }
figure { margin: 1rem 0 } figure img { display: block; width: 100% }
img { image-rendering: pixelated } .cuts th { text-align: left } .cuts td { border: 0; padding: .15rem } .cuts img { width: 9rem }
.shown { color: #17692b } .against { color: #a11 }
"""
COLOURS = {STANDARD: "#777777", DREAM: "#c2410c"}
CURVES = ("psnr_y", "ssim_y", "lpips", "frechet_efficientnet_lite0")


def write(rows: Path, page: Path, scale: str) -> None:
    """The page of all rows that there are; what was not run yet is said."""
    found = read(rows) if rows.exists() else []
    results = Results(found, scale)
    parts = [_head(results.rows, scale), "<h2>Claims</h2>", _claims(results)]
    for name, system in SYSTEMS[scale].items():
        parts.append(f"<h2>{escape(system.title)}</h2>")
        if not any(row["subject"] == name for row in results.rows):
            parts.append('<p class="note">Not run yet.</p>')
            continue
        parts += [_about(results, name, system), _arms(results, name, system)]
        parts += [_gain(results, name, system), _sampling(results, name, system)]
        parts += [_scales(results, name, system)] if system.scales else []
        parts += [_convergence(results, name, system), _discrepancy(results, name)]
        shown = (BICUBIC, *_others(results, name), REGRESSION, *MAIN, ORIGINAL)
        parts.append(pictures(rows, scale, name, shown))
    parts += ["<h2>Time and memory (Table 5)</h2>", _costs()]
    text = "\n".join(parts)
    with whole_file(page) as draft:
        draft.write_text(
            '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>DREAM's paper, measured</title><style>{STYLE}</style>\n{text}\n</html>\n",
            encoding="utf-8",
        )


# ------------------------------------------------------------------------------------ words, tables


def _head(rows: list[Row], scale: str) -> str:
    commands = dict.fromkeys(row["command"] for row in rows)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows)) or "none"
    machines = dict.fromkeys(
        f"{row['machine']['gpu'] or row['machine']['cpu']} ({row['machine']['vectors']}), "
        f"{row['machine']['threads']} threads, torch {row['machine']['torch']}"
        for row in rows
    )
    return f"""<h1>DREAM's paper, measured</h1>
<p>Tables and figures of <a href="https://arxiv.org/abs/2312.00210">DREAM</a> (CVPR 2024), made anew
at the scale <code>{escape(scale)}</code>. <b>standard</b> is the plain diffusion loss, <b>p = 1</b>
is DREAM, p = 0 rectifies everywhere alike. All arms share network, data, noise of sampling and
pictures. ± is half of the distance between the best and the worst seed. Differences have a 95 %
interval (paired bootstrap over seeds and pictures; of three seeds it is too narrow). An interval
that holds 0 shows no difference. LPIPS (Alex) and the distances of EfficientNet-lite0 are in no loss
here.</p>
<p class="note">Commits: {escape(commits)}. Machines: {escape("; ".join(machines) or "none")}.</p>
<pre>{escape(chr(10).join(filter(None, commands)) or "No rows yet.")}</pre>"""


def _table(head: Iterable[str], lines: Iterable[Iterable[str]], caption: str) -> str:
    def cells(tag: str, line: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(x)}</{tag}>" for x in line) + "</tr>"

    body = "\n".join(cells("td", line) for line in lines)
    return f"<table><caption>{escape(caption)}</caption>{cells('th', head)}\n{body}</table>"


def _claims(results: Results) -> str:
    body = "\n".join(
        f'<tr><td>{escape(claim)}</td><td class="text">{escape(SYSTEMS[results.scale][system].title)}</td>'
        f'<td class="text {escape(word.replace(" ", "-"))}">{escape(word)}</td>'
        f'<td class="text">{escape(figures)}</td></tr>'
        for claim, system, word, figures in claims.lines(results)
    )
    head = "".join(f"<th>{x}</th>" for x in ("claim", "system", "verdict", "figures"))
    return f"<table><tr>{head}</tr>{body}</table>"


def _about(results: Results, name: str, system: System) -> str:
    row = next(row for row in results.rows if row["subject"] == name)
    settings, knobs = row["settings"], " ".join(row["settings"]["set"])
    pictures = ", ".join(system.hr)
    return (
        f"<p><code>{escape(system.config)}</code> {escape(knobs)}: {settings['full']} steps of "
        f"training; {system.count} pictures of <code>{escape(pictures)}</code>, cut to "
        f"{system.crop} pixels; {system.sampling[-1]} steps of sampling unless said.</p>"
    )


def _arms(results: Results, name: str, system: System) -> str:
    """The paper's Tables 1 to 3."""
    full = system.sampling[-1]
    found = {other: results.at(name, other, None) for other in (BICUBIC, *_others(results, name))}
    if system.regression:
        found[REGRESSION] = results.full(name, REGRESSION, 1)
    found |= {arm: results.full(name, arm, full) for arm in ARMS}
    found[f"{STANDARD}, time of {DREAM}"] = results.full(name, STANDARD, full, TIME)
    lines = [
        [arm, str(len(models.by_seed) or "not run"), *map(models.text, TITLES)]
        for arm, models in found.items()
    ]
    return _table(["", "seeds", *TITLES.values()], lines, "Every p (Tables 1 to 3)")


def _others(results: Results, name: str) -> list[str]:
    """Those of --other."""
    return [
        row["variant"]
        for row in results.rows
        if row["subject"] == name and "from" in row["settings"]
    ]


def _gain(results: Results, name: str, system: System) -> str:
    dream = results.full(name, DREAM, system.sampling[-1])
    lines = []
    for equal in (STEPS, TIME):
        plain = results.full(name, STANDARD, system.sampling[-1], equal)
        cells = [signed(difference(dream, plain, score), score) for score in TITLES]
        lines.append([f"equal {equal}", *cells])
    return _table(["", *TITLES.values()], lines, f"{DREAM} minus {STANDARD}")


def _scales(results: Results, name: str, system: System) -> str:
    """The paper's Table 4."""
    lines = []
    for scale in system.scales:
        found = {BICUBIC: results.at(name, BICUBIC, scale)}
        found |= {
            arm: results.full(name, arm, system.sampling[-1], equal, scale)
            for arm, equal in ((STANDARD, TIME), (DREAM, STEPS))
        }
        lines += [[f"x{scale}, {arm}", *map(models.text, TITLES)] for arm, models in found.items()]
        gains = [signed(difference(found[DREAM], found[STANDARD], x), x) for x in TITLES]
        lines.append([f"x{scale}, difference", *gains])
    caption = "Scales that it was not trained for (Table 4), trained for equal time"
    return _table(["", *TITLES.values()], lines, caption)


def _costs() -> str:
    """The paper's Table 5, from the rows of `train-step`."""
    path = RESULTS / "train-step.jsonl"
    table = TABLES["train-step"]
    rows = filter(table.wanted, read(path)) if path.exists() else ()
    lines = []
    for run in runs(newest(rows, table.runs)):
        dream = run["ours DREAM"]
        machine = dream["machine"]
        where = f"{machine['gpu'] or machine['cpu']} ({machine['vectors']}), {dream['commit']}"
        lines.append([asked(dream).replace("`", ""), where, *cost(run)])
    head = ["config", "machine, commit", "time, DREAM / standard", "memory"]
    return _table(head, lines, SPREAD[0].upper() + SPREAD[1:])


# ------------------------------------------------------------------------------------------- curves


def drawing() -> tuple[Any, Any]:
    """matplotlib and its pyplot, without a window. Raises UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "`paper` draws with matplotlib, which is not installed; in the clone: pip install -e '.[paper]'"
        ) from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    return matplotlib, pyplot


def _sampling(results: Results, name: str, system: System) -> str:
    at: dict[str, Callable[[float], Models]] = {
        arm: lambda steps, arm=arm: results.full(name, arm, int(steps)) for arm in MAIN
    }
    title = "Scores against steps of sampling (Figures 8, 13, 14)"
    return _curves(at, system.sampling, "steps of sampling", title)


def _convergence(results: Results, name: str, system: System) -> str:
    full = system.sampling[-1]
    at: dict[str, Callable[[float], Models]] = {
        arm: lambda share, arm=arm: results.at(name, arm, Point(share, STEPS, full)) for arm in MAIN
    }
    title = "Scores against steps of training (Figures 1, 7, 10 to 12)"
    return _curves(at, (*SHARES, 1.0), "share of the training", title)


def _discrepancy(results: Results, name: str) -> str:
    """The estimate of z0 where z_t is made of the truth (dashed), and where sampling led to it; empty
    where no arm has rows of it.
    """
    if not any(results.at(name, arm, DISCREPANCY).by_seed for arm in MAIN):
        return ""
    _, pyplot = drawing()
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 2.8))
    for panel, (score, label) in zip(panels, {"mse": "MSE of z0", "lpips": "LPIPS"}.items()):
        for arm in MAIN:
            models = results.at(name, arm, DISCREPANCY)
            for kind, line in ((TRAINING, "--"), (SAMPLING, "-")):
                start = f"{score}/{kind}/"
                at = sorted(
                    int(key.removeprefix(start))
                    for key in {key for metrics in models.by_seed.values() for key in metrics}
                    if key.startswith(start)
                )
                values = [models.values(f"{start}{t}") for t in at]
                label_of = f"{arm}, {kind}"
                _banded(panel, at, values, COLOURS[arm], label_of, line)
        panel.set_title(label, fontsize=9)
        panel.set_yscale("log" if score == "mse" else "linear")  # it spans thousands
        panel.set_xlabel("index t of the process; sampling goes from the right", fontsize=8)
        _plain(panel)
    panels[0].legend(fontsize=7)
    return _svg(figure, "Estimates in training and in sampling (Figure 3)")


def _banded(
    panel: Any, xs: Sequence[float], values: list[list[float]], colour: str, label: str, line: str
) -> None:
    """The mean of the seeds, and a band from the least to the largest."""
    panel.plot(xs, [*map(statistics.fmean, values)], line, color=colour, label=label)
    panel.fill_between(
        xs, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, linewidth=0
    )


def _plain(panel: Any) -> None:
    panel.tick_params(labelsize=7)
    panel.grid(color="#eeeeee")


def _svg(figure: Any, title: str) -> str:
    """The figure under its title, as part of the page."""
    matplotlib, pyplot = drawing()
    figure.tight_layout()
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = drawn.getvalue()
    return f"<h3>{escape(title)}</h3>\n{svg[svg.index('<svg') :]}"


def _curves(
    arms: dict[str, Callable[[float], Models]], xs: Iterable[float], label: str, title: str
) -> str:
    """A panel a score."""
    _, pyplot = drawing()
    figure, panels = pyplot.subplots(1, len(CURVES), figsize=(3.1 * len(CURVES), 2.6))
    for panel, score in zip(panels, CURVES):
        for arm, at in arms.items():
            found = [(x, values) for x in xs if (values := at(x).values(score))]
            places, values = [x for x, _ in found], [values for _, values in found]
            _banded(panel, places, values, COLOURS[arm], arm, ".-")
        panel.set_title(TITLES[score], fontsize=9)
        panel.set_xlabel(label, fontsize=8)
        panel.set_xscale("log")
        panel.set_xticks(list(xs), labels=[f"{x:g}" for x in xs], minor=False)
        panel.minorticks_off()
        _plain(panel)
    panels[0].legend(fontsize=8)
    return _svg(figure, title)
