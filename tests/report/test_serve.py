"""The server of a report: files and byte ranges to those who have the key, and nothing to anybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread

import pytest

from grpo.media.clip import ClipSource
from grpo.media.decode import read_clip
from grpo.report.build import Report
from grpo.report.serve import ReportServer, look
from grpo.report.thumbnails import SeenClip
from grpo.run.rollout_files import rollout_rows, write_rollouts
from tests.support.stored_runs import scored, write_run
from tests.support.videos import write_video


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReportServer]:
    report = Report(tmp_path / "out", [write_run(tmp_path / "run", {1: [scored(["a", "b"], [0.0, 1.0])]})])
    report.update()
    with ReportServer(report, 0) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def ask(
    server: ReportServer, path: str, *, key: str | None = None, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=30)) as connection:
        connection.request(method, f"/{server.key if key is None else key}/{path}", headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()


def test_the_page_its_scripts_and_its_data_are_served(server: ReportServer):
    kinds = {
        "index.html": "text/html",
        "main.js": "text/javascript",
        "data/0/rollouts_000001.js": "text/javascript",
    }
    for path, kind in kinds.items():
        answer, content = ask(server, path)
        assert answer.status == 200 and content == (server.report.folder / path).read_bytes()
        assert answer.headers["Content-Type"].startswith(kind)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_index_is_read_on_from_a_byte(server: ReportServer):
    answer, before = ask(server, "index.jsonl", Range="bytes=0-")
    assert answer.status == 206 and before.count(b"\n") == 2
    assert ask(server, "index.jsonl", Range=f"bytes={len(before)}-")[0].status == 204
    beyond, _ = ask(server, "index.jsonl", Range=f"bytes={len(before) + 1}-")
    assert beyond.status == 416 and beyond.headers["Content-Range"] == f"bytes */{len(before)}"
    write_rollouts(server.report.followers[0].run.rollouts, 2, rollout_rows(scored(["c"], [1.0])))
    server.report.update()
    answer, more = ask(server, "index.jsonl", Range=f"bytes={len(before)}-")
    assert answer.status == 206 and json.loads(more)["step"] == 2
    assert before + more == server.report.index.file.read_bytes()


def test_a_line_that_is_half_written_is_not_sent(server: ReportServer):
    whole = server.report.index.file.read_bytes()
    with server.report.index.file.open("ab") as file:
        file.write(b'{"metrics": 0')
    assert ask(server, "index.jsonl", Range="bytes=0-")[1] == whole


@pytest.mark.parametrize(
    "path",
    ["../run/config.yaml", "%2e%2e/run/config.yaml", "data/../../run/config.yaml", "/etc/hostname", ".x", ""],
)
def test_nothing_outside_the_report_is_served(server: ReportServer, path: str):
    assert ask(server, path)[0].status == 404


def test_who_lacks_the_key_or_asks_under_another_name_gets_nothing(server: ReportServer):
    assert ask(server, "index.html", key="")[0].status == 404
    assert ask(server, "index.html", key="x" * len(server.key))[0].status == 404
    assert ask(server, "index.html", Host="evil.example")[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(server: ReportServer, method: str):
    assert ask(server, "index.html", method=method)[0].status == 501


def test_it_listens_on_this_machine_alone(server: ReportServer):
    assert server.server_address[0] == "127.0.0.1"


def test_a_film_strip_is_made_when_it_is_asked_for(server: ReportServer, tmp_path: Path):
    video = write_video(tmp_path / "clip.mp4", num_frames=60)
    follower = server.report.followers[0]
    source = ClipSource(video=video)
    seen = SeenClip(source, read_clip(source, settings=follower.config.media).facts)
    gone = SeenClip(ClipSource(video=str(tmp_path / "gone.mp4")), seen.facts)
    follower.clips |= {each.name: each for each in (seen, gone)}
    answer, content = ask(server, f"clips/{seen.name}.jpg")
    assert answer.headers["Content-Type"] == "image/jpeg" and content.startswith(b"\xff\xd8")
    assert ask(server, f"clips/{gone.name}.jpg")[0].status == 404
    last = json.loads(server.report.index.file.read_text().splitlines()[-1])
    assert last["clip"] == gone.name and "gone.mp4" in last["reason"]


def test_a_file_that_cannot_be_read_is_said_once_and_read_when_it_can_be(
    server: ReportServer, capsys: pytest.CaptureFixture[str]
):
    follower = server.report.followers[0]
    broken = follower.run.rollouts / "step_000002.parquet"
    broken.write_bytes(b"not whole")
    said = look(server.report, look(server.report, ""))
    assert "step_000002.parquet" in said and capsys.readouterr().err.count("not shown yet") == 1
    write_rollouts(follower.run.rollouts, 2, rollout_rows(scored(["c"], [1.0])))
    assert look(server.report, said) == ""
    assert json.loads(server.report.index.file.read_text().splitlines()[-1])["step"] == 2
