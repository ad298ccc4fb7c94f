"""A finished table as data, of scores or of plain text, and its forms: CSV (tidy, full precision), Markdown, LaTeX
(booktabs) and HTML.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from d2llm.reporting.layout.marks import Mark
from d2llm.reporting.style import number

Lead = Literal["", "up", "down"]
ARROWS: dict[Lead, str] = {"": "", "up": "↑", "down": "↓"}

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "–": "--",
    "α": r"$\alpha$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


@dataclass(frozen=True)
class Column:
    """One metric of one task; `key`s are for CSV, titles for people."""

    task: str
    task_title: str
    metric: str
    metric_title: str


@dataclass(frozen=True)
class Cell:
    """Mean over seeds, its sample standard deviation (None for a single seed), its rank mark, and whether it is
    significantly above ("up") or below ("down") the strongest baseline."""

    mean: float
    sd: float | None = None
    seeds: int = 1
    mark: Mark = ""
    lead: Lead = ""


@dataclass(frozen=True)
class Row:
    """A method or a reference row; `block` is "reference" or "method", and blocks are set apart."""

    key: str
    title: str
    block: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """`name` is the file's, `heading` and `caption` are plain text without markup."""

    name: str
    heading: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Block:
    """Rows of plain text under a header of their own; the first cell of a row names it. `key` is for CSV."""

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PlainTable:
    """A table of words, ranked by nothing: blocks below each other. Scores belong in a `Table`."""

    name: str
    heading: str
    caption: str
    blocks: tuple[Block, ...]


AnyTable = Table | PlainTable


def to_csv(table: AnyTable) -> str:
    """One line a cell: block, method, task, metric, mean, sd (empty for one seed), seeds, mark, lead; floats in full.

    Of a plain table: block, row (its number from 1, as names may come twice), name, column, text.
    """
    if isinstance(table, PlainTable):
        return _write_plain_csv(table)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "block", "method", "task", "metric", "mean", "sd", "seeds", "mark", "lead"])
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            sd = "" if cell.sd is None else repr(cell.sd)
            place = [table.name, row.block, row.key, column.task, column.metric]
            writer.writerow([*place, repr(cell.mean), sd, cell.seeds, cell.mark, cell.lead])
    return out.getvalue()


def to_markdown(table: AnyTable) -> str:
    """A pipe table: best in bold, runner-up underlined (HTML, which Markdown lacks), reference rows in italics."""
    lines = [f"**{_escape_md(table.heading)}** {_escape_md(table.caption)}", ""]
    if isinstance(table, PlainTable):
        lines += _write_plain_markdown(table)
    elif table.rows:
        lines.append(
            _join_by_pipes(
                ["Method", *(f"{_escape_md(c.task_title)}<br>{_escape_md(c.metric_title)}" for c in table.columns)]
            )
        )
        lines.append(_join_by_pipes(["---", *("---:" for _ in table.columns)]))
        for row in table.rows:
            name = f"*{_escape_md(row.title)}*" if row.block == "reference" else _escape_md(row.title)
            lines.append(_join_by_pipes([name, *(_write_md_cell(cell) for cell in row.cells)]))
    return "\n".join(lines).rstrip("\n") + "\n"


