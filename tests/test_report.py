"""The HTML report: it shows the collected numbers, leaves out what is not there, needs nothing from elsewhere, and holds in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import extras, make, value

from d2llm.config.schema import Config
from d2llm.reporting import captions, catalogue
from d2llm.reporting.layout import formats as layout
from d2llm.reporting.layout.formats import Cell, Column, Row, Table
from d2llm.reporting.page import report
from d2llm.run.artifacts import write_json, write_text
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths, provenance_of

VOID = {"meta", "br", "img", "link", "input", "hr", "col"}
PIXEL = '<svg xmlns="http://www.w3.org/2000/svg" width="690" height="200"><rect width="690" height="200"/></svg>'


class Page(HTMLParser):
    """What stands in a page: balanced tags, ids, headings, references, the cells of tables, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.references: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.references += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given:
            self.references.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything a report may show."""
    config = make(tmp_path_factory.mktemp("whole"))
    extras(config)
    for name in catalogue.FIGURES:
        write_text(Paths.of(config).figure(name, "svg"), PIXEL)
    report.run(config)
    return config


@pytest.fixture(scope="module")
def page(whole) -> Page:
    return Page(Paths.of(whole).report.read_text(encoding="utf-8"))


def test_the_page_is_sound(page: Page) -> None:
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(image["alt"] for image in page.images)


def test_nothing_is_fetched(page: Page, whole) -> None:
    assert all(reference.startswith("data:") for reference in page.references)
    assert all(link.startswith("#") for link in page.links)
    text = Paths.of(whole).report.read_text(encoding="utf-8")
    assert "@import" not in text and "url(" not in text and text.count("<script") == 1
    assert "default-src 'none'" in text and not re.search(r"fetch\(|XMLHttp|import\(|eval\(|innerHTML", text)


def test_numbers_are_the_scores(page: Page) -> None:
    shown = {row[0]: row[1:] for row in reversed(page.rows) if row}  # a name's first row is the overview's
    heads = [("sts", 2, 1), ("ir", 3, 0)]
    for method, title in (("bge", "BGE"), ("d2llm", "D2LLM"), ("bm25", "BM25"), ("teacher", "Teacher (cross-encoder)")):
        wanted = [value(method, 1, 0, 1), value(method, 1, 1, 1)] + [value(method, 1, t, m) for _, t, m in heads]
        assert shown[title] == [f"{number:.4f}" for number in wanted]
    # The rendered tables as well, to the last cell: IR's three metrics.
    assert [f"{value('bge', 1, 3, m):.4f}" for m in range(3)] in [row[1:] for row in page.rows if row[0] == "BGE"]


def test_what_holds_follows_from_the_comparisons(page: Page) -> None:
    shown = {row[0]: row for row in page.rows if len(row) == 9}
    assert shown["NLI: average"] == [
        "NLI: average", "AP", "0.7011", "BGE", "0.6096", "+0.0915", "+0.0715 to +0.1115", "< 0.001", "ahead",
    ]  # fmt: skip
    assert shown["STS-A"][-1] == "ahead, not significantly"
    assert shown["IR-A"][5] == "−0.0345" and shown["IR-A"][-1] == "behind"
    assert "NLI: holds." in page.text and "STS: not shown." in page.text and "Retrieval: does not hold." in page.text
    assert "significantly ahead on 2 of 2, significantly behind on 0, undecided on 0" in page.text


def test_what_is_given_is_escaped(page: Page, whole) -> None:
    assert "NLI <A>" in page.text and "甲 <b>" in page.text
    assert "NLI <A>" not in Paths.of(whole).report.read_text(encoding="utf-8")


def test_how_it_was_run_is_told(page: Page) -> None:
    for said in (
        "7,466",
        "69,632",
        "0.9921",
        "14,927",
        "learning_rate 0.2",
        "2.13.0",
        "c0de",
        "One seed",
        "no evidence",
    ):
        assert said in page.text, said
    assert "\ntier: mini\n" in "\n" + page.text.split("(YAML)")[1] and "results:" not in page.text.split("(YAML)")[1]


def test_what_sets_contradict_or_lost_is_told_where_they_were_read(page: Page, tmp_path: Path) -> None:
    assert "Contradicted" not in page.text and "Left out of the sets" not in page.text  # a generated world has none
    config = make(tmp_path)
    row = {"dataset": "mine", "pairs": 60, "queries": 50, "pool": 70, "contradictions": 5, "removed": 7, "examples": []}
    row["dropped"] = {"rows labelled '-'": 1100}
    queries = {"task": "find", "split": "test", "dropped": {"queries without a judgement": 3}}
    write_json(
        Paths.of(config).about,
        {"card": {"training": [row], "evaluation": [{"task": "whole", "split": "dev"}, queries]}},
    )
    told = Page(report.html(config))
    head = ["Set", "Pairs", "Queries", "Texts to draw negatives from", "Contradicted", "Removed", "Example"]
    assert head in told.rows
    assert ["mine", "60", "50", "70", "5", "7", ""] in told.rows and "the first judgement counts" in told.text
    assert ["mine", "1,100 rows labelled '-'"] in told.rows
    assert ["find/test", "3 queries without a judgement"] in told.rows and "whole/dev" not in told.text


def test_all_scores_are_there_to_browse(page: Page, whole) -> None:
    """Without a script: every collected score of the methods is in a row of its task, metric and phenomenon."""
    rows = {tuple(row[:4]): row[4:] for row in page.rows if len(row) == 10 and row[3] == "1"}
    assert len(rows) == 4 + 4 + 2 + 3 + 2  # metrics of four tasks, a phenomenon of two
    assert rows["NLI <A>", "AP", "all", "1"] == [*(f"{value(name, 1, 0, 1):.4f}" for name in ("teacher", "bm25", "bge", "sgpt", "d2llm")), "1,200"]  # fmt: skip
    assert rows["NLI-B", "AUC", "role swap", "1"][2] == f"{value('bge', 1, 1, 8):.4f}"


def test_seeds_can_be_told_apart(tmp_path: Path) -> None:
    page = Page(report.html(make(tmp_path, seeds=(1, 2, 4))))
    rows = {row[3]: row[6] for row in page.rows if row[:3] == ["STS-A", "Spearman", "all"]}
    values = [value("bge", seed, 2, 1) for seed in (1, 2, 4)]
    assert [rows[seed] for seed in "124"] == [f"{one:.4f}" for one in values]
    assert rows["mean"] == f"{sum(values) / 3:.4f}±\xa0{statistics.stdev(values):.4f}"


def test_variants_stand_beside_their_method(tmp_path: Path) -> None:
    config = make(tmp_path)
    path = Paths.of(config).scores_csv
    scores = pd.read_csv(path, keep_default_na=False)
    varied = scores[scores["method"] == "d2llm"].assign(variant="no_rank", value=0.125)
    pd.concat([scores, varied]).to_csv(path, index=False)
    page = Page(report.html(config))
    assert [row for row in page.rows if row and row[0] == "no_rank"] == [["no_rank", "D2LLM", *["0.1250"] * 4]]
    assert ["base", "D2LLM"] in [row[:2] for row in page.rows]


def test_examples_are_shown_and_escaped(page: Page) -> None:
    pair = next(row for row in page.rows if row and row[0].startswith("甲 <script>"))
    assert pair == [
        "甲 <script>alert(1)</script>and 乙 & 丙",
        "1",
        "role swap",
        "0.75",
        *(f"{50 + n}−{n}.250" for n in range(5)),
    ]
    query = next(row for row in page.rows if row and row[0].startswith("谁"))
    assert query[0] == "谁？right (one of 2): 是他。first with BGE: 是她。" and query[3] == "0.501 – 37"
    assert "2 of 1,200 pairs" in page.text and "1 of 500 queries" in page.text


def test_bytes_are_the_same_twice(whole) -> None:
    assert report.html(whole) == Paths.of(whole).report.read_text(encoding="utf-8")


def test_the_page_reads_nothing_that_its_rule_does_not_name(whole, tmp_path: Path) -> None:
    """Without data, runs, teacher and pairs, as `workflow/rules/report.smk` promises: the collected files hold all that is told."""
    page = report.html(whole)
    config = whole.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(Paths.of(whole).root, Paths.of(config).root)
    for name in ("data", "runs", "teacher", "pairs"):
        assert (Paths.of(config).root / name).is_dir()
        shutil.rmtree(Paths.of(config).root / name)
    assert report.html(config) == page
    Paths.of(config).about.unlink()
    assert "no data card" in report.html(config)


def test_a_bare_run_is_shown_too(tmp_path: Path) -> None:
    config = make(tmp_path, methods=("bge",), seeds=(1, 2))
    page = Page(report.html(config))
    assert "Nothing is claimed" in page.text and "no record of tuning" in page.text and "no data card" in page.text
    assert "2 seeds" in page.text and "no provenance records" in page.text and not page.images
    means = [sum(value("bge", seed, t, m) for seed in (1, 2)) / 2 for t, m in ((0, 1), (1, 1), (2, 1), (3, 0))]
    assert next(row for row in page.rows if row[0] == "BGE")[1:] == [f"{mean:.4f}" for mean in means]
    assert {"Holds", "ahead"}.isdisjoint(page.text.split())


def test_what_other_settings_left_behind_is_not_shown(tmp_path: Path, caplog) -> None:
    config = make(tmp_path)
    path = Paths.of(config).figure("main", "svg")
    write_text(path, PIXEL)
    assert len(Page(report.html(config)).images) == 1
    write_json(provenance_of(path), {"stage": "figure", "settings": {"methods": ["other"]}} | dict.fromkeys(("seconds", "peak_memory_mb"), 1.0) | {"code": "", "started": "", "version": ""})  # fmt: skip
    assert not Page(report.html(config)).images


def test_missing_scores_are_an_error(tmp_path: Path) -> None:
    config = make(tmp_path)
    Paths.of(config).scores_csv.unlink()
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        report.run(config)


def test_another_subject_is_named_wherever_leads_are_judged(tmp_path: Path) -> None:
    config = make(tmp_path)
    paths = Paths.of(config)
    write_text(paths.figure("leads", "svg"), PIXEL)
    swapped = {"d2llm": "bge", "bge": "d2llm"}
    compared = pd.read_csv(paths.comparisons).replace({"method": swapped, "baseline": swapped})
    compared.to_csv(paths.comparisons, index=False)
    report.run(Config(**(config.model_dump() | {"statistics": {"subject": "bge"}})))
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert "The claim in question: BGE is better than the strongest baseline. It holds where BGE is" in page.text
    assert "BGE is ahead of the strongest baseline, D2LLM, by 0.0915" in page.text
    assert [next(row for row in page.rows if len(row) == 9)[n] for n in (2, 3, 8)] == [
        "BGE",
        "Strongest baseline",
        "BGE is",
    ]
    assert "BGE's lead over each baseline" in page.text and "Right of zero BGE is ahead" in page.text
    assert any("Interval plot of BGE minus" in str(image["alt"]) for image in page.images)
    assert "Only D2LLM sees the teacher’s scores" in page.text  # which no choice of a subject changes


def test_every_table_and_figure_has_its_texts() -> None:
    assert set(catalogue.TABLES) == set(captions.TABLES)
    assert set(catalogue.FIGURES) == set(captions.FIGURES)
    for said in (*captions.TABLES.values(), *captions.FIGURES.values()):
        assert said.section in captions.SECTIONS and said.title and said.text.endswith(".")
    assert all(said.alt for said in captions.FIGURES.values())
    assert captions.caption("table", "not_known", "D2LLM").title == "Not known"


def test_a_table_in_html() -> None:
    columns = (Column("a", "A&B", "ap", "AP"), Column("a", "A&B", "f1", "F1"), Column("c", "C", "ap", "AP"))
    rows = (
        Row("bm25", "BM25", "reference", (Cell(0.1), Cell(0.2), Cell(-0.3))),
        Row("d2llm", "<D>", "method", (Cell(0.5, 0.01, 2, "best", "up"), Cell(0.25, mark="second"), Cell(0.75))),
    )
    text = layout.to_html(Table("t", "Heading.", "Said ±.", columns, rows))
    assert text.isascii()
    page = Page(text)
    assert not page.open
    assert page.rows == [
        ["Method", "A&B", "C"],
        ["AP", "F1", "AP"],
        ["BM25", "0.1000", "0.2000", "-0.3000"],
        ["<D>", "0.5000↑ ± 0.0100", "0.2500", "0.7500"],
    ]
    assert "<strong>0.5000</strong>" in text and "<u>0.2500</u>" in text and 'colspan="2"' in text
    assert Page(layout.to_html(Table("t", "Heading.", "Nothing.", (), ()))).rows == []


def test_no_heavy_import(whole) -> None:
    code = (
        "import sys; from d2llm.config.schema import load; from d2llm.reporting import report;"
        f"report.html(load([{str(Paths.of(whole).config)!r}]));"
        "print([name for name in ('torch', 'mteb', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# -------------------------------------------------------------------------------------------------- in a real browser
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre>
<iframe src="report.html" style="width:%dpx;height:2000px;border:0" onload="
  const page = this.contentDocument, root = page.documentElement;
  document.getElementById('found').textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, mode: page.compatMode, title: page.title,
    images: [...page.images].map(image => image.naturalWidth),
    tables: page.querySelectorAll('table').length,
    hidden: [...page.querySelectorAll('td')].filter(cell => cell.scrollWidth > cell.clientWidth + 1).length,
  });"></iframe>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """Debian's chromium, or a test that is skipped. Where CI is set it has to be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and "CI" not in os.environ:
        pytest.skip("no chromium is installed: apt-get install chromium")
    assert found is not None, "CI is set and no chromium is installed"
    return found


