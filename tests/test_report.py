"""The HTML report: shows the collected numbers, leaves out what is not there, needs nothing else, holds in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import extras, make, value

from d2llm.config.catalogue import entries
from d2llm.config.schema import Config
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
        self.open += [tag] if tag not in VOID else []
        self.ids += [given["id"]] if "id" in given else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        self.references += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if "href" in given:
            (self.links if tag == "a" else self.references).append(given["href"])
        self.images += [given] if tag == "img" else []
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
    for name in entries("figure"):
        write_text(Paths.of(config).figure(name, "svg"), PIXEL)
    report.run(config)
    return config


@pytest.fixture(scope="module")
def page(whole) -> Page:
    return Page(Paths.of(whole).report.read_text(encoding="utf-8"))


def test_the_page_is_sound_and_fetches_nothing(page: Page, whole) -> None:
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links) and {link[1:] for link in page.links} <= set(page.ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(image["alt"] for image in page.images)
    assert all(reference.startswith("data:") for reference in page.references)
    text = Paths.of(whole).report.read_text(encoding="utf-8")
    assert text == report.html(whole)  # the same bytes twice
    assert "@import" not in text and "url(" not in text and text.count("<script") == 1
    assert "default-src 'none'" in text and not re.search(r"fetch\(|XMLHttp|import\(|eval\(|innerHTML", text)
    assert "NLI <A>" in page.text and "甲 <b>" in page.text and "NLI <A>" not in text  # escaped


def test_numbers_are_the_scores(page: Page) -> None:
    shown = {row[0]: row[1:] for row in reversed(page.rows) if row}  # a name's first row is the overview's
    for method, title in (
        ("bge", "BGE"),
        ("d2llm", "D2LLM"),
        ("bm25", "BM25†"),
        ("teacher", "Teacher (cross-encoder)"),
    ):
        wanted = [value(method, 1, task, metric) for task, metric in ((0, 1), (1, 1), (2, 1), (3, 0))]
        assert shown[title] == [f"{number:.4f}" for number in wanted]
    # The rendered tables as well, to the last cell: IR's three metrics.
    assert [f"{value('bge', 1, 3, m):.4f}" for m in range(3)] in [row[1:] for row in page.rows if row[0] == "BGE"]
    # And the part to browse: every metric of every task, a column a method.
    rows = {tuple(row[:4]): row[4:] for row in page.rows if len(row) == 10 and row[3].isdigit()}
    names = ("teacher", "bm25", "bge", "sgpt", "d2llm")
    assert len(rows) == 2 * 4 + 2 + 3 + 2
    assert rows["NLI <A>", "AP", "all", "1"] == [*(f"{value(name, 1, 0, 1):.4f}" for name in names), "1,200"]
    assert rows["NLI-B", "AUC", "role swap", "1"][2] == f"{value('bge', 1, 1, 8):.4f}"


def test_what_holds_follows_from_the_comparisons(page: Page) -> None:
    shown = {row[0]: row for row in page.rows if len(row) == 9}
    numbers = ["0.7011", "BGE", "0.6096", "+0.0915", "+0.0715 to +0.1115", "< 0.001", "ahead"]
    assert shown["NLI: average"] == ["NLI: average", "AP", *numbers]
    assert shown["STS-A"][-1] == "ahead, not significantly"
    assert shown["IR-A"][5] == "−0.0345" and shown["IR-A"][-1] == "behind"
    assert "NLI: holds." in page.text and "STS: not shown." in page.text and "Retrieval: refuted." in page.text
    assert "significantly ahead on 2 of 2, significantly behind on 0, undecided on 0" in page.text


def test_how_it_was_run_is_told(page: Page) -> None:
    facts = ("7,466", "69,632", "0.9921", "14,927", "learning_rate 0.2", "2.13.0", "c0de", "One seed", "no evidence")
    assert [fact for fact in facts if fact not in page.text] == []
    assert "(48,111 pairs; all methods see 7,466)" in page.text  # of the teacher's labels
    assert "\ntier: mini\n" in page.text and "\nresults:" not in page.text


def test_what_sets_contradict_or_lost_is_told_where_they_were_read(tmp_path: Path) -> None:
    config = make(tmp_path)
    row = {"dataset": "mine", "pairs": 60, "queries": 50, "pool": 70, "contradictions": 5, "removed": 7, "examples": []}
    row["dropped"] = {"rows labelled '-'": 1100}
    queries = {"task": "find", "split": "test", "dropped": {"queries without a judgement": 3}}
    card = {"training": [row], "evaluation": [{"task": "whole", "split": "dev"}, queries]}
    write_json(Paths.of(config).about, {"card": card})
    page = Page(report.html(config))
    for row in (["mine", "60", "50", "70", "5", "7", ""], ["mine", "1,100 rows labelled '-'"]):
        assert row in page.rows
    assert ["find/test", "3 queries without a judgement"] in page.rows and "whole/dev" not in page.text


def test_seeds_and_variants_can_be_told_apart(tmp_path: Path) -> None:
    variants = {"no_rank": {"method": "d2llm", "settings": {"alpha": 0.0}}}
    page = Page(report.html(make(tmp_path, seeds=(1, 2, 4), variants=variants)))
    rows = {row[3]: row[6] for row in page.rows if row[:3] == ["STS-A", "Spearman", "all"]}
    values = [value("bge", seed, 2, 1) for seed in (1, 2, 4)]
    assert [rows[seed] for seed in "124"] == [f"{one:.4f}" for one in values]
    assert rows["mean"] == f"{sum(values) / 3:.4f}±\xa0{statistics.stdev(values):.4f}"
    assert [row[:2] for row in page.rows if row and row[0] in ("base", "no_rank")].count(["no_rank", "D2LLM"]) == 1


def test_examples_are_shown_and_escaped(page: Page) -> None:
    pair = next(row for row in page.rows if row and row[0].startswith("甲 <script>"))
    standings = [f"{50 + n}−{n}.250" for n in range(5)]
    assert pair == ["甲 <script>alert(1)</script>and 乙 & 丙", "1", "role swap", "0.75", *standings]
    query = next(row for row in page.rows if row and row[0].startswith("谁"))
    assert query[0] == "谁？right (one of 2): 是他。first with BGE: 是她。" and query[3] == "0.501 – 37"


def test_the_page_reads_nothing_that_its_rule_does_not_name(whole, tmp_path: Path) -> None:
    """Without data, runs, teacher and pairs, as its rule promises: the collected files hold all that is told."""
    page = report.html(whole)
    config = whole.model_copy(update={"results": str(tmp_path)})
    shutil.copytree(Paths.of(whole).root, Paths.of(config).root)
    for name in ("data", "runs", "teacher", "pairs"):
        shutil.rmtree(Paths.of(config).root / name)
    assert report.html(config) == page
    Paths.of(config).about.unlink()
    assert "no data card" in report.html(config)


def test_a_bare_run_is_shown_too(tmp_path: Path) -> None:
    config = make(tmp_path, methods=("bge",), seeds=(1, 2))
    page = Page(report.html(config))
    for phrase in ("Nothing is claimed", "no record of tuning", "no data card", "2 seeds", "no provenance records"):
        assert phrase in page.text
    means = [sum(value("bge", seed, t, m) for seed in (1, 2)) / 2 for t, m in ((0, 1), (1, 1), (2, 1), (3, 0))]
    assert next(row for row in page.rows if row[0] == "BGE")[1:] == [f"{mean:.4f}" for mean in means]
    Paths.of(config).scores_csv.unlink()
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        report.run(config)


def test_what_other_settings_left_behind_is_not_shown(tmp_path: Path) -> None:
    config = make(tmp_path)
    path = Paths.of(config).figure("main", "svg")
    write_text(path, PIXEL)
    assert len(Page(report.html(config)).images) == 1
    record = dict.fromkeys(("seconds", "peak_memory_mb"), 1.0) | dict.fromkeys(("code", "started", "version"), "")
    write_json(provenance_of(path), record | {"stage": "figure", "settings": {"methods": ["other"]}})
    assert not Page(report.html(config)).images


def test_another_subject_is_named_wherever_leads_are_judged(tmp_path: Path) -> None:
    config = make(tmp_path)
    paths = Paths.of(config)
    write_text(paths.figure("leads", "svg"), PIXEL)
    swapped = {"d2llm": "bge", "bge": "d2llm"}
    compared = pd.read_csv(paths.comparisons).replace({"method": swapped, "baseline": swapped})
    compared.to_csv(paths.comparisons, index=False)
    page = Page(report.html(Config(**(config.model_dump() | {"statistics": {"subject": "bge"}}))))
    assert "BGE is ahead of the strongest baseline, D2LLM, by 0.0915" in page.text
    head = next(row for row in page.rows if len(row) == 9)
    assert [head[n] for n in (2, 3, 8)] == ["BGE", "Strongest baseline", "BGE is"]
    assert any("Interval plot of BGE minus" in str(image["alt"]) for image in page.images)


# -------------------------------------------------------------------------------------------------- in a real browser
@pytest.fixture(scope="module")
def browser() -> str:
    """Debian's chromium, or a test that is skipped. Where CI is set it has to be there."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None and "CI" not in os.environ:
        pytest.skip("no chromium is installed: apt-get install chromium")
    assert program is not None, "CI is set and no chromium is installed"
    return program


