"""Model folders that are made from others: mixed against numpy, merged against the adapters; and cards."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.benchmarks.answers import HEADER
from grpo.codec.codec import save_codec
from grpo.commands.codec.grow import grow
from grpo.commands.export.card import scores_of
from grpo.commands.export.command import main
from grpo.commands.export.interpolate import interpolate
from grpo.commands.export.merge import merge
from grpo.commands.export.results import read_results
from grpo.policy.adapters import adapters_off, is_adapter
from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.policy.model_folder import weights_identity
from grpo.policy.weights import flat, weight_buckets
from grpo.rollout.sync_proof import code_prompts
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.run.final_model import save_final
from tests.rollout.test_rollout import SAMPLING, SEEDS, prompts, tokens
from tests.support import grown, tiny


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "final"
    save_final(folder, tiny.policy(seed=4), dtype=torch.bfloat16)
    return folder


@pytest.mark.slow
def test_the_command_writes_the_weighted_mean_of_the_two_models(tuned: Path, tmp_path: Path) -> None:
    arguments = ["interpolate", str(tiny.BASE_POLICY), str(tuned), "--alpha", "0.25"]
    command = [sys.executable, "-m", "grpo.commands", "export", *arguments, "--out", str(tmp_path / "mixed")]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    base, end = load_file(tiny.BASE_POLICY / "model.safetensors"), load_file(tuned / "model.safetensors")
    mixed = load_file(tmp_path / "mixed" / "model.safetensors")
    assert mixed.keys() == end.keys()
    for name, weight in mixed.items():
        expected = 0.25 * end[name].float().numpy() + 0.75 * base[name].float().numpy()
        assert weight.dtype == torch.bfloat16
        # one rounding to bf16's 8 bits
        np.testing.assert_allclose(weight.float().numpy(), expected, rtol=2**-8, atol=1e-7, err_msg=name)
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_two_models(tuned: Path, tmp_path: Path, alpha: float) -> None:
    interpolate(str(tiny.BASE_POLICY), str(tuned), alpha=alpha, out=tmp_path / "mixed")
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "mixed", dtype="auto")
    source = [tiny.BASE_POLICY, tuned][int(alpha)]
    expected = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    for name, weight in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_what_is_wrong_is_said_in_one_line(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny.BASE_POLICY)
    with pytest.raises(ValueError, match="--alpha must lie in"):
        interpolate(base, str(tuned), alpha=1.5, out=tmp_path / "mixed")
    with pytest.raises(ValueError, match="there is something at"):
        interpolate(base, str(tuned), alpha=0.5, out=tuned)
    out = str(tmp_path / "mixed")
    assert main(["interpolate", base, str(tmp_path / "none"), "--alpha", "0.5", "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no model folder" in error and error.count("\n") == 1
    assert not (tmp_path / "mixed").exists()


def test_models_of_another_shape_are_refused(tuned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model: Any = tiny.family().load_model(torch.float32)
    text: Any = model.config.text_config
    del model.model.language_model.layers[-1]
    text.num_hidden_layers, text.layer_types = text.num_hidden_layers - 1, text.layer_types[:-1]
    model.save_pretrained(other)
    tiny.family().processor.save_pretrained(other)
    with pytest.raises(
        ValueError, match=r"not the same architecture: the two models differ in model\.language_m"
    ):
        interpolate(str(other), str(tuned), alpha=0.5, out=tmp_path / "mixed")


def test_models_with_other_code_tokens_are_refused_although_their_shapes_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, high in {"one": 1.0, "other": 2.0}.items():
        save_codec(grown.bins("action", levels=1, codes=5, high=high), tmp_path / name / "action")
        grow(str(tiny.BASE_POLICY), tmp_path / f"by_{name}", [tmp_path / name / "action"])
    one, other = str(tmp_path / "by_one"), str(tmp_path / "by_other")
    assert load_family(one).config.text_config.vocab_size == tiny.family().config.text_config.vocab_size
    for base, tuned, says in (
        (str(tiny.BASE_POLICY), one, "has none, .*by_one has action "),
        (one, str(tiny.BASE_POLICY), "has action .*, .*base_policy has none"),
        (one, other, "by_one has action .*, .*by_other has action "),
    ):
        arguments = ["interpolate", base, tuned, "--alpha", "0.5", "--out", str(tmp_path / "mixed")]
        assert main(arguments) == 1
        assert re.search(f"the two models differ in their code tokens: .*{says}", capsys.readouterr().err)
        assert not (tmp_path / "mixed").exists()
    interpolate(one, one, alpha=0.5, out=tmp_path / "mixed")
    assert load_family(str(tmp_path / "mixed")).vocabulary == load_family(one).vocabulary


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """A policy with adapters that do something, and their folder."""
    folder = tmp_path_factory.mktemp("adapted") / "final"
    policy = tiny.policy(lora=tiny.LORA)
    tiny.stir({name: weight for name, weight in policy.named_parameters() if is_adapter(name)}, 3)
    save_final(folder, policy, dtype=torch.float32)
    return policy, folder / "adapter"


def test_merged_weights_are_those_with_the_adapters_in_files_of_a_size(
    adapted: tuple[Policy, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, adapter = adapted
    out = tmp_path / "merged"
    arguments = ["merge", str(adapter), "--out", str(out), "--dtype", "float32", "--max-shard-size", "1MB"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "merged in fp32; log-probs as with the adapters to" in capsys.readouterr().out
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1 and (out / "model.safetensors.index.json").is_file()
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype="auto")
    assert loaded.dtype == torch.float32
    found = loaded.state_dict()
    for name, weight in policy.named_weights():
        assert torch.equal(found[name], weight), name
    beside = {"chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer.json"}
    assert beside <= {file.name for file in out.iterdir()}
    # It has no adapters any more.
    assert not (out / "adapter").exists()


def test_a_merged_grown_model_keeps_its_codes_and_codecs_and_gives_the_adapters_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tiny.of_family("qwen3_vl_untied_grown"):
        policy = tiny.policy(lora=tiny.LORA)
        tiny.stir({name: weight for name, weight in policy.named_parameters() if is_adapter(name)}, 3)
        final, out = tmp_path / "final", tmp_path / "merged"
        save_final(final, policy, dtype=torch.float32)
        assert main(["merge", str(final / "adapter"), "--out", str(out), "--dtype", "float32"]) == 0
        for file in ("codes.json", *(f"codecs/{name}/codec.json" for name in grown.SIZES)):
            expected = (Path(policy.family.path) / file).read_bytes()
            assert (final / file).read_bytes() == (out / file).read_bytes() == expected
        with tiny.of_family("qwen3_vl_untied"):
            base = ["--base", tiny.family().path, "--out", str(tmp_path / "ungrown")]
        assert main(["merge", str(final / "adapter"), *base]) == 1
        assert "has other code tokens than the model that the adapters are of" in capsys.readouterr().err
        questions = [tiny.prompt(tiny.sample(), tiny.clip(4)), tiny.prompt(tiny.sample(), None)]
        asked = [*questions, *code_prompts(questions[1], grown.vocabulary())]

    def answers(policy: Policy) -> list[Any]:
        return tokens(TransformersEngine(policy).generate(asked, SAMPLING, range(len(asked))))

    family = load_family(str(out))
    assert family.vocabulary == policy.family.vocabulary
    found = answers(Policy(family.load_model(torch.float32), family, temperature=1.0))
    assert found == answers(policy)
    with adapters_off(policy.model):
        assert found != answers(policy)


@pytest.mark.slow
def test_a_merged_model_in_vllm_gives_the_adapters_answers(
    adapted: tuple[Policy, Path], tmp_path: Path
) -> None:
    """vLLM is sent no weights: what it samples with is what it has loaded from the folder."""
    pytest.importorskip("vllm")
    from tests.support.engines import vllm_engine

    policy, adapter = adapted
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    family = load_family(str(tmp_path / "merged"))
    with torch.device("meta"):
        outline = Policy(family.outline(), family, temperature=1.0)
    engine = vllm_engine(outline)
    greedy = replace(SAMPLING, group_size=1, temperature=0.0)
    served = tokens(engine.generate(prompts(), greedy, SEEDS))
    engine.close()
    assert served == tokens(TransformersEngine(policy).generate(prompts(), greedy, SEEDS))
    # The adapters change answers.
    assert served != tokens(TransformersEngine(tiny.policy()).generate(prompts(), greedy, SEEDS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, weight: {name: torch.zeros_like(weight)}, "the adapters change no log-prob"),
        (lambda name, weight: {} if "layers.0.mlp" in name else {name: weight}, "not adapters of .*layers.0"),
        (lambda name, weight: {name.replace("layers.0", "layers.90"): weight}, "not adapters of .*layers.0"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused(
    adapted: tuple[Policy, Path], tmp_path: Path, change: Any, words: str
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(adapted[1], adapter)
    file = adapter / "adapter_model.safetensors"
    changed: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        changed |= change(name, weight)
    save_file(changed, file)
    with pytest.raises(ValueError, match=words):
        merge(adapter, base_path=None, out=tmp_path / "merged", dtype=torch.float32)
    assert not (tmp_path / "merged").exists()


def test_a_merge_with_other_log_probs_is_not_written(
    adapted: tuple[Policy, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(policy: Policy) -> Any:
        return ((name, weight * 1.05) for name, weight in flat(weight_buckets(policy.model)))

    monkeypatch.setattr(Policy, "named_weights", wrong)
    with pytest.raises(ValueError, match="merged, log-probs are .* from those with the adapters"):
        merge(adapted[1], base_path=None, out=tmp_path / "merged", dtype=torch.float32)
    assert not (tmp_path / "merged").exists()


def test_a_folder_without_adapters_is_refused(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no adapter_config.json and .*: a run with LoRA leaves them in"):
        merge(tuned, base_path=None, out=tmp_path / "merged", dtype=torch.float32)


def results(folder: Path, benchmark: str, *models: tuple[str, float]) -> Path:
    """What an evaluation says of models in folders of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        name: {
            "path": f"{folder.parent}/{name}", "num_questions": 500, "score": score,
            "score_interval": [score - 0.04, score + 0.04], "official": score + 0.01, "official_interval": None,
        }
        for name, score in models
    }  # fmt: skip
    file = folder / "results.json"
    file.write_text(json.dumps({"benchmark": benchmark, "prompt": {"kind": "direct"}, "models": figures}))
    return file


