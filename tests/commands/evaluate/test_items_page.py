"""The page of items in a browser: whatever models and records hold, it is shown and never acts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from grpo.benchmarks.benchmark import Benchmark, StoredAnswer
from grpo.benchmarks.results import Results
from grpo.benchmarks.scoring import score_answers
from grpo.commands.evaluate.page import Strips, write_items
from grpo.media.clip import ClipSource
from grpo.media.sampling import MediaSettings
from rewards.hostile import COMPLETIONS
from tests.support import tiny
from tests.support.browser import chromium, new_page
from tests.support.clips import clip_of

ATTACKS = [
    *(text.encode("utf-8", "replace").decode()[:2000] for text in COMPLETIONS.values()),
    "<script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "</script><script>alert(1)</script>",
    "\u202eturned \u2066and kept\u0000",
]
BENCHMARK = Benchmark(name="made <b>up</b>", reader="jsonl", groups=("domain",))


def write(folder: Path, max_items: int = 1000) -> Path:
    """A page of two models: on the first question they differ, the second none can be read, the rest are attacks."""
    source = ClipSource(video="kitchen.mp4")
    clip = clip_of(np.full((4, 56, 56, 3), 200, np.uint8), fps=2.0, path="kitchen.mp4")
    strips = Strips(folder=folder, media=MediaSettings())
    strips.keep(source, clip)
    samples = [
        tiny.sample(
            f"q{index}",
            question=f"Question {index} <i>{attack}</i>",
            columns={"domain": "cooking" if index == 0 else attack[:30]},
            clip_source=source,
            keyframes_s=((0.5, 1.0),),
        )
        for index, attack in enumerate(["", "", *ATTACKS])
    ]
    texts = {
        "first": ["<think>I look.</think><keyframes>0.5</keyframes><answer>A</answer>", "no idea", *ATTACKS],
        "second": ["<answer>B</answer>", "no idea", *ATTACKS],
    }
    scored = {
        name: score_answers(
            BENCHMARK,
            [(sample, "") for sample in samples],
            {
                (sample.id, "", 0): StoredAnswer(sample_id=sample.id, index=0, text=text, finish="stop")
                for sample, text in zip(samples, said, strict=True)
            },
        )
        for name, said in texts.items()
    }
    results = Results(
        benchmark=BENCHMARK,
        prompt={"kind": "think", "digest": ""},
        num_missing=0,
        paths={name: name for name in texts},
        folders={name: name for name in texts},
        scored=scored,
        timings={name: {} for name in texts},
        manifest={},
    )
    return write_items(results, strips, max_items)


def test_the_data_are_a_string_that_no_tag_can_leave(tmp_path: Path):
    folder = write(tmp_path, max_items=3).parent
    script = (folder / "data" / "items.js").read_text()
    assert script.isascii() and "<" not in script and script.startswith('reportData["items"] = "')
    data = json.loads(json.loads(script.removeprefix('reportData["items"] = ').rstrip(";\n")))
    assert len(data["items"]) == 3 and data["total"] == 2 + len(ATTACKS)
    first = data["items"][0]
    assert [each["outcome"] for each in first["answers"]] == ["right", "wrong"]
    assert first["clip"]["times"] == [0, 0.5, 1.0, 1.5] and first["answers"][0]["cited"] == [[0.5, 0.5]]
    assert (folder / "clips" / f"{first['clip']['name']}.jpg").exists()


def test_other_frames_of_a_video_are_other_strips(tmp_path: Path):
    few = Strips(folder=tmp_path, media=MediaSettings(max_frames=4))
    source = ClipSource(video="kitchen.mp4")
    few.keep(source, tiny.clip(4))
    assert few.of(source) and few.of(None) is None
    assert Strips(folder=tmp_path, media=MediaSettings(max_frames=8)).of(source) is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with new_page(browser) as opened:
        opened.goto(write(tmp_path).as_uri())
        yield opened


@pytest.mark.slow
def test_questions_are_chosen_by_what_became_of_them(page: Page):
    expect(page.locator("#count")).to_have_text(f"{2 + len(ATTACKS)} questions")
    page.locator("select[name=show]").select_option("models differ")
    expect(page.locator("article")).to_have_count(1)
    expect(page.locator("article .answer.right pre")).to_contain_text("I look.")
    expect(page.locator("article li.right")).to_have_text("red")
    expect(page.locator("article .frame")).to_have_count(4)
    expect(page.locator("article .frame.cited.annotated")).to_have_count(1)
    page.locator("select[name=show]").select_option("unread")
    expect(page.locator("article[data-id=q1]")).to_have_count(1)
    expect(page.locator("article[data-id=q0]")).to_have_count(0)
    page.locator("select[name=show]").select_option("all")
    page.locator("select[name='in.domain']").select_option("cooking")
    expect(page.locator("article")).to_have_count(1)
    # The address has the choice.
    page.reload()
    expect(page.locator("article")).to_have_count(1)


@pytest.mark.slow
def test_what_models_write_is_shown_and_never_acts(page: Page):
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    expect(page.locator("article")).to_have_count(2 + len(ATTACKS))
    assert page.title() == "Answers"
    assert page.locator("article script, article img, article svg, article i").count() == 0
    expect(page.locator("#title")).to_have_text("made <b>up</b>: first, second")
    shown = page.locator("article pre").all_text_contents()
    assert "<script>document.title = 'hacked'</script>" in shown
    assert any(text.startswith("\\u202eturned") for text in shown)