def browse(browser: str, folder: Path, *arguments: str) -> str:
    """Run the browser once, without a network, and return what it prints."""
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync hide-scrollbars allow-file-access-from-files"
    own = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}")
    command = [browser, *(f"--{flag}" for flag in flags.split()), *own, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def probe(browser: str, config: Config, folder: Path, size: str, script: str) -> dict:
    """What a script that looks at the page in a frame of this size fills its `found` with."""
    shutil.copy(Paths.of(config).report, folder / "report.html")
    frame = f"""<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre>
<iframe src="report.html" style="{size};border:0" onload="
  const page = this.contentDocument, root = page.documentElement, found = {{}};
  {script}
  setTimeout(() => document.getElementById('found').textContent = JSON.stringify(found));"></iframe>"""
    (folder / "probe.html").write_text(frame, encoding="utf-8")
    dom = browse(browser, folder, "--virtual-time-budget=10000", "--dump-dom", (folder / "probe.html").as_uri())
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))


LOOK = """
  found.width = [root.clientWidth, root.scrollWidth]; found.mode = page.compatMode;
  found.images = [...page.images].map(image => image.naturalWidth);
  found.hidden = [...page.querySelectorAll('td')].filter(cell => cell.scrollWidth > cell.clientWidth + 1).length;
  const table = page.getElementById('browse-scores-table'), form = 'form[data-rows=browse-scores-table]';
  const texts = (row, to) => [...row.cells].slice(0, to).map(cell => cell.textContent).join(' ');
  const rows = () => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => texts(row, 3));
  const shown = cell => cell.getClientRects().length > 0;
  const set = (field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})); };
  const pick = (name, value) => set(page.querySelector(form + ' [name=' + name + ']'), value);
  const head = [...table.querySelectorAll('thead th')].find(cell => cell.textContent.startsWith('BGE'));
  const click = () => { head.querySelector('button').click();
    return [...table.tBodies[0].rows].map(row => row.cells[6].textContent); };
  found.first = rows();
  pick('metric', ''); pick('task', 'IR-A'); found.one = rows();
  pick('task', ''); pick('phenomenon', '*'); found.hard = rows();
  page.querySelector(form).reset();
  page.querySelector('input[value=sgpt]').click();
  found.off = [...page.querySelectorAll('#browse-section [data-method=sgpt]')].filter(shown).length;
  found.down = click(); found.sorted = head.getAttribute('aria-sort'); found.up = click(); click();
  const wide = [...page.querySelectorAll('table')].find(table => table.querySelector('thead th[colspan]'));
  wide.querySelectorAll('thead tr:last-child th')[1].querySelector('button').click();
  found.blocks = [...wide.tBodies].map(body => [...body.rows].map(row => row.cells[2].textContent));
  const disputed = page.querySelector('table.examples'), choice = page.querySelector('select[name=one]').form;
  found.two = [...disputed.rows[0].cells].filter(cell => cell.dataset.method && !cell.classList.contains('aside')).length;
  set(choice.elements.one, 'd2llm'); set(choice.elements.two, 'bge');
  const number = (row, name) => parseFloat(row.querySelector('[data-method=' + name + ']').firstChild.textContent);
  found.apart = [...disputed.tBodies[0].rows].map(row => Math.abs(number(row, 'd2llm') - number(row, 'bge')));
  set(choice.elements.one, ''); set(page.querySelector('input[type=search]'), '丁');
  found.examples = [...page.querySelectorAll('table.examples tbody tr')].filter(row => !row.hidden).length;"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_whole_sorts_and_filters(width: int, whole, browser: str, tmp_path: Path) -> None:
    measured = probe(browser, whole, tmp_path, f"width:{width}px;height:2000px", LOOK)
    assert measured["width"][0] == width >= measured["width"][1] and measured["hidden"] == 0
    assert measured["mode"] == "CSS1Compat" and measured["images"] == [690] * len(entries("figure"))
    assert measured["first"] == ["NLI <A> AP all", "NLI-B AP all", "STS-A Spearman all", "IR-A MRR@10 all"]
    assert measured["one"] == ["IR-A MRR@10 all", "IR-A nDCG@10 all", "IR-A Recall@10 all"]
    assert measured["hard"] == ["NLI <A> AUC role swap", "NLI-B AUC role swap"] and measured["off"] == 0
    numbers = sorted(map(float, measured["down"]))
    assert [float(text) for text in measured["down"]] == numbers[::-1] and [
        float(text) for text in measured["up"]
    ] == numbers
    assert measured["sorted"] == "descending" and measured["examples"] == 1
    # Of examples two methods at first where there is no room for more; those they differ on most come first.
    assert measured["two"] == (2 if width == 400 else 5) and len(measured["apart"]) > 1
    assert measured["apart"] == sorted(measured["apart"], reverse=True)
    # A sorted table with heads over several columns: reference rows stay a block of their own.
    assert [len(block) for block in measured["blocks"]] == [2, 3]
    for block in measured["blocks"]:
        assert block == sorted(block, key=lambda text: -float(re.split("[↑↓]", text)[0]))
