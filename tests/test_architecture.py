"""The structure that the code keeps to: names, documents, lean imports, layers, forbidden calls."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import click
import pytest
from places import ROOT, TESTS

import autocompress
from autocompress import errors, files
from autocompress.cli.main import main
from autocompress.problem.space import load_space

PACKAGE = ROOT / "autocompress"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "optuna", "ray", "onnx", "onnxruntime", "timm", "pydantic", "sklearn", "scipy")
LINTER = Path(sys.executable).with_name("lint-imports")
VERBS = frozenset(
    """
    Adapt Add Allow Append Apply Ask Attach Average Begin Bind Build Calibrate Call Carry Change Check
    Choose Clear Close Collect Combine Compare Compress Compute Connect Convert Copy Correct Count Create
    Cut Decide Declare Decode Define Delete Derive Describe Distil Do Draw Drop Encode End Ensure Enter
    Estimate Evaluate Expand Export Extend Fail Fetch Find Fit Fold Follow Forget Gather Generate Give Go
    Guess Hear Hold Ignore Import Insert Invert Join Keep Learn Leave Let List Load Lock Look Make Mark
    Match Measure Mend Merge Move Multiply Name Note Open Order Pack Pad Pair Parse Pass Pick Pin Plan
    Predict Prefer Prepare Price Print Propose Prune Push Put Quantize Queue Raise Rank Read Rebuild
    Record Reduce Refuse Register Release Remember Remove Rename Repair Repeat Replace Report Reset
    Reshape Resolve Restore Resume Return Rewrite Round Run Save Say Scale Score Search Seed Select Send
    Serve Set Share Shift Show Shrink Simplify Skip Slice Solve Sort Split Standardise Start Stop Store
    Stretch Swap Switch Take Tell Time Trace Train Transpose Try Turn Undo Unite Unpack Update Use
    Validate Wait Walk Warn Wrap Write Yield
    """.split()
)
"""What the docstring of a function may begin with; a verb that is missing may be added here."""


def in_fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env=environment, check=True
    )


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`."""
    ending = "\nimport sys; sys.stdout.write('\\n' + ' '.join(sys.modules))"
    return {name.split(".")[0] for name in in_fresh_process(code + ending).stdout.splitlines()[-1].split()}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_exported_names_resolve():
    assert len(set(autocompress.__all__)) == len(autocompress.__all__)
    for name in autocompress.__all__:
        assert getattr(autocompress, name) is not None
    assert set(autocompress.__all__) <= set(dir(autocompress))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        autocompress.nothing_of_this_name  # noqa: B018


def test_no_module_hides_an_exported_name():
    """Importing a submodule sets it as an attribute of the package, over a function of the same name."""
    modules = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert modules & set(autocompress.__all__) == set()


def test_type_checkers_see_the_exported_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {"__version__"}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname or alias.name for alias in node.names}
    assert seen == set(autocompress.__all__)
    assert (PACKAGE / "py.typed").is_file()


def test_every_command_is_in_the_readme():
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not here")
    text = readme.read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"autocompress {name}" in text
        if isinstance(command, click.Group):
            assert all(f"autocompress {name} {inner}" in text for inner in command.commands)


@pytest.mark.parametrize("name", files.names("search_spaces"))
def test_every_shipped_space_loads(name: str):
    assert load_space(name).name == name


@pytest.mark.parametrize(
    "code",
    [
        "import autocompress",
        "import autocompress; dir(autocompress); autocompress.__version__",
        "from autocompress.cli.main import main; main(['--help'], standalone_mode=False)",
        "from autocompress.cli.main import main; main(['search', '--help'], standalone_mode=False)",
    ],
)
def test_starting_is_lean(code: str):
    assert loaded_after(code) & {*HEAVY, "numpy", "rich", "yaml"} == set()


