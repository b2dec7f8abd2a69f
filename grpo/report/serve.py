"""A report shown while its runs go on: a server on this machine alone that reads and never writes what it is told.

Its address holds a key, without which it answers nothing, so that others on the machine can't look on. A page of
another origin can't read it either: the host has to be this one. The index is asked for by byte ranges: a page gets
what has been added since it last asked.
"""

from __future__ import annotations

import re
import secrets
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep

from grpo.report.build import Report
from grpo.report.index import INDEX

LOOPBACK = "127.0.0.1"
LOOK_EVERY_S = 2.0
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".jsonl": "application/jsonl",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
"""The kinds of files that are served; no others are."""
NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""A path in the report's folder: no part begins with a dot."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReportServer(ThreadingHTTPServer):
    """A server of one report."""

    daemon_threads = True

    def __init__(self, report: Report, port: int) -> None:
        self.report, self.key = report, secrets.token_urlsafe(16)
        super().__init__((LOOPBACK, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/{self.key}/index.html"


class Handler(BaseHTTPRequestHandler):
    """The answer to a request: a file of the report, or a part of its index."""

    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the file that is asked for."""
        file = self._file()
        if file is None:
            return self._send(HTTPStatus.NOT_FOUND, b"", ".html")
        content = file.read_bytes()
        if file.name != INDEX:
            return self._send(HTTPStatus.OK, content, file.suffix)
        asked = re.fullmatch(r"bytes=([0-9]{1,15})-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        # The last line is whole: a line is appended in one write, and one that is not is sent the next time.
        content = content[: content.rfind(b"\n") + 1]
        if start and start == len(content):
            return self._send(HTTPStatus.NO_CONTENT, b"", ".jsonl")
        if start > len(content):
            size = {"Content-Range": f"bytes */{len(content)}"}
            return self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", ".jsonl", size)
        end = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(HTTPStatus.PARTIAL_CONTENT, content[start:], ".jsonl", end)

    do_HEAD = do_GET

    def _file(self) -> Path | None:
        """Return the file that is asked for, with the right key and under this server's own name; else None."""
        path = self.path.partition("?")[0].removeprefix("/")
        key, _, name = path.partition("/")
        hosts = {f"{host}:{self.server.server_port}" for host in (LOOPBACK, "localhost")}
        is_allowed = secrets.compare_digest(key.encode(), self.server.key.encode())
        if not is_allowed or self.headers.get("Host") not in hosts or not NAME.fullmatch(name):
            return None
        file = self.server.report.folder / name
        if file.suffix == ".jpg":
            return self.server.report.write_clip(file.stem)
        return file if file.suffix in TYPES and file.is_file() else None

    def _send(
        self, status: HTTPStatus, content: bytes, suffix: str, also: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(also or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page asks every few seconds."""


def serve(server: ReportServer) -> None:
    """Answer requests and add what is new in the runs, until the process is stopped."""
    Thread(target=server.serve_forever, daemon=True).start()
    said = ""
    try:
        while True:
            said = look(server.report, said)
            sleep(LOOK_EVERY_S)
    finally:
        server.shutdown()
        server.server_close()


def look(report: Report, said: str) -> str:
    """Add what is new; return what was in the way, which is said unless it was said before.

    A run that resumes removes files while they are read: the next look finds what is there then.
    """
    try:
        report.update()
        missing = "; ".join(report.unread())
    except (OSError, ValueError) as error:
        missing = str(error)
    if missing not in ("", said):
        print(f"not shown yet: {missing}", file=sys.stderr, flush=True)
    return missing
