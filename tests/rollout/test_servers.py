"""A real vLLM server: it answers as the model was trained, and a run trains through it as through vLLM in process."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.datastructures import Headers

from grpo.commands import ask
from grpo.commands.__main__ import main as egogrpo
from grpo.policy.model import Policy
from grpo.policy.prompt_text import user_text
from grpo.rollout.server_check import check_server
from grpo.rollout.server_client import ServerClient, ServerError, ServerGone
from grpo.rollout.server_engine import ServerEngine
from grpo.rollout.server_flags import HOLD, ORDER, RUN_HEADER
from grpo.rollout.server_transfer import FolderTransfer
from grpo.rollout.sync_proof import SyncProof, make_prompt
from grpo.run.model_inputs import read_inputs
from tests.rollout.test_rollout import PARTS, SAMPLING, SEEDS, TEMPERATURE, gap, prompts, tokens
from tests.support import runs, tiny
from tests.support.planted import files_with
from tests.support.served import KEY, demo_model, served
from tests.support.videos import write_video

QUESTION = "Which object does the hand take?"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder alone, whose generation config asks for what its training did not have."""
    folder = demo_model(tmp_path_factory.mktemp("moved") / "final")
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"repetition_penalty": 5.0, "top_k": 1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("log") / "server.log"
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        served(model, "--for-training", "rollout.max_model_tokens=2048", log=log) as url,
        httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_video(tmp_path_factory.mktemp("videos") / "numbers.mp4"))


def completion(server: httpx.Client, video: Path, model: Path, **settings: Any) -> dict[str, Any]:
    """What the OpenAI API answers about an mp4, asked in the words of the training."""
    of = tiny.sample(question=QUESTION, options=("red", "green"))
    wording = read_inputs(str(model)).wording
    text = user_text(of, template=wording["template"], option=wording["option"], tags=wording["tags"])
    url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
    question = {"model": str(model), "messages": [{"role": "user", "content": content}], "max_tokens": 24}
    answer = server.post("/v1/chat/completions", json=question | settings)
    assert answer.is_success, answer.text
    return answer.json()["choices"][0]


def test_all_but_the_health_needs_the_key(server: httpx.Client) -> None:
    def status(path: str, **options: Any) -> int:
        return httpx.get(server.base_url.join(f"/{path}"), trust_env=False, **options).status_code

    assert status("health") == 200
    wrong = {"Authorization": "Bearer another"}
    for path in ("v1/models", "metrics", "version", "load", "openapi.json"):
        assert (status(path), status(path, headers=wrong)) == (401, 401), path
        assert server.get(f"/{path}").is_success, path


def test_what_a_server_answers_is_what_the_model_answers_here(
    server: httpx.Client,
    model: Path,
    video: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(model), str(video), QUESTION, "--option", "red", "--option", "green", "--json"]
    assert ask.main(arguments) == 0
    assert ask.main([*arguments, "--server", str(server.base_url)]) == 0
    here, there = map(json.loads, capsys.readouterr().out.splitlines())
    assert here == there
    assert ask.main([*arguments, "--server", str(server.base_url), "--regex", "Green|[xy]{3}"]) == 0
    assert re.fullmatch("Green|[xy]{3}", json.loads(capsys.readouterr().out)["text"])
    # An OpenAI client sends the file itself, and the server samples it as in training.
    assert completion(server, video, model, temperature=0.0)["message"]["content"] == here["text"]
    monkeypatch.delenv("VLLM_API_KEY")
    assert ask.main([*arguments, "--server", str(server.base_url)]) == 1
    assert "wants a key: set VLLM_API_KEY" in capsys.readouterr().err


def test_the_models_generation_config_does_not_leak_into_answers(
    server: httpx.Client, model: Path, video: Path
) -> None:
    """With its top-k of 1, every token would have a log-prob of 0."""
    steps = completion(server, video, model, temperature=1.0, seed=1, logprobs=True)["logprobs"]["content"]
    assert min(step["logprob"] for step in steps) < -0.01


