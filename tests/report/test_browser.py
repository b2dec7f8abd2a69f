"""The report in a browser, clicked through as a person would; whatever completions hold, it is shown and never acts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from grpo.report.build import Report, build
from grpo.report.serve import ReportServer
from grpo.run.rollout_files import rollout_rows, write_rollouts
from rewards.hostile import COMPLETIONS
from tests.support import tiny
from tests.support.browser import chromium, new_page
from tests.support.hacked_run import (
    EVAL_EVERY,
    FROM_STEP,
    GROUP_SIZE,
    GROUPS_PER_STEP,
    HACKED,
    write_hacked_run,
)
from tests.support.stored_runs import scored, write_run

pytestmark = pytest.mark.slow

LAST_STEP = 30
PER_STEP = GROUPS_PER_STEP * GROUP_SIZE
ATTACKS = [
    *(text.encode("utf-8", "replace").decode()[:2000] for text in COMPLETIONS.values()),
    "<script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "</script><script>alert(1)</script>",
    "'\"`;alert(1)//\\",
    "<svg onload=alert(1)><a href=javascript:alert(1)>",
    "\u202eturned \u2066and kept\u0000\u001b[31m",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs about the same questions."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_hacked_run(folder / name, num_steps=steps, seed=0)
        for name, steps in (("long", LAST_STEP), ("short", 8))
    ]


@pytest.fixture(scope="module")
def url(runs: list[Path]) -> str:
    page, failed = build(runs[0] / "report", runs)
    assert failed == {}
    return page.as_uri()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with new_page(browser) as opened:
        yield opened


def open_at(page: Page, url: str, address: str = "") -> None:
    page.goto(f"{url}#{address}")
    page.wait_for_selector("html[data-ready=yes]")


def address(page: Page) -> dict[str, str]:
    """What the page's address says."""
    script = "() => Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"
    return page.evaluate(script)


def rows(page: Page) -> list[list[str]]:
    """The texts of the cells of the list's rows that are elements now."""
    return page.eval_on_selector_all(
        "#shown .row",
        "rows => rows.map(row => [...row.querySelectorAll('.cell')].map(cell => cell.textContent))",
    )


def num_listed(page: Page) -> int:
    return int(page.get_attribute("#list", "data-rows") or 0)


def test_it_opens_from_the_disk_and_asks_the_network_for_nothing(page: Page, url: str):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_at(page, url)
    expect(page.locator("[data-panel=total] canvas")).to_be_visible()
    assert asked and all(each.startswith("file://") for each in asked)
    panels = page.eval_on_selector_all("[data-panel]", "all => all.map(each => each.dataset.panel)")
    assert {"total", "accuracy", "evidence", "wrong answers raised", "evidence adds", "policy/entropy"} <= {
        *panels
    }


def test_a_click_on_a_curve_shows_the_completions_of_its_step(page: Page, url: str):
    open_at(page, url)
    plot = page.locator("[data-panel=evidence] .u-over")
    box = plot.bounding_box()
    assert box is not None
    # Steps 0 to 30 lie from the left to the right edge. Only the long run has a value at step 21, and none held out.
    plot.click(position={"x": box["width"] * 21 / LAST_STEP, "y": 40})
    found = address(page)
    assert (found["tab"], found["steps"], found["sort"], found["off"]) == (
        "rollouts",
        "21",
        "-raw/evidence",
        "1",
    )
    assert num_listed(page) == PER_STEP
    assert {row[0] for row in rows(page)} == {"21"}
    page.go_back()
    expect(page.locator("#curves")).to_be_visible()
    assert address(page) == {}


