"""The rules of the repository's layout that a file can break without anybody noticing."""

from __future__ import annotations

import ast
import graphlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
OWN_PACKAGES = {"grpo", "rewards", "tests", "launch", "configs"}

FLOORS = (
    {"grpo.commands", "grpo.train"},
    {"grpo.startup"},
    {"grpo.loop"},
    {"grpo.trainer"},
    {"grpo.evaluation"},
    {"grpo.benchmarks"},
    {"grpo.learner", "grpo.data"},
    {"grpo.demo"},
    {"grpo.rollout", "grpo.report"},
    {"grpo.feed", "grpo.run"},
    {"grpo.policy"},
    {"grpo.config"},
    {"rewards.builtin"},
    {"grpo.motion", "grpo.actions"},
    {"rewards.scoring"},
    {"rewards.hostile"},
    {"rewards", "rewards.parsing"},
    {"rewards.spelling"},
    {"grpo.packing"},
    {"grpo.codec"},
    {"grpo.groups"},
    {"grpo.media"},
    {"grpo.workers"},
    {"grpo"},
)
"""The rooms from top to bottom: each file or folder of grpo/ and rewards/ imports from floors below its own alone."""

LOOSE_FILES = {"__init__.py", "train.py", "loop.py", "trainer.py", "evaluation.py", "groups.py", "packing.py"}

# Folders that are there on some machines only: /usr, /etc, /dev, /proc and /tmp are on all. What precedes the
# slash tells such a path from a relative one, a URL or a variable's.
FOREIGN_PATH = re.compile(r"(?<![\w.:/~}\-])/(?:home|Users|root|mnt|work|workspace|data|opt|scratch)/[\w.\-]")
OUTSIDE_PATH = re.compile(r"(?<![\w./])\.\./shared\b")


def repository_files() -> list[Path]:
    """Files that git has, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str | None:
    """The file's text; None for a binary file."""
    content = path.read_bytes()
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def importable_names(folder: Path) -> set[str]:
    """Names that `import NAME` finds when the folder is on the path."""
    modules = {path.stem for path in folder.glob("*.py")}
    packages = {path.name for path in folder.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    return modules | packages - {"__pycache__"}


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names of the modules that these statements import."""
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.partition(".")[0] for name in names}


def own_imports() -> dict[str, set[str]]:
    """For each module of grpo/ and rewards/, those that it imports anywhere in it, late or for types alone."""
    files = [path for folder in ("grpo", "rewards") for path in (ROOT / folder).rglob("*.py")]
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    return {
        name: modules.keys() & set(module_names(ast.parse(path.read_text())))
        for name, path in modules.items()
    }


def module_names(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a file may mean: in `from a import b`, b is one or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The file or folder of grpo/ or rewards/ that a module is in."""
    return ".".join(module.split(".")[:2])


def upward(imports: Mapping[str, Set[str]]) -> list[str]:
    """The imports from a room of the same floor or a higher one."""
    floor_of = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
    return [
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in sorted(others)
        if room_of(name) != room_of(other) and floor_of[room_of(name)] <= floor_of[room_of(other)]
    ]


def circle(imports: Mapping[str, Set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def declared_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {re.split(r"[^\w.-]", line)[0] for group in groups for line in group}


def foreign_paths(text: str) -> list[str]:
    return [match.group() for pattern in (FOREIGN_PATH, OUTSIDE_PATH) for match in pattern.finditer(text)]


def test_no_file_in_grpo_hides_another_module():
    """`accelerate launch grpo/train.py` puts grpo/ first on the path of every import."""
    installed = set(packages_distributions()) - OWN_PACKAGES
    own = importable_names(ROOT / "grpo") - {"__init__"}
    assert own & (installed | sys.stdlib_module_names) == set()


def test_no_file_lies_loose_in_grpo():
    assert {path.name for path in (ROOT / "grpo").glob("*.py")} == LOOSE_FILES


def test_every_room_has_a_floor():
    assert {room_of(name) for name in own_imports()} <= set().union(*FLOORS)


def test_no_import_runs_back_up_and_there_is_no_circle():
    imports = own_imports()
    assert upward(imports) == []
    assert circle(imports) == []


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("grpo.media.clip", "grpo.groups"),
        ("rewards.scoring.runner", "grpo.trainer"),
        ("grpo.feed.a", "grpo.run.b"),
    ],
)
def test_an_import_that_runs_back_up_or_sideways_is_noticed(module, other):
    assert upward({module: {other}}) == [f"{module} imports {other}"]
    assert upward({"grpo.trainer": {"grpo.groups"}, "grpo.media.clip": {"grpo.media.images"}}) == []


def test_a_circle_is_noticed():
    assert circle({"grpo.media.clip": {"grpo.media.images"}, "grpo.media.images": {"grpo.media.clip"}})


def test_every_package_that_is_imported_is_declared():
    """One that is installed by chance is missing on the next machine."""
    providers = packages_distributions()
    declared = declared_packages()
    for path in repository_files():
        if path.suffix == ".py":
            for name in imported(list(ast.walk(ast.parse(path.read_text())))) - OWN_PACKAGES:
                packages = {package.lower().replace("_", "-") for package in providers.get(name, [])}
                assert not packages or packages & declared, f"{path} imports {name}, of {packages}"


def test_the_learner_starts_without_the_packages_that_it_can_do_without():
    for path in [*(ROOT / "grpo").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")]:
        if not path.name.startswith("vllm"):
            heavy = imported(ast.parse(path.read_text()).body) & {"vllm", "trl", "deepspeed"}
            assert not heavy, f"{path} imports {heavy} when it is imported"


def test_no_file_names_a_path_outside_the_repository():
    found = {
        str(path.relative_to(ROOT)): foreign_paths(text)
        for path in repository_files()
        if path != Path(__file__) and (text := text_of(path)) and foreign_paths(text)
    }
    assert found == {}


@pytest.mark.parametrize(
    "text", ["'/home/me/clips'", "--path /data/ego4d", "cd /work/x", "see ../shared/design"]
)
def test_a_path_of_one_machine_is_noticed(text):
    assert foreign_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "#!/usr/bin/env bash",
        "https://host.org/data/x",
        "grpo/data/x",
        "../data/x",
        "{root}/data/x",
        "a /data and",
    ],
)
def test_a_path_that_means_the_same_everywhere_passes(text):
    assert not foreign_paths(text)


