"""No file, config or model that a run reads makes it run code: what the source calls, and what was planted."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from grpo.config.load import load_config
from grpo.config.texts import TextLoader
from grpo.policy.families import load_family
from grpo.policy.model_folder import check_weights
from tests.support import tiny

FILES = sorted(
    path for folder in ("grpo", "rewards", "launch") for path in (tiny.ROOT / folder).rglob("*.py")
)
PICKLE_READERS = {
    "grpo/workers/pool.py",
    "grpo/workers/worker.py",
    "rewards/scoring/payloads.py",
    "grpo/run/checkpoint.py",
}
"""The files that read pickles: three between a process and its own workers, and one that knows no functions."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, each with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def everywhere() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Each call of the source, with its file, its name and its arguments by name."""
    for path in FILES:
        for name, call in calls(path):
            given = {each.arg or "**": ast.unparse(each.value) for each in call.keywords}
            yield str(path.relative_to(tiny.ROOT)), name, given


CALLS = [*everywhere()]


def test_no_code_of_a_model_is_trusted() -> None:
    assert {given.get("trust_remote_code", "False") for _, _, given in CALLS} == {"False"}
    named = [
        path for path in (tiny.ROOT / "configs").rglob("*.yaml") if "trust_remote_code" in path.read_text()
    ]
    assert named == [] and any(name.endswith("from_pretrained") for _, name, _ in CALLS)


def test_tensors_are_loaded_as_weights_alone() -> None:
    assert {given.get("weights_only", "True") for _, name, given in CALLS if name == "torch.load"} <= {"True"}
    assert {given.get("allow_pickle", "False") for _, name, given in CALLS if name == "np.load"} == {"False"}


def test_pickles_are_read_from_our_own_processes_alone() -> None:
    readers = (
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "joblib.load",
        "pd.read_pickle",
        "dill.loads",
    )
    assert {file for file, name, _ in CALLS if name in readers} <= PICKLE_READERS


def test_yaml_makes_no_objects() -> None:
    assert issubclass(TextLoader, yaml.SafeLoader)
    others = {name for _, name, _ in CALLS if name.startswith("yaml.") and "load" in name}
    assert others <= {"yaml.safe_load", "yaml.load"}
    loads = [call for path in FILES for name, call in calls(path) if name == "yaml.load"]
    assert loads and {ast.unparse(call.args[1]) for call in loads} == {"TextLoader"}


def test_no_text_is_run_as_a_command() -> None:
    assert not [(file, name) for file, name, given in CALLS if given.get("shell", "False") != "False"]
    runs_text = {
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
    }
    assert not [(file, name) for file, name, _ in CALLS if name in runs_text]


class Planted:
    """A pickle of this writes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(tiny.BASE_POLICY, tmp_path / "model")


def test_weights_that_are_pickles_are_refused_unread(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(
        ValueError, match=r"model.path: .*pytorch_model.bin is a pickle, .* save .* as safetensors"
    ):
        check_weights(model)
    assert not mark.exists()
    with pytest.raises(OSError):  # nor are they where nothing was checked
        load_family(str(model)).load_model(tiny.torch.float32)
    assert not mark.exists()


def test_code_that_comes_with_a_model_is_not_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (model / "planted.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for name, of in (("config.json", "AutoConfig"), ("processor_config.json", "AutoProcessor")):
        file = model / name
        values = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(values | {"auto_map": {of: "planted.Planted"}}))
    family = load_family(str(model))
    assert family.processor is not None and not mark.exists()


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch {mark}']", "!!python/name:os.system", "!!python/object:x {{}}"],
)
def test_a_config_makes_no_objects(text: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "config.yaml"
    file.write_text(f"run_dir: {text.format(mark=mark)}\n")
    with pytest.raises(ValueError, match="config.yaml"):
        load_config([str(file)])
    assert not mark.exists()
