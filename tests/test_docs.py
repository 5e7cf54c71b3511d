"""What the documents name is there: files, modules, links, commands and their options."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from places import BENCHMARKS, DOCS, ROOT

from autocompress.cli.main import main

PACKAGE = ROOT / "autocompress"
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "runs/README.md", "hardware_profiles/README.md")
    ),
    *sorted(DOCS.glob("*.md")),
]
A_DOCUMENT = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)

USERS_FILES = {"model.py", "file.py", "cifar_resnet.py"}
"""Files that a user has, not this project."""
WRITTEN_FILES = {"measure_kit.py"}
WRITTEN_FOLDERS = {"optimized/", "device/", "teacher/", "distilled/", "rungs/", "students/KEY/"}
"""What commands write: kits and runs."""
OTHER_TOOLS = {"--profiling_output_csv_file"}
"""Options of vendors' tools, which the page about imports shows."""
SOURCES = sorted([*PACKAGE.rglob("*.py"), *BENCHMARKS.rglob("*.py")])


@A_DOCUMENT
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (document.parent / name).resolve() if name else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@A_DOCUMENT
def test_files_and_folders_that_are_named_are_there(document: Path):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.*…-])(?:[\w-]+/)*[\w-]+\.py\b", text)) - USERS_FILES - WRITTEN_FILES
    named |= set(re.findall(r"`((?:[\w.-]+/)+)`", text)) - WRITTEN_FOLDERS
    named |= set(re.findall(r"`((?:tests|docs|benchmarks|autocompress|search_spaces)/[\w./-]+)`", text))
    assert {name for name in named if not is_there(name)} == set()


def is_there(name: str) -> bool:
    """Return whether a path is one of the repository's, or one below the package."""
    return (ROOT / name).exists() or (PACKAGE / name).exists()


@A_DOCUMENT
def test_names_of_modules_and_what_they_hold_resolve(document: Path):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./-])autocompress(?:\.\w+)+", text))
    named |= {
        f"autocompress.{name}" for name in re.findall(r"`(\w+(?:\.\w+)+)`", text) if starts_in_package(name)
    }
    for code in fenced(document, "python"):
        named |= {f"autocompress.{name}" for name in re.findall(r"\bac\.(\w+)", code)}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autocompress"):
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {name for name in named if not resolves(name)} == set()


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_docstrings_and_comments_resolve(file: Path):
    text = file.read_text(encoding="utf-8")
    named = {
        f"autocompress.{name}" for name in re.findall(r"`(\w+(?:\.\w+)+)`", text) if starts_in_package(name)
    }
    assert {name for name in named if not resolves(name)} == set()
    paths = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", text)) - USERS_FILES - WRITTEN_FILES
    assert {path for path in paths if not is_there(path) and not (file.parent / path).exists()} == set()


def starts_in_package(name: str) -> bool:
    first, second = name.split(".")[:2]
    return first in PACKAGES and second not in ("yaml", "json", "csv", "py")


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@A_DOCUMENT
def test_commands_are_shown_as_they_are(document: Path):
    for line, in_fence in commands(document):
        words = [word for word in shlex.split(line, comments=True) if word != "…"]
        if words[0] == "autocompress":
            check_command(words[1:], whole=in_fence and "…" not in line)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line
        else:
            check_benchmark(words)


def check_command(words: list[str], whole: bool) -> None:
    """Check that a command is one of ours, with options that it has; a `whole` one is parsed to the end."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert command is not main or all(word.startswith("-") for word in words), words
    known = {flag for param in command.params for flag in param.opts} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known, words
    if whole and not isinstance(command, click.Group):
        command.make_context(str(command.name), list(words))


def check_benchmark(words: list[str]) -> None:
    """Check that a benchmark's source knows each option and each first word that it is shown with."""
    script = ROOT / words[0]
    assert script.is_file(), words
    source = script.read_text(encoding="utf-8")
    imported = [
        script.parent / f"{name}.py" for name in re.findall(r"^from (\w+) import", source, re.MULTILINE)
    ]
    source += "".join(path.read_text(encoding="utf-8") for path in imported if path.is_file())
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in source, words
    if words[1:] and words[1].replace("-", "").isalpha():
        assert f'"{words[1]}"' in source, words


@A_DOCUMENT
def test_options_that_prose_names_are_options(document: Path):
    known = {flag for command in every_command(main) for param in command.params for flag in param.opts}
    sources = [*BENCHMARKS.rglob("*.py"), PACKAGE / "device/kit/measure_kit.py"]
    known |= {
        flag for path in sources for flag in re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8"))
    }
    named = set(re.findall(r"`(--[\w-]+)", document.read_text(encoding="utf-8")))
    assert named - known - OTHER_TOOLS == set()


def every_command(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from every_command(command)


def test_examples_in_the_help_are_right():
    for command in every_command(main):
        for line in shown(command.help or ""):
            if line.startswith("autocompress "):
                check_command(shlex.split(line)[1:], whole=True)


def test_the_help_has_no_private_words():
    private = r"\b(campaign|agent|promot\w+|payoff|damages?|harm|hurts?|workshop|rebench|revalidat\w+|thin)\b"
    for command in (main, *every_command(main)):
        told = [command.help or "", command.short_help or ""]
        told += [option.help or "" for option in command.params if isinstance(option, click.Option)]
        assert re.findall(private, " ".join(told)) == []


def test_the_index_links_every_document():
    linked = set(re.findall(r"\]\(([^)#\s]+)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} - linked == set()


def test_every_result_says_which_command_prints_it():
    for document, least in ((DOCS / "results.md", 20), (ROOT / "README.md", 5)):
        tables = re.findall(
            r"^\| what .*\n\|[-|]+\n((?:\|.*\n)+)", document.read_text(encoding="utf-8"), re.M
        )
        rows = [row for table in tables for row in table.splitlines()]
        assert len(rows) >= least
        assert [row for row in rows if not re.search(r"`benchmarks/[\w/]+\.py[^`|]*` \|$", row)] == []


def test_the_picture_shows_every_package_in_the_order_of_imports():
    picture = fenced(DOCS / "architecture.md", "")[0]
    shown_first = re.findall(r"│ (\w+)  ", picture)
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split('containers = ["autocompress"]')[1]
    rows = re.findall(r'"([\w |:]+)",', contract.split("]")[0])
    names = [name for row in rows for name in re.split(r"[ |:]+", row)]
    assert [name for name in names if name in PACKAGES] == shown_first
    assert set(shown_first) == PACKAGES


def commands(document: Path) -> Iterator[tuple[str, bool]]:
    """Yield the commands of a document that are ours, and whether each stands in a block of code."""
    pieces = [(line, True) for block in fenced(document, "") for line in shown(block)]
    pieces += [(" ".join(code.split()), False) for code in re.findall(r"`([^`]+)`", prose_of(document))]
    for piece, in_fence in pieces:
        line = re.sub(r"^(\$ |python )", "", piece)
        if re.match(r"autocompress [a-z-]|make [a-z]|benchmarks/[\w/]+\.py", line):
            yield line, in_fence


def shown(block: str) -> list[str]:
    """Return the lines of a block, those that end in a backslash joined with what follows."""
    return [line.strip() for line in re.sub(r"\\+\n", " ", block).splitlines()]


def fenced(document: Path, language: str) -> list[str]:
    """Return the blocks of code of one language, or with "" those that name none."""
    text = document.read_text(encoding="utf-8")
    return [code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if kind == language]


def prose_of(document: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