def browse(browser: str, folder: Path, *arguments: str) -> str:
    """Run the browser once, without a network, and return what it prints."""
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
    )  # fmt: skip
    done = subprocess.run([browser, *flags, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


USED = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre>
<iframe src="report.html" style="width:1280px;height:900px" onload="
  const page = this.contentDocument, table = page.getElementById('browse-scores-table'), found = {};
  const rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => [...row.cells].slice(0, 3).map(cell => cell.textContent).join(' '));
  const shown = (cell) => cell.getClientRects().length > 0;
  const set = (name, value) => { const field = page.querySelector('form[data-rows=browse-scores-table] [name=' + name + ']'); field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})); };
  const head = (text, where = table) => [...where.querySelectorAll('thead th')].find(cell => cell.textContent.startsWith(text));
  found.first = rows();
  set('metric', ''); set('task', 'IR-A'); found.one = rows(); found.said = page.querySelector('form[data-rows=browse-scores-table] output').textContent;
  set('task', ''); set('phenomenon', '*'); found.hard = rows();
  page.querySelector('form[data-rows=browse-scores-table]').reset();
  const box = page.querySelector('input[value=sgpt]'); box.click();
  found.off = [...page.querySelectorAll('#browse-section [data-method=sgpt]')].filter(shown).length;
  found.on = shown(head('BGE'));
  found.reachable = head('BGE').querySelector('button').tabIndex;
  head('BGE').querySelector('button').click(); found.down = [...table.tBodies[0].rows].map(row => row.cells[6].textContent); found.sorted = head('BGE').getAttribute('aria-sort');
  head('BGE').querySelector('button').click(); found.up = [...table.tBodies[0].rows].map(row => row.cells[6].textContent);
  head('BGE').querySelector('button').click(); found.back = head('BGE').getAttribute('aria-sort');
  const wide = [...page.querySelectorAll('table')].find(table => table.querySelector('thead th[colspan]'));
  const leaf = wide.querySelectorAll('thead tr:last-child th')[1]; leaf.querySelector('button').click();
  found.blocks = [...wide.tBodies].map(body => [...body.rows].map(row => row.cells[2].textContent));
  const find = page.querySelector('input[type=search]'); find.value = '丁'; find.dispatchEvent(new Event('input', {bubbles: true}));
  found.examples = [...page.querySelectorAll('table.examples tbody tr')].filter(row => !row.hidden).length;
  setTimeout(() => { found.again = rows(); document.getElementById('found').textContent = JSON.stringify(found); });