def test_a_click_on_a_bar_shows_its_completions_and_a_second_one_all(page: Page, url: str, runs: list[Path]):
    open_at(page, url, "tab=rollouts")
    everything = num_listed(page)
    page.click("[data-column='raw/evidence'] .bar >> nth=-1")
    stored = [
        value
        for run in runs
        for file in (run / "rollouts").glob("*.parquet")
        for value in pq.read_table(file)["rewards/evidence"].to_pylist()
    ]
    assert everything == len(stored) and num_listed(page) == sum(value == 1 for value in stored) > 0
    assert address(page)["in.raw/evidence"].endswith("..Infinity")
    page.click("[data-column='raw/evidence'] .bar >> nth=-1")
    assert num_listed(page) == everything


def test_ready_made_questions_choose_completions(page: Page, url: str):
    open_at(page, url, "tab=rollouts")
    page.click("[data-show=wrong]")
    texts = rows(page)
    assert texts and all(row[2].startswith("✗") and row[5].startswith("+") for row in texts)
    highest_first = [float(row[5]) for row in texts]
    assert highest_first == sorted(highest_first, reverse=True)
    page.click("[data-show=cut]")
    assert all("✂" in row[3] for row in rows(page)) and num_listed(page) > 0
    page.click("[data-show=cut]")
    assert num_listed(page) == (LAST_STEP + 8) * PER_STEP


def test_only_the_rows_in_view_are_elements_and_the_last_one_can_be_reached(page: Page, url: str):
    open_at(page, url, "tab=rollouts&sort=step")
    assert num_listed(page) == (LAST_STEP + 8) * PER_STEP and len(rows(page)) < 60
    page.locator("#list").hover()
    page.mouse.wheel(0, 10**6)
    expect(page.locator("#shown .row").last).to_contain_text(str(LAST_STEP))
    last = page.locator("#shown .row").last.bounding_box()
    assert last is not None and last["y"] + last["height"] <= 901


