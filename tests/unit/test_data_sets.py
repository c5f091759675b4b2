"""data_sets: a data set of the hub that cannot be had is told before anything is queued, by a real HTTP server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fullft_cluster.config import Config, DataConfig, Source
from fullft_cluster.data_sets import look_for_data_sets


class Hub(http.server.BaseHTTPRequestHandler):
    """Has org/there (with a README) and org/bare (without); org/gated is closed."""

    seen: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        Hub.seen.append(self.path)
        name = self.path.split("/")[3]
        code, reason = {
            "there": (200, ""), "bare": (404, "EntryNotFound"), "gated": (403, "GatedRepo"),
        }.get(name, (401, "RepoNotFound"))  # fmt: skip
        self.send_response(code)
        if reason:
            self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.seen = []
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path)}
    server.shutdown()
    server.server_close()


def look(environ: dict[str, str], *paths: str, must_exist: bool = True, **config: Any) -> tuple[str, str]:
    data = DataConfig(sources=tuple(Source(path=path) for path in paths))
    notes, problems = look_for_data_sets(Config(data=data, **config), environ, must_exist=must_exist)
    return "\n".join(notes), "\n".join(map(str, problems))


def test_what_is_on_the_hub_is_downloaded_by_the_preparation(environ: dict[str, str]) -> None:
    notes, problems = look(environ, "org/there", "org/bare", "org/there")
    assert problems == ""
    assert "data set org/there: not in the cache" in notes
    assert "the preparation downloads it, so its node needs internet" in notes
    assert Hub.seen == [f"/datasets/org/{name}/resolve/main/README.md" for name in ("there", "bare")]


def test_what_cannot_be_had_is_an_error_of_a_submit_alone(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, problems = look(environ, "org/absent", "org/gated")
    assert "data.sources[0].path: data set org/absent on the hub does not exist, or is private" in problems
    assert "data.sources[1].path: data set org/gated on the hub is not open to you" in problems
    assert "If it is meant as a path: there is no directory org here. Run `hf download" in problems
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert "If it is meant as a path: directory data has no train. Run" in look(environ, "data/train")[1]
    Hub.seen = []
    notes, problems = look(environ, "org/absent", must_exist=False)
    assert (problems, Hub.seen) == ("", [])
    assert "a submit asks the hub" in notes
    offline = {**environ, "HF_HUB_OFFLINE": "1"}
    notes, problems = look(offline, "org/absent", must_exist=False)
    assert "a submit from here would be refused: data.sources[0].path: data set org/absent is not in the" in notes
    assert "and HF_HUB_OFFLINE is set" in look(offline, "org/absent")[1]
    notes, problems = look(offline, "org/absent", backend="kubernetes")
    assert problems == ""
    assert "not seen from here, so the pods have to" in notes
    assert "cannot be reached from here" in look({**environ, "HF_ENDPOINT": "http://127.0.0.1:9"}, "org/there")[1]


@pytest.mark.parametrize(
    "place",
    ["datasets/org___the_name/default/0.0.0/abc", "hub/datasets--org--TheName/snapshots/abc"],
    ids=["load_dataset", "hf download"],
)
def test_what_is_cached_is_not_asked_for(environ: dict[str, str], tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert look(environ, "org/TheName") == (f"data set org/TheName: in the cache {tmp_path}", "")
    assert Hub.seen == []


def test_files_ask_nobody(environ: dict[str, str], tmp_path: Path) -> None:
    assert look(environ, str(tmp_path), "train.jsonl", "rows/train.parquet") == ("", "")
    assert look_for_data_sets(Config(), environ, must_exist=True) == ([], [])
    assert Hub.seen == []