def to_latex(table: AnyTable) -> str:
    r"""A `table*` (packages booktabs, graphicx): tasks span their metrics, blocks are ruled off."""
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{\textbf{{{tex(table.heading)}}} {tex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
    ]
    if isinstance(table, PlainTable):
        lines += _write_plain_latex(table)
    elif table.rows:
        lines += [
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *_write_tex_head(table.columns),
        ]
        for _, rows in groupby(table.rows, key=lambda row: row.block):
            lines.append(r"\midrule")
            lines += [
                " & ".join([tex(row.title), *(_write_tex_cell(cell) for cell in row.cells)]) + r" \\" for row in rows
            ]
        lines += [r"\bottomrule", r"\end{tabular}}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def to_html(table: AnyTable) -> str:
    """A `<table>`, to stand in a page or alone: tasks span their metrics, blocks are bodies of their own.

    ASCII, other characters as references, so that it shows the same whatever encoding a page is read in. A plain table
    is a `<table>` a block.
    """
    if isinstance(table, PlainTable):
        return _write_plain_html(table)
    lines = [
        "<table>",
        f"<caption><div><strong>{_escape_html(table.heading)}</strong> {_escape_html(table.caption)}</div></caption>",
    ]
    if table.rows:
        tasks = [
            (title, len(list(group)))
            for (_, title), group in groupby(table.columns, key=lambda column: (column.task, column.task_title))
        ]
        spans = "".join(f'<th scope="colgroup" colspan="{width}">{_escape_html(title)}</th>' for title, width in tasks)
        names = "".join(f'<th scope="col">{_escape_html(column.metric_title)}</th>' for column in table.columns)
        groups = "".join(f'<colgroup span="{width}"></colgroup>' for _, width in tasks)
        lines += [f"<colgroup></colgroup>{groups}"]
        lines += [
            "<thead>",
            f'<tr><th scope="col" rowspan="2">Method</th>{spans}</tr>',
            f"<tr>{names}</tr>",
            "</thead>",
        ]
        for block, rows in groupby(table.rows, key=lambda row: row.block):
            lines.append(f'<tbody class="{_escape_html(block)}">')
            for row in rows:
                cells = "".join(f"<td>{_write_html_cell(cell)}</td>" for cell in row.cells)
                lines.append(f'<tr><th scope="row">{_escape_html(row.title)}</th>{cells}</tr>')
            lines.append("</tbody>")
    return "\n".join([*lines, "</table>"]) + "\n"


def tex(text: str) -> str:
    """Plain text with LaTeX's special characters escaped.

    >>> tex("R&D 5% a_b")
    'R\\\\&D 5\\\\% a\\\\_b'
    """
    return "".join(_TEX.get(character, character) for character in text)


def _write_plain_csv(table: PlainTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "block", "row", "name", "column", "text"])
    for block in table.blocks:
        for place, row in enumerate(block.rows, 1):
            for column, text in list(zip(block.header, row, strict=True))[1:]:
                writer.writerow([table.name, block.key, place, row[0], column, text])
    return out.getvalue()


def _write_plain_html(table: PlainTable) -> str:
    if not table.blocks:
        return f"<p><strong>{_escape_html(table.heading)}</strong> {_escape_html(table.caption)}</p>\n"
    lines = []
    for place, block in enumerate(table.blocks):
        heading = f"<strong>{_escape_html(table.heading)}</strong> {_escape_html(table.caption)} " if place == 0 else ""
        lines += ['<table class="words">', f"<caption><div>{heading}{_escape_html(block.title)}.</div></caption>"]
        lines += [
            "<thead>",
            "<tr>" + "".join(f'<th scope="col">{_escape_html(text)}</th>' for text in block.header) + "</tr>",
        ]
        lines += ["</thead>", "<tbody>"]
        for name, *rest in block.rows:
            cells = "".join(f"<td>{_escape_html(text)}</td>" for text in rest)
            lines.append(f'<tr><th scope="row">{_escape_html(name)}</th>{cells}</tr>')
        lines += ["</tbody>", "</table>"]
    return "\n".join(lines) + "\n"


def _write_plain_markdown(table: PlainTable) -> list[str]:
    lines = []
    for block in table.blocks:
        lines += [f"*{_escape_md(block.title)}*", "", _join_by_pipes([_escape_md(text) for text in block.header])]
        lines.append(_join_by_pipes(["---" for _ in block.header]))
        lines += [_join_by_pipes([_escape_md(text) for text in row]) for row in block.rows]
        lines.append("")
    return lines


def _write_plain_latex(table: PlainTable) -> list[str]:
    lines = []
    for block in table.blocks:
        lines += [
            rf"\medskip\textit{{{tex(block.title)}}}\par\smallskip",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{'l' * len(block.header)}}}",
            r"\toprule",
            " & ".join(map(tex, block.header)) + r" \\",
            r"\midrule",
            *(" & ".join(map(tex, row)) + r" \\" for row in block.rows),
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    return lines


def _write_tex_head(columns: Sequence[Column]) -> list[str]:
    spans, rules, start = [], [], 2
    for (_, title), group in groupby(columns, key=lambda column: (column.task, column.task_title)):
        width = len(list(group))
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{tex(title)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    names = [tex(column.metric_title) for column in columns]
    return [" & ".join(["", *spans]) + r" \\", " ".join(rules), " & ".join(["Method", *names]) + r" \\"]


def _write_tex_cell(cell: Cell) -> str:
    mean = number(cell.mean)
    mean = {"": mean, "best": rf"\textbf{{{mean}}}", "second": rf"\underline{{{mean}}}"}[cell.mark]
    mean += tex(ARROWS[cell.lead])
    return mean if cell.sd is None else rf"{mean} {{\scriptsize$\pm$ {number(cell.sd)}}}"


def _write_md_cell(cell: Cell) -> str:
    mean = number(cell.mean)
    mean = {"": mean, "best": f"**{mean}**", "second": f"<u>{mean}</u>"}[cell.mark]
    mean += ARROWS[cell.lead]
    return mean if cell.sd is None else f"{mean} ± {number(cell.sd)}"


def _write_html_cell(cell: Cell) -> str:
    mean = number(cell.mean)
    mean = {"": mean, "best": f"<strong>{mean}</strong>", "second": f"<u>{mean}</u>"}[cell.mark]
    mean += _escape_html(ARROWS[cell.lead])
    return mean if cell.sd is None else f"{mean} <small>{_escape_html('±')} {number(cell.sd)}</small>"


def _escape_html(text: str) -> str:
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _escape_md(text: str) -> str:
    for character in "\\|*_<":
        text = text.replace(character, f"\\{character}")
    return text


def _join_by_pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