def test_a_hundred_thousand_completions_are_in_the_list_and_few_of_them_elements(page: Page, tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a", "b"], [0.0, 1.0])]})
    report = Report(tmp_path / "out", [folder])
    report.update()
    *_, entry = map(json.loads, report.index.file.read_text().splitlines())
    groups = {name: values * 200 for name, values in entry["groups"].items()}
    columns = {name: values * 200 for name, values in entry["columns"].items()}
    for step in range(2, 252):
        report.index.append({**entry, "step": step, "groups": groups, "columns": columns})
    report.index.write_copy()
    open_at(page, report.page.as_uri(), "tab=rollouts")
    assert num_listed(page) == 2 + 250 * 400 and len(rows(page)) < 60
    page.locator("#list").hover()
    page.mouse.wheel(0, 10**9)
    expect(page.locator("#shown .row").last).to_have_attribute("data-row", "100001")
    page.fill("[name=steps]", "251-")
    expect(page.locator("#list")).to_have_attribute("data-rows", "400")


def test_a_group_shows_the_clip_and_what_each_reward_made_of_each_completion(
    page: Page, url: str, runs: list[Path]
):
    open_at(page, url, "tab=rollouts&steps=20&off=1")
    page.click("#shown .row >> nth=9")
    step, group, rollout = 20, 9 // GROUP_SIZE, 9 % GROUP_SIZE
    stored = pq.read_table(runs[0] / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
    here = [row for row in stored if row["group"] == group]
    cards = page.locator("#viewer .completion")
    expect(cards).to_have_count(GROUP_SIZE)
    expect(cards.nth(rollout)).to_have_class(re.compile(r"\bhere\b"))
    for row, card in zip(here, cards.all(), strict=True):
        assert card.locator(".text").text_content() == row["completion"]
        assert float(card.locator(".score b").first.inner_text()) == pytest.approx(row["total"], rel=0.01)
        for name in ("accuracy", "format", "keyframe", "evidence"):
            _, raw, adds, _ = card.locator(f"[data-reward={name}] td").all_inner_texts()
            assert float(raw) == pytest.approx(row[f"rewards/{name}"], abs=0.01)
            assert float(adds) == pytest.approx(row[f"parts/{name}"], abs=0.01)
    frames = page.locator("#viewer .frame .time").all_inner_texts()
    assert [float(each) for each in frames] == here[0]["clip"]["times_s"]
    assert page.locator("#viewer .frame.annotated").count() == 2
    assert page.locator("#viewer .problem:visible").count() == 0
    assert page.locator("#viewer .lane").count() == sum("<keyframes>" in row["completion"] for row in here)


def test_a_frame_is_enlarged(page: Page, url: str):
    open_at(page, url, "tab=rollouts&group=0.rollouts.20.0")
    page.click("#viewer .frame >> nth=3")
    expect(page.locator("dialog")).to_contain_text("frame 4 of 16, 1.5 s")
    page.keyboard.press("ArrowRight")
    expect(page.locator("dialog")).to_contain_text("frame 5 of 16, 2 s")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_the_same_question_is_found_over_the_steps_and_in_both_runs(page: Page, url: str):
    open_at(page, url, "tab=rollouts&group=0.rollouts.20.0")
    name = page.locator("#viewer .id").inner_text()
    page.click("#viewer .id")
    texts = rows(page)
    assert {row[1] for row in texts} == {name} and len({row[0] for row in texts}) > 1
    page.click("[data-keep]")
    options = page.locator("#viewer article >> nth=0").locator("select[name=same] option")
    others = [each for each in options.all_inner_texts() if each.startswith("short")]
    assert others
    page.locator("#viewer article >> nth=0").locator("select[name=same]").select_option(label=others[0])
    heads = page.locator("#viewer article > header")
    expect(heads).to_have_count(2)
    expect(heads.nth(0)).to_contain_text("short")
    expect(heads.nth(1)).to_contain_text("long")


def test_an_address_shows_what_its_sender_saw(page: Page, url: str, browser: Browser):
    open_at(page, url, "tab=rollouts")
    page.click("[data-show=wrong]")
    page.click("#shown .row >> nth=4")
    expect(page.locator("#viewer .completion.here")).to_be_visible()
    with new_page(browser) as other:
        other.goto(page.url)
        other.wait_for_selector("#viewer .completion.here")
        assert rows(other) == rows(page)
        assert (
            other.locator("#viewer .completion.here").inner_text()
            == page.locator("#viewer .completion.here").inner_text()
        )


def test_the_arrow_keys_go_on_to_the_next_completion(page: Page, url: str):
    open_at(page, url, "tab=rollouts&steps=3")
    page.click("#shown .row >> nth=0")
    first = address(page)
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    assert address(page) == first | {"completion": "1"}


def test_tokens_are_shaded_by_what_is_chosen(page: Page, url: str):
    open_at(page, url, "tab=rollouts&group=0.rollouts.20.0")
    shade = "all => all.map(each => each.style.background)"
    tokens = "#viewer .completion:first-child .tok"
    page.wait_for_selector(tokens)
    by_logp = page.eval_on_selector_all(tokens, shade)
    assert len({*by_logp}) > 2
    page.select_option("[name=shade]", "advantage")
    page.wait_for_selector(".shade-advantage")
    assert len({*page.eval_on_selector_all(tokens, shade)}) == 1


def test_a_run_can_be_left_out_and_the_theme_turned(page: Page, url: str):
    open_at(page, url, "tab=rollouts")
    page.click("#runs [data-run='1']")
    assert num_listed(page) == LAST_STEP * PER_STEP
    background = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != before


def test_held_out_answers_have_a_list_of_their_own(page: Page, url: str):
    open_at(page, url, "tab=rollouts")
    page.click("[data-kind=answers]")
    # Each of the 6 held-out questions is answered at steps 0, 5, 10, 15, 20, 25 and 30, and at 0 and 5.
    assert num_listed(page) == 6 * (7 + 2)
    page.click("#shown .row >> nth=0")
    expect(page.locator("#viewer header").first).to_contain_text("heldout, greedy")


def test_hostile_texts_are_shown_and_nothing_in_them_acts(page: Page, tmp_path: Path):
    groups = [
        scored(
            ["nothing", text],
            [0.0, 1.0],
            tiny.sample(text[:80], question=text, options=(text, "<q>"), answer="<b>"),
        )
        for text in ATTACKS
    ]
    folder = write_run(tmp_path / "<u>run", {1: groups})
    # Without a tokenizer, a completion is its text: in these made-up ones a token is any character.
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny.BASE_POLICY), "no/model"))
    with (folder / "failures.jsonl").open("w") as file:
        for text in ATTACKS:
            named = dict.fromkeys(("reward", "sample_id", "reason", "completion", "traceback"), text)
            failure = {"step": 1, "kind": "reward", "rollout": 0, **named}
            file.write(json.dumps(failure) + "\n")
    with (folder / "metrics.jsonl").open("w") as file:
        file.write(
            json.dumps({"step": 1, "rewards/<img src=x onerror=alert(1)>/mean": 1.0, "__proto__": 2.0}) + "\n"
        )
    opened, _ = build(tmp_path / "out", [folder])
    open_at(page, opened.as_uri(), "tab=rollouts")
    own = page.evaluate("() => [document.scripts.length, document.querySelectorAll('link').length]")
    for number, text in enumerate(ATTACKS):
        page.evaluate(f"() => go({{group: '0.rollouts.1.{number}', completion: '1', shade: 'none'}})")
        page.wait_for_selector(f"article[data-key='0.rollouts.1.{number}']")
        shown = page.locator("#viewer .completion >> nth=1").locator(".text").text_content() or ""
        assert shown == spelt(text)
    for tab in ("curves", "failures", "settings"):
        page.click(f"[data-tab={tab}]")
    assert page.evaluate("() => document.title") == "<u>run"
    assert page.locator("body img, body svg, body iframe, body a, main script").count() == 0
    assert page.evaluate("() => [document.scripts.length, document.querySelectorAll('link').length]") == own


