"""The guide: its commands and code are checked here, and run by the slow tests."""

import doctest
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from robgib.cli.app import app
from tests.fixtures import arguments_of
from tests.test_extras import tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]}
_FENCE = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.S | re.M)
_FILE = re.compile(r"# ([\w/-]+\.(?:py|yaml))\n")


def blocks(page):
    """(language, text, whether it may be run) of each fenced block."""
    return [(kind, body, not kept) for kept, kind, body in _FENCE.findall(PAGES[page])]


def commands(text):
    """The commands of a console block, as words."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line[2:], comments=True) for line in joined.splitlines() if line.startswith("$ ")]


def written(kind, body, folder):
    """Write a block that begins with the name of a file; whether it does."""
    named = _FILE.match(body)
    if named is None or kind not in ("python", "yaml"):
        return False
    place = folder / named[1]
    place.parent.mkdir(exist_ok=True)
    place.write_text(body[named.end() :])
    return True


def parsed(words):
    """Parse the arguments of a command as the command line does, without running it."""
    command, words = typer.main.get_command(app), list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context("robgib", words)


@pytest.mark.parametrize("page", [name for name in PAGES if "```" in PAGES[name]])
def test_a_page_names_commands_options_and_names_that_exist(page):
    for kind, body, _ in blocks(page):
        if kind == "yaml":
            assert yaml.safe_load(body), body
        if kind == "python":
            compile(body, page, "exec")
            for home, names in re.findall(r"^from (robgib[\w.]*) import (.+)", body, re.M):
                assert all(hasattr(importlib.import_module(home), name) for name in names.split(", ")), (home, names)
        for words in commands(body) if kind == "console" else ():
            if words[0] == "robgib":
                parsed(words[1:])
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
            else:
                assert words[0] == "pip", words


def test_an_unknown_option_on_a_page_is_found():
    with pytest.raises(Exception, match="--sampels"):
        parsed(["evaluate", "digits-cnn", "--sampels", "3"])


_LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.+)", re.M)


def anchors(page):
    """The names of a page's headings in links, as Markdown makes them."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in _HEADING.findall(prose)}


def broken_links(page):
    """The links of a page, with their anchors, that lead nowhere."""
    found = []
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(f"{target}#{anchor}" if anchor else target)
    return found


def test_links_between_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "reports").rglob("*.md")]
    assert len(pages) > 25
    assert not {str(page): broken for page in pages if (broken := broken_links(page))}


def test_a_link_or_an_anchor_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# One: `two`\n[a](a.md#one-two) [b](#one-two) [c](b.md) [d](a.md#three)")
    assert broken_links(tmp_path / "a.md") == ["b.md", "a.md#three"]


def test_links_of_the_site_lead_somewhere(tmp_path, monkeypatch):
    """On the site the pages lie elsewhere than in the repository."""
    made = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    reference = importlib.util.module_from_spec(made)
    made.loader.exec_module(reference)
    monkeypatch.setattr(reference, "SITE", tmp_path / "site")
    reference.main()
    pages = sorted((tmp_path / "site").rglob("*.md"))
    assert len(pages) > 25
    assert not {str(page): broken for page in pages if (broken := broken_links(page))}
    text = (tmp_path / "site" / "cli.md").read_text(encoding="utf-8")
    assert "* `report`: Write one page from run folders." in text
    assert not re.findall(r"^\* `[a-z-]+`: .*\.\.\.$", text, re.M)  # sentences of commands are whole
    assert not re.findall(r"\[/?(?:red|bold|dim)\]", text)  # styles of the terminal