def test_no_source_file_is_longer_than_a_reader_can_hold():
    suffixes = {".py", ".sh", ".yaml", ".toml"}
    lengths = {
        str(path.relative_to(ROOT)): len((text_of(path) or "").splitlines())
        for path in repository_files()
        if path.suffix in suffixes
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in repository_files()
        if path.suffix == ".py"
        for function in functions(ast.parse(path.read_text()))
        if (function.end_lineno or 0) - function.lineno >= MAX_FUNCTION_LINES
    }
    assert long == set()


AXES = re.compile(r"\b[a-z_]+[a-z]_([A-Z]{1,5})\b")
"""The axes at the end of an array's name."""


def test_every_letter_of_an_axis_is_in_the_legend() -> None:
    legend = (ROOT / "grpo/groups.py").read_text().split('"""')[1]
    known = {*re.findall(r"(?<!\S)([A-Z])(?= )", legend)}
    names = {name for file in (ROOT / "grpo").rglob("*.py") for name in names_of(file)}
    used = {letter for name in names if (axes := AXES.fullmatch(name)) for letter in axes[1]}
    assert len(used) > 15 and used <= known, used - known


def names_of(file: Path) -> set[str]:
    """The variables and arguments of a file."""
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }


FOR_TOOLS = re.compile(r"# (noqa|pyright|type|fmt):")
"""Comments that tools read, which belong behind a line."""
BEGINS_WITHOUT_NOUN = re.compile(r"(Its?|They|Their|Those|These|Such|Of|By|Until|After|More|Before)\b")
"""The words at the start of a sentence that only goes on from a name."""


def test_no_docstring_goes_on_from_its_name() -> None:
    """In a hover or a search a docstring stands alone."""
    found = [
        f"{file}:{node.lineno}: {node.value.value}"
        for folder in ("grpo", "rewards", "launch")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and BEGINS_WITHOUT_NOUN.match(node.value.value)
    ]
    assert not found, "\n".join(found)


def test_comments_stand_above_their_lines() -> None:
    """The formatter tears what stands behind a line apart, or the line."""
    found = [
        f"{file}:{token.start[0]}: {token.string}"
        for folder in ("grpo", "rewards")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
        if token.type == tokenize.COMMENT
        and token.line[: token.start[1]].strip()
        and not FOR_TOOLS.match(token.string)
    ]
    assert not found, "\n".join(found)