def test_a_video_that_can_not_be_read_is_refused(server: httpx.Client, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(AssertionError, match="cannot be read as a video"):
        completion(server, broken, model)


def test_a_server_of_other_weights_is_not_asked(
    server: httpx.Client, model: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run has sent it weights yet."""
    other = demo_model(tmp_path / "other")
    save_file(
        {name: 2 * weight for name, weight in load_file(other / "model.safetensors").items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    assert ask.main([str(other), str(video), QUESTION, "--server", str(server.base_url)]) == 1
    assert f"has other weights than {other}: model.safetensors" in capsys.readouterr().err


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny.policy(temperature=TEMPERATURE)


def client(server: httpx.Client, run: str) -> ServerClient:
    return ServerClient(str(server.base_url), tiny.family(), timeout_s=60.0, run=run)


def engine(
    server: httpx.Client,
    policy: Policy,
    folder: Path,
    run: str = "run",
    kind: type[FolderTransfer] = FolderTransfer,
    proof: SyncProof | None = None,
) -> ServerEngine:
    return ServerEngine(
        [client(server, run)],
        kind(policy, folder / "weights", dtype=torch.float32, writes=True, to_cpu=True),
        check=partial(check_server, dtype=torch.float32, max_model_tokens=2048),
        timeout_s=60.0,
        max_tries=3,
        proof=proof,
    )


def test_log_probs_of_a_server_are_the_learners_after_each_sync(
    server: httpx.Client, policy: Policy, tmp_path: Path
) -> None:
    made = engine(server, policy, tmp_path)
    made.sync()
    several = [tiny.media_prompt(kinds) for kinds in tiny.SEVERAL.values()]
    assert gap(policy, made.generate(several, SAMPLING, SEEDS[:4])) < 1e-3
    groups = made.generate(prompts(), SAMPLING, SEEDS)
    assert [group.prompt.token_ids for group in groups] == [prompt.token_ids for prompt in prompts()]
    assert gap(policy, groups) < 1e-3
    part = made.generate(prompts()[3:1:-1], SAMPLING, SEEDS[3:1:-1])
    assert tokens(part) == [tokens(groups)[3], tokens(groups)[2]]  # as the seeds have it
    generator = torch.Generator().manual_seed(5)
    for name, belongs in PARTS.items():
        with torch.no_grad():
            for weight in (weight for each, weight in policy.model.named_parameters() if belongs(each)):
                weight *= 1 + 0.1 * torch.randn(weight.shape, generator=generator)
        assert gap(policy, made.generate(prompts(), SAMPLING, SEEDS)) > 1e-3, name
        made.sync()
        assert gap(policy, made.generate(prompts(), SAMPLING, SEEDS)) < 1e-3, name
    made.close()
    assert not (tmp_path / "weights").exists()
    wait_until_free(server)


class Damaging(FolderTransfer):
    """A transfer on whose way one weight changes."""

    damaged = "model.language_model.layers.0.mlp.down_proj.weight"

    def install(self, server: ServerClient, version: str) -> None:
        [path] = [path for path in self.files if self.damaged in load_file(path)]
        whole, weights = path.read_bytes(), load_file(path)
        save_file(
            weights | {self.damaged: weights[self.damaged] * 1.5}, path, {"order": json.dumps([*weights])}
        )
        super().install(server, version)
        path.write_bytes(whole)


def test_a_weight_that_changes_on_the_way_is_named(server: httpx.Client, tmp_path: Path) -> None:
    fresh = tiny.policy(temperature=TEMPERATURE)
    prompt = make_prompt(tiny.family())

    def proof() -> SyncProof:
        return SyncProof(policy=fresh, prompt=prompt, dtype=torch.float32, max_gap=1e-3, every=1)

    made = engine(server, fresh, tmp_path, kind=Damaging, proof=proof())
    with pytest.raises(RuntimeError, match=f"it has other values of 1 weights: {Damaging.damaged}"):
        made.sync()
    made.close()
    wait_until_free(server)
    whole = engine(server, fresh, tmp_path, "another", proof=proof())
    whole.sync()
    whole.close()
    wait_until_free(server)


class Broken(FolderTransfer):
    """A transfer of which, the first time, the half can't be read."""

    is_whole = False

    def install(self, server: ServerClient, version: str) -> None:
        path, self.is_whole, was_whole = self.files[0], True, self.is_whole
        stored, weights = path.read_bytes(), load_file(path)
        order = [name for bucket in self.buckets(self.policy.model, dtype=self.dtype) for name, _ in bucket]
        half = next(at for at, name in enumerate(order) if name.endswith("1.self_attn.k_proj.weight"))
        if not was_whole:
            save_file(weights, path, {ORDER: json.dumps([*order[:half], "no weight"])})
        try:
            super().install(server, version)
        finally:
            path.write_bytes(stored)


def test_an_update_that_was_cut_short_leaves_nothing_behind(server: httpx.Client, tmp_path: Path) -> None:
    """One that a killed run began, and one whose files could not be read to their end."""
    killed = client(server, "killed")
    killed.hold()
    killed.start_weight_update()
    killed.close()
    wait_until_free(server)
    other = tiny.policy(seed=7, temperature=TEMPERATURE)
    made = engine(server, other, tmp_path, "next", kind=Broken)
    made.sync()
    assert gap(other, made.generate(prompts(), SAMPLING, SEEDS)) < 1e-3
    made.close()
    wait_until_free(server)


def test_a_server_is_held_by_one_run_at_a_time(server: httpx.Client, policy: Policy, tmp_path: Path) -> None:
    assert server.post("/pause").json() == {"error": "no run holds this server"}
    one = client(server, "runs/\u00fcne#what only it knows")
    one.hold()
    with pytest.raises(ServerError, match="409 the run runs/\u00fcne uses this server"):
        engine(server, policy, tmp_path, "runs/two")
    for path in ("/v1/models", "/pause", "/collective_rpc"):
        assert server.post(path).status_code == 409
    about = server.get("/egogrpo/about").text
    assert one.about()["holds"] and '"holds":false' in about and "only it knows" not in about
    one.close()
    wait_until_free(server)
    two = engine(server, policy, tmp_path, "runs/two")
    two.close()
    wait_until_free(server)


def test_a_server_without_a_key_is_steered_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    from grpo.rollout.vllm_server import Guard

    monkeypatch.delenv("VLLM_API_KEY")
    headers = Headers({RUN_HEADER: "anyone"})
    refused = {path: _refusal(Guard, path, headers) for path in (HOLD, "/pause", "/collective_rpc")}
    assert {*refused.values()} == {401}
    assert _refusal(Guard, "/v1/chat/completions", headers) == 200


def _refusal(guard: Any, path: str, headers: Headers) -> int:
    return guard(None)._refusal(path, headers)[0]


def wait_until_free(server: httpx.Client) -> None:
    """A server notices soon after that a connection has ended."""
    give_up_at = time.monotonic() + 30.0
    while server.get("/egogrpo/about").json()["held"] and time.monotonic() < give_up_at:
        time.sleep(0.05)


def test_a_server_that_does_not_fit_is_refused_by_name_and_shape(server: httpx.Client) -> None:
    def refusal(**wanted: Any) -> str:
        fits = {"dtype": torch.float32, "max_model_tokens": 2048}
        with pytest.raises(ServerError) as caught:
            check_server(client(server, "x"), **(fits | wanted))
        return str(caught.value)

    assert "has dtype float32, the run bfloat16" in refusal(dtype=torch.bfloat16)
    assert "has max_model_tokens 2048, the run 4096" in refusal(max_model_tokens=4096)
    # The batch of one engine step, which is the room for a clip.
    assert "has max_clip_tokens 16384, the run 16385" in refusal(max_clip_tokens=16385)
    with tiny.of_family("qwen3_vl"):
        assert "it is a 'qwen2_5_vl' model, the policy a 'qwen3_vl'" in refusal()


def test_a_prompt_without_room_and_a_clip_that_is_lost_on_the_way_stop_the_run(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client(server, "run")
    long = tiny.prompt(tiny.sample("long", question="red " * 2500), None)
    with pytest.raises(ServerError, match="400 .*maximum model length") as caught:
        asked.generate(long, SAMPLING, 0)
    assert not isinstance(caught.value, ServerGone)
    post = asked.post

    def without_clip(path: str, body: Any = None) -> httpx.Response:
        return post(path, {name: value for name, value in body.items() if name != "content_parts"})

    monkeypatch.setattr(asked, "post", without_clip)
    of = prompts()[0]
    with pytest.raises(ValueError, match=f"expanded the prompt to .*, the learner to {len(of.token_ids)}"):
        asked.generate(of, SAMPLING, 0)
    asked.close()


def test_the_demo_trains_through_a_server_to_the_numbers_of_vllm_in_its_process(
    server: httpx.Client, clips: Path, tmp_path: Path
) -> None:
    short = ("num_steps=2", "eval.max_samples=2", "checkpoint.every_steps=0", "rollout.engine=vllm")
    here = runs.run(tmp_path / "here", clips, *short)
    url = str(server.base_url).rstrip("/")
    servers = (f"rollout.servers=[{url}]", "rollout.server_timeout_s=60", "rollout.server_tries=2")
    there = runs.run(
        tmp_path / "there",
        clips,
        *short,
        "rollout.engine=vllm_server",
        *servers,
        f"rollout.transfer_dir={tmp_path / 'shared'}",
    )
    assert runs.close(runs.repeatable(here), runs.repeatable(there))
    assert here[-1]["sampler/gap_max"] < 1e-3 and here[-1]["tokens/completion"] > 0
    assert [*(tmp_path / "shared").iterdir()] == []
    assert files_with([KEY], tmp_path) == []
    wait_until_free(server)


def test_a_server_samples_during_the_update_and_goes_on_with_completions_of_the_step_before(
    server: httpx.Client, clips: Path, tmp_path: Path
) -> None:
    """Without learning all weights are the same, and so are the log-probs of all parts of a completion."""
    rows = runs.run(
        tmp_path / "run",
        clips,
        *("num_steps=3", "optim.lr=1e-30", "eval.every_steps=0", "checkpoint.every_steps=0"),
        *(
            "rollout.engine=vllm_server",
            f"rollout.servers=[{server.base_url}]",
            "rollout.server_timeout_s=60",
        ),
        *("rollout.overlap=true", "rollout.partial_tokens=8"),
    )
    steps = [row for row in rows if "sampler/gap_max" in row]
    assert steps and all(row["sampler/gap_max"] < 1e-3 for row in steps)
    assert steps[-1]["sampler/age_steps"] > 1 and sum(row.get("groups/unfinished", 0) for row in rows) > 0
    wait_until_free(server)


def test_an_evaluation_asks_a_server(server: httpx.Client, clips: Path, tmp_path: Path) -> None:
    """The server gets the model's weights, and answers as the engine here does."""
    config = str(tiny.ROOT / "configs" / "eval" / "demo.yaml")
    own = [
        "benchmark=jsonl",
        f"data.path={clips}/heldout.jsonl",
        f"model.path={tiny.BASE_POLICY}",
        "blind=false",
    ]
    engines = [["rollout.engine=vllm_server", f"rollout.servers=[{server.base_url}]"], []]
    for number, engine in enumerate(engines):
        settings = [*own, "rollout.max_model_tokens=2048", f"out_dir={tmp_path}/{number}", *engine]
        assert egogrpo(["evaluate", config, *settings]) == 0
        runs.reset_process_state()
    served, here = (
        {answer["sample_id"]: answer["text"] for answer in map(json.loads, part.read_text().splitlines())}
        for part in sorted(tmp_path.glob("*/answers/*/part-0.jsonl"))
    )
    assert served == here and len(served) == 4