def options_of(command):
    """All names of the options of a command and of those below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(c) for c in getattr(command, "commands", {}).values()))


FOREIGN = {"--index-url", "--no-deps", "--help"}
"""Options of other programs, and the one that every command has."""


def test_options_in_the_text_of_the_guide_exist():
    """Commands in blocks are parsed; options in sentences and tables stand in code."""
    known = {name.split("=")[0] for name in options_of(typer.main.get_command(app))} | FOREIGN
    for name, text in PAGES.items():
        for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert option in known, f"{name}: {option}"


def test_every_page_is_in_the_navigation():
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages(inner)]

    listed = pages(site["nav"])
    assert len(listed) == len(set(listed))
    made = {"cli.md", "tables.md", "attack-list.md"}  # docs/reference.py writes them
    reports = {page for page in listed if page.startswith("reports/")}
    assert {*listed} - made - reports == {path.name for path in DOCS.glob("*.md")}
    assert all((ROOT / page).exists() for page in reports)


_FAST = {"plugin-model"}
_RUN = [
    pytest.param(page, marks=() if page in _FAST else pytest.mark.slow)
    for page in PAGES
    if any(kind in ("python", "console") and runs for kind, _, runs in blocks(page))
]


@pytest.mark.parametrize("page", _RUN)
def test_a_page_runs_as_it_is_written(page, cli, tmp_path):
    """In the order of the page; some pages use the network of the tutorial."""
    if page in ("README", "own-models"):
        run_python(tutorial_network(tmp_path), tmp_path)
    ran, before = 0, []
    for kind, body, runs in blocks(page):
        if not runs or written(kind, body, tmp_path):
            continue
        if kind == "python":
            run_python(body, tmp_path, before)
            before.append(body)
            ran += 1
        for words in commands(body) if kind == "console" else ():
            if words[0] != "robgib":
                continue
            plugged = "--catalogue" in words  # its modules are imported under names of their own
            done = cli(*words[1:]) if plugged else run(arguments_of(words[1:]), tmp_path)
            broken_here = words[1] == "doctor" and done.returncode == 1  # what it reports is this machine's matter
            assert done.returncode == 0 or broken_here, (words, done.stderr)
            ran += 1
    assert ran


def tutorial_network(folder):
    """Write the tutorial's nets.py; returns the code that trains its network."""
    first, second = [body for kind, body, _ in blocks("tutorial") if kind == "python"][:2]
    assert written("python", first, folder)
    return second


def run(arguments, folder):
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=1800, check=False)


def run_python(body, folder, before=()):
    """Run a block by itself, or after those ``before`` it if it uses their names."""
    done = run([sys.executable, "-c", body], folder)
    if "NameError: name" in done.stderr and before:
        done = run([sys.executable, "-c", "\n".join([*before, body])], folder)
    assert done.returncode == 0, (body, done.stderr)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("zensical")
    for name in ("docs", "reports", "robgib", "attacks", "zensical.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    made = run([sys.executable, "docs/reference.py"], tmp_path)
    assert made.returncode == 0, made.stderr
    built = run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "--until-width" in (tmp_path / "site" / "cli.html").read_text(encoding="utf-8")
    assert "robgib.evaluate" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    loaded = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="https?://')
    assert not [page for page in (tmp_path / "site").rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("file", "needs"), [("docs/reference.py", "robgib"), ("docs/docstrings.py", "griffe")])
def test_examples_of_the_site(file, needs):
    pytest.importorskip(needs)
    space = runpy.run_path(str(ROOT / file))
    examples = [
        (name, doctest.DocTestParser().get_doctest(made.__doc__ or "", space, name, file, 0))
        for name, made in space.items()
        if getattr(made, "__module__", "") == "<run_path>"
    ]
    assert any(example.examples for _, example in examples)
    assert all(doctest.DocTestRunner().run(example).failed == 0 for _, example in examples)


def test_the_readme_is_short_and_shows_the_page():
    assert len(PAGES["README"].split()) <= 900
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGES["README"])
    assert 10_000 < (ROOT / picture).stat().st_size <= 200_000


_REWORDED = (
    "was trained with is said by", "run unasked and are told", "climb a faster form", "hangs most on single pieces",
    "is no cause",
)  # fmt: skip


def test_sentences_that_readers_stopped_at_do_not_come_back():
    """In the guide, the program and its page."""
    texts = {
        **PAGES,
        **{str(f): f.read_text(encoding="utf-8") for f in (ROOT / "robgib").rglob("*.*") if f.suffix in (".py", ".j2")},
    }
    for name, text in texts.items():
        plain = " ".join(text.split())
        assert not [words for words in _REWORDED if words in plain], name