"></iframe>"""


def test_a_browser_sorts_and_filters(whole, browser: str, tmp_path: Path) -> None:
    shutil.copy(Paths.of(whole).report, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(USED, encoding="utf-8")
    dom = browse(browser, tmp_path, "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "probe.html").as_uri())
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    heads = ["NLI <A> AP all", "NLI-B AP all", "STS-A Spearman all", "IR-A MRR@10 all"]
    assert found["first"] == heads and sorted(found["again"]) == sorted(heads)
    assert (
        found["one"] == ["IR-A MRR@10 all", "IR-A nDCG@10 all", "IR-A Recall@10 all"]
        and found["said"] == "3 of 15 rows"
    )
    assert found["hard"] == ["NLI <A> AUC role swap", "NLI-B AUC role swap"]
    assert found["off"] == 0 and found["on"] and found["reachable"] == 0
    numbers = [float(text) for text in found["down"]]
    assert numbers == sorted(numbers, reverse=True) and found["up"] == [f"{number:.4f}" for number in sorted(numbers)]
    assert found["sorted"] == "descending" and found["back"] is None
    # A sorted table with heads over several columns: reference rows stay a block of their own.
    assert [len(block) for block in found["blocks"]] == [2, 3]
    assert all(
        block == sorted(block, key=lambda text: -float(text.split("↑")[0].split("↓")[0])) for block in found["blocks"]
    )
    assert found["examples"] == 1


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_whole(width: int, whole, browser: str, tmp_path: Path) -> None:
    shutil.copy(Paths.of(whole).report, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE % width, encoding="utf-8")
    dom = browse(browser, tmp_path, "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "probe.html").as_uri())
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1])
    assert found["width"] == width and found["scroll"] <= width, found
    assert found["mode"] == "CSS1Compat" and found["title"] == "D2LLM benchmark: tier mini"
    assert found["images"] == [690] * len(catalogue.FIGURES)
    assert found["tables"] >= 10 and found["hidden"] == 0


def test_a_browser_paints_it(whole, browser: str, tmp_path: Path) -> None:
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(browser, tmp_path, "--window-size=1280,900", f"--screenshot={shot}", Paths.of(whole).report.as_uri())
    with Image.open(shot) as image:
        colors = image.convert("L").histogram()
    assert sum(colors[:128]) > 2000 and sum(colors[200:]) > sum(colors) / 2  # dark text on a light page


def test_scores_of_the_reference_run_are_shown_as_they_are(tmp_path: Path) -> None:
    """The committed reference is a results folder without the rendered HTML tables: its report has its numbers."""
    reference = Path(__file__).parent.parent / "results" / "reference" / "mini"
    shutil.copytree(reference, tmp_path / "mini")
    from d2llm.config.load import load

    config = load([reference / "config.yaml"], {"results": str(tmp_path)})
    page = Page(report.html(config))
    frame = pd.read_csv(reference / "scores.csv", keep_default_na=False)
    own = frame[(frame["phenomenon"] == "all") & (frame["variant"] == "base") & (frame["method"] == "d2llm")]
    own = own[own["metric"].isin(["ap", "spearman", "mrr_at_10"])].groupby("task")["value"].mean()
    row = next(row for row in page.rows if row and row[0] == "D2LLM" and len(row) == 1 + len(own))
    assert sorted(row[1:]) == sorted(f"{number:.4f}" for number in own)
    assert "chosen" in page.text and len(page.images) >= 3
