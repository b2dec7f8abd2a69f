"""Rewards by name: built-ins, files, modules, and every mistake that is found before a run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.groups import RewardTable
from rewards.hostile import COMPLETIONS, make_group, synthetic_samples
from rewards.scoring.loading import _entry_points as entry_points_of
from rewards.scoring.runner import load_rewards
from rewards.scoring.specs import RewardSpec, WorkerSettings

SAMPLE = synthetic_samples({})[0]
GROUP = make_group([COMPLETIONS["right"], COMPLETIONS["wrong"], ""], SAMPLE)

ROOT = Path(__file__).parents[3]
PLUGIN = """
from dataclasses import dataclass

from rewards import group_reward, reward


@dataclass  # needs its module in sys.modules
class Bonus:
    value: float


@reward
def constant(rollout, *, value, scale=1.0):
    return Bonus(value).value * scale


@group_reward
def rarity(rollouts):
    texts = [rollout.text for rollout in rollouts]
    return [1 / texts.count(text) for text in texts]


def trl_style(completions, answer, *, bonus=0.0, **kwargs):
    return [float(f"<answer>{a}</answer>" in text) + bonus for text, a in zip(completions, answer)]


@reward
def two_arguments(rollout, tolerance):
    return 0.0


def forgot_the_decorator(rollout):
    return 0.0


number = 3
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(PLUGIN)
    return path


def score_one(fn: str | None, name: str = "mine", **args: Any) -> RewardTable:
    return load_rewards({name: RewardSpec(fn=fn, args=args)}).score([GROUP])[0]


def test_an_entry_without_fn_is_the_built_in_of_its_name() -> None:
    assert score_one(None, name="accuracy").columns == {"accuracy": (1.0, 0.0, 0.0)}


def test_a_built_in_can_go_by_another_name() -> None:
    assert score_one("format").columns == {"mine": (1.0, 1.0, 0.0)}


def test_a_reward_in_a_file_is_called_with_its_knobs(plugin: Path) -> None:
    assert score_one(f"{plugin}:constant", value=0.5, scale=3).columns == {"mine": (1.5, 1.5, 1.5)}