def test_fronts_and_profiles_are_read_without_torch():
    loaded = loaded_after("import autocompress.api, autocompress.runs.front, autocompress.runs.store")
    assert loaded & set(HEAVY) == set()
    assert "torch" not in loaded_after(
        "import autocompress.device.profile.profile, autocompress.device.profile_files.store"
    )


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("ray", "runs/ray_workers.py"),
        ("optuna", "search/proposers/optuna_study.py"),
        ("onnxruntime", "device/runtimes/onnxruntime.py"),
    ],
)
def test_one_file_imports_a_replaceable_package(package: str, file: str):
    assert [path.relative_to(PACKAGE).as_posix() for path in FILES if package in imported(path)] == [file]


def test_a_file_imports_only_from_rows_below_it():
    if not LINTER.is_file():
        pytest.skip("import-linter is not installed")
    command = [str(LINTER), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_nothing_that_was_read_is_executed(file: Path):
    assert imported(file) & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} == set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "print"), f"line {node.lineno}"
        if ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node), f"line {node.lineno}"
        assert ast.unparse(node.func) not in ("torch.save", "yaml.load"), f"line {node.lineno}"


def test_every_docstring_of_a_function_begins_with_a_verb():
    others = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or "Return"
                if docstring.split()[0].rstrip(":,") not in VERBS:
                    place = f"{file.relative_to(PACKAGE).as_posix()}, line {node.lineno}"
                    others.append(f"{place}: {docstring.splitlines()[0]}")
    assert others == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_every_error_says_a_way_out(file: Path):
    kinds = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)} - {
        "AutocompressError"
    }
    without = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
            keywords = {keyword.arg for keyword in node.keywords}
            without += [] if keywords & {"fix", None} else [f"line {node.lineno}"]
    assert without == []


@pytest.mark.parametrize("name", files.names("hardware_profiles"))
def test_every_shipped_profile_loads_with_its_validation(name: str):
    from autocompress.device.profile_files.store import load_profile

    profile = load_profile(name)
    assert profile.validation.count >= (15 if profile.device.gpu else 40)
    assert profile.table.rows


def test_the_folders_stay_small():
    tops = [path for path in PACKAGE.iterdir() if path.suffix == ".py"]
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert len(tops) <= 8
    assert len(packages) == 12
    modules = Counter(file.parent for file in FILES if file.name != "__init__.py")
    assert {folder.relative_to(PACKAGE).as_posix(): n for folder, n in modules.items() if n > 12} == {}


def test_no_circle_of_imports_not_even_of_late_ones():
    known = {name_of(file): file for file in FILES}
    waiting = {name: imported_modules(file, known) - {name} for name, file in known.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert waiting == {}


def name_of(file: Path) -> str:
    """Return the name that a file is imported by."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(file: Path, known: Collection[str]) -> set[str]:
    """Return the modules of the package that a file imports anywhere, but for type checkers."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return {name for name in found if name in known and not is_package(name)}


def is_package(name: str) -> bool:
    return (ROOT.joinpath(*name.split(".")) / "__init__.py").is_file()


TESTS_FILES = sorted(TESTS.rglob("*.py"))


def test_no_test_imports_another():
    tests = {file.stem for file in TESTS_FILES if file.name.startswith("test_")}
    assert {file.name: names for file in TESTS_FILES if (names := imported(file) & tests)} == {}


def test_tests_lie_in_the_folder_of_their_package():
    folders = {file.parent.relative_to(TESTS).as_posix() for file in TESTS_FILES}
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - packages == {".", "helpers", "networks", "golden"}


def test_fields_are_read_by_name_from_records_only():
    """Text and numbers of any type by their names are for keyword arguments, not for what is known."""
    pattern = re.compile(r"\b(?:dict|Mapping|MutableMapping)\[str, Any\]")
    assert sum(len(pattern.findall(file.read_text(encoding="utf-8"))) for file in FILES) <= 40


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_function_takes_more_than_eight_parameters(file: Path):
    """But for commands, whose parameters are options, and exporters, whose are those of torch's operation."""
    many = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not is_exporter(node) and file.parent.name != "cli":
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            many += [node.name] if len(set(names) - {"self", "cls"}) > 8 else []
    assert many == []


def is_exporter(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(one).startswith("exports(") for one in node.decorator_list)
