"""A model card from what a run knows: README.md with Hugging Face's front matter, beside the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo.benchmarks.answers import HEADER
from grpo.commands.export.results import read_results
from grpo.policy.model_folder import read_json, weights_identity
from grpo.run.disk import write_text
from grpo.run.folder import TRAINING

CARD = "README.md"

TEXT = """\
# {name}

{summary}

## How it was trained

| | |
| --- | --- |
{facts}

{rewards}

## Results

{results}

Intervals are of 95 %, clustered by video. An answer that can't be read counts as wrong in the strict score.

## Use

```bash
egogrpo ask {folder}/ clip.mp4 "What did I pick up?"
egogrpo serve {folder}/
```

`inputs.json` in it says how clips were sampled and prompts were written in training; both commands follow it.
"""


def write_card(
    folder: Path,
    *,
    run: Path | None,
    results: Sequence[Path],
    license_name: str | None,
    language: str = "en",
    overwrite: bool = False,
) -> Path:
    """Write the card of a model folder; raise ValueError that names what is missing. It replaces an older card.

    run: the folder of the run that it comes from; None: the one around `final/`, if there is one.
    overwrite: replace one that somebody has edited since, too.
    """
    from huggingface_hub import ModelCardData

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json{_final_in(folder)}")
    card = folder / CARD
    if card.exists() and not overwrite and not _is_as_written(card.read_text(encoding="utf-8")):
        raise ValueError(f"{card} was edited, or is not from here: --overwrite replaces it")
    run = run or (
        folder.absolute().parent if (folder.absolute().parent / "manifest.json").is_file() else None
    )
    if run is not None and not (run / "manifest.json").is_file():
        raise ValueError(f"--run: {run} has no manifest.json")
    training = read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {}
    scores = [score for path in results for score in scores_of(read_results(path, "--results"), folder)]
    base = training.get("base")
    # A folder of this machine means nothing to others.
    is_public = bool(base) and not Path(base).exists()
    data = ModelCardData(
        language=language,
        license=license_name,
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        base_model=base if is_public else None,
        tags=["grpo", "video", "reinforcement-learning"],
        model_name=folder.absolute().parent.name if folder.name == "final" else folder.name,
        eval_results=[result for score in scores for result in _eval_results(score)] or None,
    )
    text = TEXT.format(
        name=data.model_name,
        summary=f"Trained with GRPO from `{base if is_public else Path(base).name}`."
        if base
        else "A video model.",
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(run, training)),
        rewards=_rewards(run),
        results=_table(scores),
        folder=folder.name,
    )
    write_text(card, _marked(f"---\n{data.to_yaml()}\n---\n\n{text}"))
    return card


def _marked(text: str) -> str:
    """The card with a comment at its end, by which it is known again as long as nobody edits it."""
    return f"{text}\n<!-- egogrpo export card {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"


def _is_as_written(card: str) -> bool:
    text, marker, _ = card.rpartition("\n<!-- egogrpo export card ")
    return bool(marker) and _marked(text) == card


def _final_in(folder: Path) -> str:
    return f"; its model is {folder / 'final'}" if (folder / "final" / "config.json").is_file() else ""


def scores_of(results: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield an evaluation's figures of this model, from a results.json of `egogrpo evaluate`.

    Raises ValueError unless just one of its models is the one in this folder.
    """
    models = results.get("models", {})
    own = [name for name, figures in models.items() if is_of(figures, folder)]
    if len(own) != 1:
        raise ValueError(
            f"results of {', '.join(models) or 'no model'}: which of them is {folder}? None has its weights "
            "or, where the answers are gone, its path"
            if not own
            else f"results of {', '.join(own)}, all of them {folder}: which of them are meant?"
        )
    figures = models[own[0]]
    yield {
        "benchmark": results["benchmark"],
        "prompt": results.get("prompt", {}).get("kind", ""),
        "num_in_file": results.get("manifest", {}).get("num_in_file", figures["num_questions"]),
        **figures,
    }


def is_of(figures: Mapping[str, Any], folder: Path) -> bool:
    """Whether figures are of the model in a folder: by the weights that its answers name, else by its path."""
    header = Path(figures["answers"]) / HEADER if "answers" in figures else None
    if header is not None and header.is_file():
        return read_json(header).get("weights") == weights_identity(folder)
    return Path(figures["path"]).resolve() == folder.resolve()


def _facts(run: Path | None, training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "step" in training:
        yield "steps", str(training["step"])
    if run is None:
        return
    config, manifest = OmegaConf.load(run / "config.yaml"), read_json(run / "manifest.json")
    for key in (
        "rollout.group_size", "optim.prompts_per_step", "optim.lr", "loss.type", "loss.beta", "model.lora.r",
        "media.fps", "media.max_frames", "rollout.max_new_tokens", "rollout.temperature", "seed",
    ):  # fmt: skip
        if (value := OmegaConf.select(config, key)) is not None:
            yield f"`{key}`", str(value)
    yield "processes", f"{manifest['num_processes']} ({manifest['device']})"
    yield (
        "data (sha256)",
        ", ".join(f"{Path(name).name} {sum_[:12]}" for name, sum_ in manifest["data"].items()),
    )
    packages = manifest["packages"]
    yield "software", ", ".join(f"{name} {version}" for name, version in packages.items())


def _rewards(run: Path | None) -> str:
    if run is None:
        return ""
    rewards = OmegaConf.to_container(OmegaConf.load(run / "config.yaml").rewards)
    assert isinstance(rewards, dict)
    return (
        "Rewards: " + ", ".join(f"{name} (weight {spec['weight']:g})" for name, spec in rewards.items()) + "."
    )


def _table(scores: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores as Markdown, each with its interval and number of questions."""
    if not scores:
        return "None were given."
    rows = [
        "| benchmark | prompt | score (strict) | official rule | questions |",
        "| --- | --- | --- | --- | --- |",
    ]
    for score in scores:
        ours, official = (_with_interval(score, kind) for kind in ("score", "official"))
        asked, there = score["num_questions"], score["num_in_file"]
        questions = asked if asked == there else f"{asked} of {there}"
        rows.append(f"| {score['benchmark']} | {score['prompt']} | {ours} | {official} | {questions} |")
    return "\n".join(rows)


def _with_interval(score: Mapping[str, Any], kind: str) -> str:
    """Return a score with its 95 % interval."""
    if score.get(kind) is None:
        return ""
    interval = score.get(f"{kind}_interval")
    return f"{score[kind]:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _eval_results(score: Mapping[str, Any]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    name = score["benchmark"]
    if score["score"] is not None:
        yield EvalResult(
            task_type="video-text-to-text", dataset_type=name, dataset_name=name, metric_type="score",
            metric_value=round(score["score"], 4),
        )  # fmt: skip


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a model folder to a hub repository, which is made if it is not there; return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model and card"))