def test_a_path_is_relative_to_the_working_directory(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    assert score_one("my_rewards.py:rarity").columns == {"mine": (1.0, 1.0, 1.0)}


def test_a_reward_in_a_module_goes_by_its_dotted_name(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = plugin.parent / "lab_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    plugin.rename(package / "extra.py")
    monkeypatch.syspath_prepend(plugin.parent)
    assert score_one("lab_of_mine.extra:constant", value=2).columns == {"mine": (2.0, 2.0, 2.0)}


def test_a_file_runs_once_for_all_its_rewards_and_again_when_it_was_edited(tmp_path: Path) -> None:
    path, log = tmp_path / "noisy.py", tmp_path / "log"
    text = f"from rewards import reward\nopen({str(log)!r}, 'a').write('x')\n"
    text += "@reward\ndef a(rollout): return 1.0\n@reward\ndef b(rollout): return 2.0\n"
    path.write_text(text)
    specs = {name: RewardSpec(fn=f"{path}:{name}") for name in "ab"}
    assert load_rewards(specs).score([GROUP])[0].totals == (3.0,) * 3
    assert log.read_text() == "x"
    path.write_text(text.replace("1.0", "10.0"))
    assert load_rewards(specs).score([GROUP])[0].totals == (12.0,) * 3


def test_a_decorated_function_stays_a_plain_function(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin.parent)
    import my_rewards  # pyright: ignore[reportMissingImports]

    assert my_rewards.constant(GROUP.rollouts[0], value=3) == 3


def errors_of(specs: dict[str, RewardSpec]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_rewards(specs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("fn", "args", "message"),
    [
        (
            "acuracy",
            {},
            r"rewards\.mine\.?.*'acuracy' \(did you mean 'accuracy'\?\); .*module:function or path",
        ),
        ("nowhere.py:fn", {}, r"rewards\.mine.* no file nowhere\.py"),
        ("{file}:constnat", {}, r"no 'constnat' in .*my_rewards\.py \(did you mean 'constant'\?\)"),
        ("{file}:number", {}, r"number is no function but a value of type int"),
        ("{file}:constant", {}, r"rewards\.mine\.args: value missing"),
        ("{file}:constant", {"value": 1, "scael": 2}, r"no argument 'scael' \(did you mean 'scale'\?\)"),
        ("{file}:rarity", {"value": 1}, r"no argument 'value'; it takes none"),
        ("{file}:two_arguments", {}, r"one positional argument; knobs are keyword-only"),
        (
            "{file}:forgot_the_decorator",
            {},
            r"no decorator.*must take \*\*kwargs.*is @reward or @group_reward missing",
        ),
        ("{file}:trl_style", {"bonsu": 1}, r"no argument 'bonsu' \(did you mean 'bonus'\?\)"),
        ("{file}:trl_style", {"completions": []}, r"no argument 'completions'"),
        ("no_such_package.rewards:fn", {}, r"no_such_package\.rewards does not import: ModuleNotFoundError"),
        ("rewards.parsing", {}, r"no built-in reward named 'rewards\.parsing'"),
        ("keyframe", {"tolerence_s": 1}, r"no argument 'tolerence_s' \(did you mean 'tolerance_s'\?\)"),
    ],
)
def test_a_mistake_in_an_entry_is_named(plugin: Path, fn: str, args: dict[str, Any], message: str) -> None:
    text = errors_of({"mine": RewardSpec(fn=fn.format(file=plugin), args=args)})
    assert text.startswith("rewards.mine") and re.search(message, text), text


@pytest.mark.parametrize("text", ["def broken(:", "import no_such_module", "1 / 0"])
def test_a_file_that_does_not_import_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):  # nothing half imported stays behind
        assert "broken.py does not import: " in errors_of({"mine": RewardSpec(fn=f"{path}:fn")})


def test_a_weight_is_a_finite_number() -> None:
    assert errors_of({"format": RewardSpec(weight=float("nan"))}).startswith("rewards.format.weight: nan")


def test_only_if_names_another_reward_and_goes_nowhere_round() -> None:
    def specs(**gates: str | None) -> dict[str, RewardSpec]:
        return {name: RewardSpec(fn="format", only_if=gate) for name, gate in gates.items()}

    text = errors_of(specs(accuracy=None, keyframe="acuracy"))
    assert text == "rewards.keyframe.only_if: no reward named 'acuracy' (did you mean 'accuracy'?)"
    assert "a -> a" in errors_of(specs(a="a"))
    assert "a -> b -> c -> a" in errors_of(specs(a="b", b="c", c="a"))
    assert "in a circle" in errors_of(specs(z="a", a="b", b="a"))
    load_rewards(specs(a="b", b="c", c=None))


def test_what_a_plugin_imports_is_light() -> None:
    code = "import sys, rewards; print([m for m in ('torch', 'numpy', 'omegaconf', 'inspect') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_scoring_needs_no_torch() -> None:
    code = "import sys, grpo.commands.check; print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_an_installed_package_offers_rewards_by_name(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[grpo.rewards]\nrare = my_rewards:rarity\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry_points_of.cache_clear()
    try:
        in_workers = load_rewards({"rare": RewardSpec()}, WorkerSettings())
        assert in_workers.score([GROUP])[0].columns["rare"] == (1.0, 1.0, 1.0)
        in_workers.close()
    finally:
        entry_points_of.cache_clear()


def test_a_class_without_a_decorator_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("class Plain:\n    def __call__(self, rollout):\n        return 1.0\n")
    with pytest.raises(
        ValueError, match="rewards.plain: it has no decorator, .* is @reward or @group_reward missing"
    ):
        load_rewards({"plain": RewardSpec(fn=f"{plugin}:Plain")})


def test_a_module_in_the_working_directory_is_found_from_a_script_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "mine.py").write_text(
        "from rewards import reward\n@reward\ndef one(rollout): return 1.0\n"
    )
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from rewards.scoring.runner import load_rewards\nfrom rewards.scoring.specs import RewardSpec\n"
        "print(load_rewards({'one': RewardSpec(fn='my_package.mine:one')}).rewards[0].fn.__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "one\n", done.stderr