def spelt(text: str) -> str:
    """A text as the page shows it: what can't be seen, or turns the line around, as its code."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
    return re.sub(unsafe, lambda found: f"\\u{ord(found[0]):04x}", text)


def test_a_warning_says_which_reward_and_leads_to_the_completions_that_it_pays(page: Page, url: str):
    open_at(page, url)
    warning = page.locator("[data-warning='accuracy falls']")
    expect(warning).to_contain_text("long: eval/heldout/accuracy has fallen")
    expect(warning).to_contain_text(f"the reward {HACKED} rises from about step")
    page.click("[data-warning='accuracy falls'] button")
    found = address(page)
    assert found["show"] == "wrong" and found["sort"] == f"-raw/{HACKED}" and found["off"] == "1"
    assert int(found["steps"].removesuffix("-")) in range(FROM_STEP - EVAL_EVERY, FROM_STEP + 1)
    page.click("#shown .row >> nth=0")
    expect(page.locator("#viewer .completion.here .text")).to_contain_text("clearly visible")


def test_a_served_page_grows_with_its_run_without_being_loaded_again(page: Page, tmp_path: Path):
    folder = write_run(tmp_path / "run", {1: [scored(["a", "b"], [0.0, 1.0])]})
    report = Report(tmp_path / "out", [folder])
    report.update()
    with ReportServer(report, 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        open_at(page, server.url, "tab=rollouts&group=0.rollouts.1.0")
        expect(page.locator("#viewer .completion")).to_have_count(2)
        assert num_listed(page) == 2
        page.evaluate("() => { window.isTheSame = true; }")
        write_rollouts(folder / "rollouts", 2, rollout_rows(scored(["c", "d", "e"], [0.0, 1.0, 1.0])))
        report.update()
        expect(page.locator("#list")).to_have_attribute("data-rows", "5")
        assert page.evaluate("() => window.isTheSame") is True
        expect(page.locator("#live")).to_have_text("live")
        server.shutdown()
