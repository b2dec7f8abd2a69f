"""Every shipped config is valid, and what is wrong with a config is said with its key."""

import ast
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml

from grpo.config.limits import FREE, LIMITS, PATH, single_settings
from grpo.config.load import load_config, to_yaml
from grpo.config.schema import Config, DataConfig
from grpo.data import READERS
from grpo.run.same_run import check_same_run
from rewards.scoring.runner import load_rewards
from tests.support import tiny

SHIPPED = sorted((tiny.ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((tiny.ROOT / "configs" / "overlays").glob("*.yaml"))
DEMO = str(tiny.ROOT / "configs" / "demo.yaml")
OVERLAP = "rollout={engine: vllm_process, overlap: true}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_with_its_rewards_and_readers(path: Path) -> None:
    config = load_config([str(path)])
    load_rewards(config.rewards).probe()
    assert {dataset.reader for dataset in [*config.data.train, *config.data.eval]} <= READERS.keys()


def test_both_jobs_are_shipped() -> None:
    assert {"demo", "egovlm_3b"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("job", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_goes_with_every_job_and_with_the_others(path: Path, job: Path) -> None:
    assert load_config([str(job), str(path)]) != load_config([str(job)])
    for other in OVERLAYS:
        load_config([str(job), str(path), str(other)])


def test_every_setting_is_set_by_a_config_or_a_test() -> None:
    """Those of a reward and of a dataset included. Another key's last name does not count as this one's."""
    configs = [*tiny.ROOT.glob("configs/**/*.yaml")]
    tests = [file.read_text() for file in tiny.ROOT.glob("tests/**/*.py")]
    text = "\n".join([*tests, *(file.read_text() for file in configs)])
    in_configs = {key for file in configs for key in keys_in(yaml.safe_load(file.read_text()))}
    made = {each for test in tests for each in made_with_keywords(test)}
    unset = [
        key
        for cls, key in settings_of(Config)
        if key not in in_configs
        and not re.search(rf"\b{overridden(key)}", text)
        and not any((base.__name__, key.rpartition(".")[2]) in made for base in cls.__mro__)
    ]
    assert unset == []


def settings_of(cls: type, prefix: str = "") -> Iterator[tuple[type, str]]:
    """Each setting's class and key; what can be said of every reward or data set, once."""
    for name, kind in get_type_hints(cls).items():
        inner = [each for each in (kind, *get_args(kind)) if is_dataclass(each) and isinstance(each, type)]
        if inner and (cls, name) != (DataConfig, "eval"):
            yield from settings_of(inner[0], f"{prefix}{name}." + "NAME." * (get_origin(kind) is dict))
        else:
            yield cls, prefix + name


def overridden(key: str) -> str:
    """A pattern of `KEY=VALUE`; lists are set whole."""
    if key.startswith("data.train."):
        return rf"data\.(train|eval)=\[.*\b{key.rpartition('.')[2]}:"
    return re.escape(key).replace("NAME", "[^ .=]+") + "[=.]"


def keys_in(node: object, prefix: str = "") -> Iterator[str]:
    """Of a config file; an entry of a list goes by the list's key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield prefix + name
            yield from keys_in(value, f"{prefix}{'NAME' if prefix == 'rewards.' else name}.")
    for each in node if isinstance(node, list) else []:
        yield from keys_in(each, prefix)


def made_with_keywords(code: str) -> Iterator[tuple[str, str | None]]:
    """What is called by name in Python code, with each of its keywords."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from ((node.func.id, keyword.arg) for keyword in node.keywords)


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    extra = tmp_path / "more.yaml"
    extra.write_text("optim: {lr: 5.0e-5, warmup_steps: 9}\n")
    gated = ["rewards.keyframe.weight=0", "rewards.keyframe.clip=[0.25, 0.5]"]
    config = load_config([DEMO, str(extra), "optim.lr=2e-6", *gated])
    assert (config.optim.lr, config.optim.warmup_steps) == (2e-6, 9)
    assert (config.rewards["keyframe"].weight, config.rewards["keyframe"].clip) == (0, (0.25, 0.5))
    assert config.optim.prompts_per_step == 16  # the demo's


def test_a_config_survives_its_own_yaml(tmp_path: Path) -> None:
    config = load_config([DEMO])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config([str(file)]) == config
    check_same_run(file, config)


def test_what_the_environment_fills_in_is_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "hunter2")
    more = tmp_path / "more.yaml"
    more.write_text(
        "rewards: {judge: {weight: 0.1, args: {api_key: '${oc.env:API_KEY}', plain: '\\${x}', deep: [a, '${seed}']}}}\n"
        "seed: ${oc.env:SEED_OF_NO_TEST,7}\n"
        "model: {path: 'models/${oc.env:API_KEY}'}\nprompt: {option: '${rewards.judge.args.api_key}'}\n"
    )
    argv = [DEMO, str(more), "optim.lr=1e-3"]
    config, file = load_config(argv), tmp_path / "config.yaml"
    assert config.rewards["judge"].args == {"api_key": "hunter2", "plain": "${x}", "deep": ["a", 7]}
    file.write_text(to_yaml(config, argv))
    assert "hunter2" in to_yaml(config) and "hunter2" not in file.read_text()
    assert load_config([str(file)]) == config
    check_same_run(file, config)
    monkeypatch.setenv("API_KEY", "another")  # a new key is no other run
    check_same_run(file, load_config(argv))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("reward.accuracy.weight=1", r"no setting reward; did you mean rewards\?"),
        ("rollout.engine=transformer", r"rollout.engine: no 'transformer' \(did you mean 'transformers'\?\)"),
        ("optim.schedule=010", r"optim.schedule: no '010'; it is one of constant, cosine"),
        ("optim.lrr=1", r"no setting optim.lrr; did you mean optim.lr\?"),
        ("optim.learning_rte=1", r"no setting optim.learning_rte; did you mean optim.lr\?"),
        ("learning_rte=1", r"no setting learning_rte; did you mean optim.lr\?"),
        ("data.reader=auto", r"here it is data.train=\[{reader: auto, path: FILE}\] \(docs/coming_from.md\)"),
        ("data.train=[{pth: x}]", r"no setting data.train.0.pth; did you mean data.train.0.path\?"),
        ("model.lora.q=3", "no setting model.lora.q; model.lora has r, alpha, targets"),
        ("foo.bar=3", "no setting foo; there are run_dir, seed, num_steps, "),
        ("rewards.accuracy.wieght=1", r"did you mean rewards.accuracy.weight\?"),
        ("optim.lr=", "optim.lr has no value; it has to be a number"),
        (
            "rollout.engine=null",
            "rollout.engine has no value; it is one of vllm, vllm_process, vllm_server, transformers",
        ),
        (
            "rollout.engine=vllm_server",
            "rollout.servers are those of rollout.engine=vllm_server, which needs",
        ),
        ("rollout.servers=[http://a:1]", "rollout.servers are those of rollout.engine=vllm_server"),
        (
            "rollout={engine: vllm_server, servers: ['http://a:1', 'http://a:1/']}",
            "rollout.servers names a server twice",
        ),
        (
            "rollout={engine: vllm_server, servers: ['a:1']}",
            "rollout.servers: 'a:1' is no address of the form http://HOST:PORT",
        ),
        (
            "rollout.overlap=true",
            "rollout.overlap needs an engine beside the learner: rollout.engine=vllm_process or",
        ),
        (
            "rollout.process_gpus='1'",
            "rollout.process_gpus are those of rollout.engine=vllm_process",
        ),
        ("data.eval=", r"data.eval has no value; an empty list is \[\]"),
        ("optim.betas=[0.9]", "optim.betas has 2 values, not 1"),
        ("optim.lr=fast", "optim.lr"),
        ("rollout.engine=vlm", "rollout.engine: .*'vlm'"),
        ("rollout.group_size=1", "rollout.group_size must be at least 2"),
        ("num_steps=0", "num_steps must be above 0, not 0"),
        ("media.min_frames=99", "media.min_frames"),
        ("rollout.gpu_memory_frac=1.5", "rollout.gpu_memory_frac"),
        ("no-such-file.yaml", "no file no-such-file.yaml"),
        ("optim.lr=-1", "optim.lr must be above 0, not -1"),
        ("advantages.min_std=-1", "advantages.min_std must be at least 0"),
        ("loss.beta=-1", "loss.beta must be at least 0, not -1"),
        ("rollout.max_new_tokens=256", "rollout.max_new_tokens leaves no room"),
        ("rollout.stop=['']", "rollout.stop: an empty text"),
        ("rollout.prove_sync_every=-1", "rollout.prove_sync_every must be at least 0"),
        ("rollout.tensor_parallel_size=0", "rollout.tensor_parallel_size must be above 0"),
        ("rollout.lora=merge", "rollout.lora=merge has no effect without model.lora.r"),
        (
            "rollout.top_p=0.9",
            "no setting rollout.top_p: completions are sampled from the whole distribution",
        ),
        (
            "repetition_penalty=1.05",
            "no setting repetition_penalty: .* a penalty changes it with every token",
        ),
        ("rollout.guided_regex=x", "no setting rollout.guided_regex: .* a grammar would mask it"),
        ("prompt.template='{questoin}'", "prompt.template: 'questoin' in"),
        ("prompt.option='{'", "prompt.option: "),
        ("rewards={accuracy: [}", "no YAML"),
        ("data.train.0.path=mine.jsonl", "lists are set whole"),
        ("data.train={path: mine.jsonl}", r"are set whole: data.train=\[{reader: auto, path: FILE}\]"),
        ("optim.betas=0.9", "optim.betas: lists are set whole"),
        ("optim.robust=spd", "optim.robust is a section; did you mean optim.robust.method=spd?"),
        ("loss=grpo", "did you mean loss.type=grpo?"),
        ("rollout=4", "rollout is a section; its settings are engine, group_size, "),
        ("rewards=accuracy", "rewards is a mapping, whose entries have names"),
        ("rewards.keyframe.args={tolerance_s: .nan}", "rewards.keyframe.args.tolerance_s must be a number"),
        ("optim.learning_rate=1e-6", "no setting optim.learning_rate; here it is optim.lr"),
        ("--learning_rate=1e-6", "no setting --learning_rate; here it is optim.lr"),
        ("--learning_rate", "no option --learning_rate: a setting is key=value"),
        ("optim.beta=0.1", "no setting optim.beta; here it is loss.beta"),
        (
            "actor_rollout_ref.rollout.n=4",
            "no setting actor_rollout_ref.rollout.n; here it is rollout.group_size",
        ),
        ("prompt.template='{question} ${{x}}'", r"prompt.template: .* literally is written \\\${"),
        ("run_dir=$NOT_SET/x", r"run_dir: \$NOT_SET is not set in the environment"),
        ("data.train=[{path: x, share: 0}]", r"data.train.0.share must be at least 0.0001, not 0"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1 must be below 1, not 1.0"),
        ("loss.entropy_coef=nan", "loss.entropy_coef must be a number, not nan"),
        ("media.fps=0", "media.fps must be above 0"),
        ("media.fps=nan", "media.fps"),
        ("media.fps=inf", "media.fps"),
        ("media={min_frames: 1, max_frames: 1}", "media.max_frames must be at least 2"),
        (
            "media={min_frames: 9, max_frames: 8}",
            r"media.min_frames \(9\) must be at most media.max_frames \(8\)",
        ),
        ("media={min_pixels: 1000, max_pixels: 999}", "media.min_pixels"),
        ("media.total_pixels=0", "media.total_pixels must be at least 1"),
        ("media.max_tokens=0", "media.max_tokens must be at least 1"),
        ("rewards_workers.memory_gib=0", "rewards_workers.memory_gib must be above 0"),
        (
            "data.eval=[{path: a/x.jsonl}, {path: b/x.jsonl}]",
            "data.eval: two sets are called 'x'; set their name",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([DEMO, argument])
    assert "\n" not in str(caught.value)


def test_partial_rollouts_need_overlap_and_no_texts_that_end_completions() -> None:
    for argument, message in (
        ("rollout.partial_tokens=8", "rollout.partial_tokens needs rollout.overlap"),
        (
            "rollout={engine: vllm_process, overlap: true, partial_tokens: 8, stop: [x]}",
            "not go with rollout.stop",
        ),
        ("rollout.partial_max_steps=0", "rollout.partial_max_steps must be above 0"),
        ("rollout.partial_max_steps=3", "rollout.partial_max_steps is of rollout.partial_tokens"),
        (
            "rollout={engine: vllm_process, overlap: true, max_new_tokens: 8, partial_tokens: 8}",
            "rollout.partial_tokens=8 cuts nothing: it must be below rollout.max_new_tokens=8",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_config([DEMO, argument])
    with pytest.raises(ValueError, match="not go with dynamic_sampling.max_resample_times"):
        load_config([DEMO, OVERLAP, "rollout.partial_tokens=8", "dynamic_sampling.max_resample_times=1"])


@pytest.mark.parametrize(
    ("correction", "message"),
    [
        (
            "correction=false",
            "trains on completions of older weights: set loss.vllm_importance_sampling_correction",
        ),
        ("mode=sequence_mask", "corrects by token: .*token_truncate or token_mask, not sequence_mask"),
    ],
)
def test_overlap_needs_a_correction_by_token(correction: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"rollout.overlap {message}"):
        load_config([DEMO, OVERLAP, f"loss.vllm_importance_sampling_{correction}"])
    load_config([DEMO, OVERLAP, "loss.vllm_importance_sampling_mode=token_mask"])


def test_overlap_without_a_measured_gap_needs_to_be_asked_for() -> None:
    with pytest.raises(ValueError, match="rollout.prove_sync_every=0 measures no gap with rollout.overlap"):
        load_config([DEMO, OVERLAP, "rollout.prove_sync_every=0"])
    load_config([DEMO, OVERLAP, "rollout.prove_sync_every=0", "rollout.max_gap=0"])
    load_config([DEMO, "rollout.prove_sync_every=0"])


def written(tmp_path: Path) -> Path:
    """The demo's config as a run's folder has it."""
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(to_yaml(load_config([DEMO])))
    return file


@pytest.mark.parametrize(
    "override",
    [
        "num_steps=9",
        "eval.every_steps=3",
        "data.eval=[]",
        "data.probe_clips=1",
        "media.cache_dir=elsewhere",
        "rewards_workers.max_workers=1",
        "rewards.accuracy.timeout_s=5",
    ],
)
def test_a_resumed_run_may_change_what_is_free(override: str, tmp_path: Path) -> None:
    check_same_run(written(tmp_path), load_config([DEMO, override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", "holds a run with seed=0, not 7; choose another run_dir"),
        ("media.fps=9", "media.fps="),
        ("rewards.accuracy.weight=0.25", "rewards.accuracy.weight="),
        ("rewards.accuracy.args={strict: true}", "rewards.accuracy.args.strict=None, not True"),
        ("data.train=[{path: other.jsonl}]", "data.train.0.path="),
        ("model.freeze=[merger]", "model.freeze.0=None, not merger"),
    ],
)
def test_another_value_of_what_is_not_free_makes_another_run(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_run(written(tmp_path), load_config([DEMO, override]))


def test_a_config_that_no_run_has_written_is_named(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace("seed:", "sead:"))
    with pytest.raises(
        ValueError, match=r"run_dir: .*run/config.yaml: .*no setting sead; did you mean seed\?"
    ):
        check_same_run(file, load_config([DEMO]))


def test_every_word_beside_a_field_is_one_that_is_looked_at() -> None:
    words = {word for setting in single_settings(load_config([DEMO])) for word in setting.words}
    assert {type(word) for word in words} - {str} <= LIMITS.keys()
    assert {word for word in words if isinstance(word, str)} == {FREE, PATH}


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("num_steps: 3\n")
    with pytest.raises(ValueError, match="config: (model.path|run_dir) is not set"):
        load_config([str(file)])


def test_the_keyframes_tag_is_asked_for_only_with_a_keyframe_reward(tmp_path: Path) -> None:
    assert load_config([DEMO]).tags == ("think", "keyframes", "answer")
    file = tmp_path / "plain.yaml"
    file.write_text(
        "run_dir: r\nnum_steps: 1\nmodel: {path: m}\ndata: {train: [{path: x}]}\nrewards: {accuracy: {}}\n"
    )
    assert load_config([str(file)]).tags == ("think", "answer")
    assert load_config([str(file), "prompt.tags=[answer]"]).tags == ("answer",)


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt.tags: .*'thoughts'"):
        load_config([DEMO, "prompt.tags=[thoughts,answer]"])


def test_a_mistyped_file_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(ValueError, match=f"no file {tmp_path}/dmeo.yaml; did you mean {tmp_path}/demo.yaml"):
        load_config([str(tmp_path / "dmeo.yaml")])
