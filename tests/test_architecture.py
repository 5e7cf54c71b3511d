"""The structure that the code keeps to: names, documents, lean imports, layers, forbidden calls."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from places import ROOT

import autocompress
from autocompress import files
from autocompress.cli.main import main
from autocompress.problem.space import load_space

PACKAGE = ROOT / "autocompress"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "optuna", "ray", "onnx", "onnxruntime", "timm", "pydantic", "sklearn", "scipy")
LINTER = Path(sys.executable).with_name("lint-imports")


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


@pytest.mark.parametrize("name", files.names("hardware_profiles"))
def test_every_shipped_profile_loads_with_its_validation(name: str):
    from autocompress.device.profile_files.store import load_profile

    profile = load_profile(name)
    assert profile.validation["count"] >= (15 if profile.device.get("gpu") else 40)
    assert profile.table.rows