def test_several_shares_make_a_folder_each_and_a_plot_of_what_is_gained_and_lost(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixed"
    arguments = ["interpolate", str(tiny.BASE_POLICY), str(tuned), "--out", str(out), "--alpha", "0", "0.5"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert sorted(folder.name for folder in out.iterdir()) == ["alpha_0", "alpha_0.5"]
    inside = results(tmp_path / "in", "ours", ("alpha_0", 0.5), ("alpha_0.5", 0.7), ("alpha_1", 0.8))
    outside = results(tmp_path / "out", "theirs", ("alpha_0.5", 0.6), ("alpha_0", 0.65), ("base", 0.1))
    picture = tmp_path / "sweep.png"
    plotted = ["plot", "--inside", str(inside), "--outside", str(outside), "--out", str(picture)]
    capsys.readouterr()
    assert main(plotted) == 0
    assert capsys.readouterr().out.splitlines() == ["0: 0.500 0.650", "0.5: 0.700 0.600", str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*plotted[:4], str(results(tmp_path / "x", "theirs", ("base", 0.1))), *plotted[5:]]) == 1
    assert "fewer than two folders alpha_*" in capsys.readouterr().err


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run's folder with as much of it as a card reads."""
    run = tmp_path / "my_run"
    (run / "final").mkdir(parents=True)
    shutil.copy(tiny.ROOT / "configs" / "demo.yaml", run / "config.yaml")
    manifest = {
        "packages": {"torch": "2.13.0"}, "data": {"data/train.jsonl": "e06755bc3c18233e"},
        "num_processes": 8, "device": "cuda:0",
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(tiny.BASE_POLICY / "config.json", run / "final")
    (run / "final" / "training.json").write_text('{"step": 40, "base": "Qwen/Qwen2.5-VL-3B-Instruct"}')
    return run


def test_a_card_says_what_run_and_evaluation_know(finished: Path) -> None:
    egoschema = results(finished / "evaluation", "egoschema", ("final", 0.61))
    arguments = ["card", str(finished / "final"), "--results", str(egoschema), "--license", "apache-2.0"]
    assert main(arguments) == 0
    card: Any = ModelCard.load(finished / "final" / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct" and card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "video-text-to-text" and card.data.library_name == "transformers"
    (found,) = card.data.eval_results
    assert (found.dataset_name, found.metric_value) == ("egoschema", 0.61)
    for line in (
        "| steps | 40 |", "| `rollout.group_size` | 8 |", "| processes | 8 (cuda:0) |", "| software | torch 2.13.0 |",
        "| data (sha256) | train.jsonl e06755bc3c18 |",
        "Rewards: accuracy (weight 1), format (weight 0.5), keyframe (weight 0.5).",
        "| egoschema | direct | 0.610 (0.570 to 0.650) | 0.620 | 500 |",
    ):  # fmt: skip
        assert line in card.text, line


def test_a_card_of_a_model_alone_says_less_and_names_no_folder_of_this_machine(finished: Path) -> None:
    folder = finished.parent / "elsewhere"
    shutil.move(finished / "final", folder)
    (folder / "training.json").write_text(json.dumps({"step": 3, "base": str(tiny.BASE_POLICY)}))
    assert main(["card", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "from `base_policy`" in text and str(tiny.ROOT) not in text and "None were given." in text
    card: Any = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None


def test_figures_are_those_of_the_model_with_these_weights(finished: Path, tmp_path: Path) -> None:
    final = finished / "final"
    (final / "model.safetensors").write_bytes(b"weights of now")
    other = read_results(results(finished / "evaluation", "egoschema", ("Qwen2.5-VL-3B-Instruct", 0.648)))
    with pytest.raises(ValueError, match="results of Qwen2.5-VL-3B-Instruct: which of them is"):
        next(scores_of(other, final))
    own = read_results(results(finished / "evaluation", "egoschema", ("final", 0.61)))
    own["models"]["final"] |= {"answers": str(tmp_path), "path": "moved/since/then"}
    header = {"weights": weights_identity(final)}
    (tmp_path / HEADER).write_text(json.dumps(header))
    assert next(scores_of(own, final))["score"] == 0.61
    own["models"]["final"]["path"] = str(final)
    (final / "model.safetensors").write_bytes(b"trained anew!!")
    with pytest.raises(ValueError, match="None has its weights"):
        next(scores_of(own, final))


def test_what_is_wrong_with_a_card_is_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = str(finished / "final")
    two = str(results(finished / "evaluation", "egoschema", ("one", 0.6), ("other", 0.5)))
    wrong = {
        "is no model folder: .*; its model is .*/my_run/final": ["card", str(finished)],
        "--results: no file nosuch.json": ["card", final, "--results", "nosuch.json"],
        "--run: .* has no manifest.json": ["card", final, "--run", final],
        "results of one, other: which of them is": ["card", final, "--results", two],
        "no results.json of egogrpo evaluate": ["card", final, "--results", f"{final}/training.json"],
    }
    for words, arguments in wrong.items():
        assert main(arguments) == 1
        assert re.search(words, capsys.readouterr().err), words


def test_a_card_that_somebody_has_edited_is_replaced_only_if_that_is_asked_for(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final, card = str(finished / "final"), finished / "final" / "README.md"
    assert main(["card", final]) == 0
    assert main(["card", final, "--license", "mit"]) == 0 and "license: mit" in card.read_text()
    for edited in (card.read_text().replace("GRPO from", "love from"), card.read_text() + "Mine.\n", "Mine."):
        card.write_text(edited)
        capsys.readouterr()
        assert main(["card", final]) == 1 and card.read_text() == edited
        assert capsys.readouterr().err.endswith("was edited, or is not from here: --overwrite replaces it\n")
    assert main(["card", final, "--overwrite"]) == 0 and "Mine." not in card.read_text()


def test_a_card_says_how_many_of_the_questions_were_asked(finished: Path) -> None:
    file = results(finished / "evaluation", "egoschema", ("final", 0.61))
    found = json.loads(file.read_text()) | {"manifest": {"num_in_file": 5031}}
    file.write_text(json.dumps(found))
    assert main(["card", str(finished / "final"), "--results", str(file)]) == 0
    assert "| 500 of 5031 |" in (finished / "final" / "README.md").read_text()


def test_a_card_is_uploaded_only_if_that_is_asked_for(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, **options: Any) -> str:
            calls.append(options["repo_id"])
            return "https://hub/x"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    final = str(finished / "final")
    assert main(["card", final]) == 0 and calls == []
    assert main(["card", final, "--push", "me/model"]) == 0
    assert calls == [("me/model", {"private": True, "exist_ok": True}), "me/model"]
