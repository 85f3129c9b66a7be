"""The served app under direct HTTP requests: what is shut, what is checked, and fifty voters at once."""

import io
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import context_on, serve_context
from gradio_client import Client
from PIL import Image

from app.context import QUEUE
from app.guard import foreign
from app.limits import RateLimit
from app.page import CACHE_SECONDS
from mmalign.arena import Vote


@pytest.fixture(scope="module")
def http(served: SimpleNamespace) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def call(http: httpx.Client, name: str, data: str) -> str:
    """The events of the API endpoint ``name`` for ``data``, which is JSON as it goes over the wire."""
    answer = http.post(f"/gradio_api/call/{name}", content=data, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        return answer.text
    return http.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}").text


def join(http: httpx.Client, fn_index: int, data: list[Any]) -> dict[str, Any]:
    """The last event of listener ``fn_index``, asked for as the page asks, past every check of the page."""
    session = uuid.uuid4().hex
    body = json.dumps({"data": data, "fn_index": fn_index, "session_hash": session})
    answer = http.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    if answer.status_code != 200:
        return {"success": False, "output": {"error": answer.text}}
    with http.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if event["msg"] == "process_completed":
                    return event
    raise AssertionError("no end")


def test_files_of_this_machine_are_out_of_reach(http: httpx.Client, served: SimpleNamespace) -> None:
    store = served.store
    assert (store / "votes.db").is_file()
    key = next(path for path in store.iterdir() if path.suffix == ".key")
    paths = [store / "votes.db", key, store / "pictures", "/etc/passwd", "app/serve.py", "../../../etc/passwd"]
    paths += ["..%2f..%2f..%2fetc%2fpasswd", "/proc/self/environ", "pyproject.toml"]
    for path in paths:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/gradio_api/static/../"):
            answer = http.get(f"{route}{path}")
            assert answer.status_code in (403, 404, 405), (route, path, answer.status_code)
            assert b"SQLite" not in answer.content
            assert b"root:" not in answer.content


def test_nothing_can_be_uploaded_or_fetched(http: httpx.Client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    for content in (b"x" * 3_000_000, bomb.getvalue(), b"small"):
        answer = http.post("/gradio_api/upload", files={"files": ("a.png", content)})
        assert answer.status_code == 403
        assert "takes no files" in answer.text
    assert http.post("/gradio_api/upload?upload_id=1", content=b"").status_code == 403
    for route in ("file=http://127.0.0.1:1/", "file=https://example.org/x.svg", "proxy=http://127.0.0.1:1/"):
        assert http.get(f"/gradio_api/{route}").status_code == 403
    answer = http.post("/gradio_api/queue/join", content=b"x" * 100_000)
    assert answer.status_code == 413
    assert "larger than" in answer.text


def test_the_page_is_served_with_a_strict_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    config = http.get("/config").json()
    assert not config.get("analytics_enabled")
    assert "base" in page.text  # the names are public; which side is which is not


def test_other_sites_get_nothing_and_what_is_kept_is_bounded(http: httpx.Client, served: SimpleNamespace) -> None:
    name = served.url.removeprefix("http://")
    for origin in ("https://evil.example", "null", f"http://{name}.evil.example", "http://localhost:1", f"x://{name}0"):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        read, sent = http.get("/config", headers=asked), http.post("/gradio_api/call/voter", headers=asked, json={})
        assert (read.status_code, sent.status_code) == (403, 403), origin
        assert "its own page" in sent.text
    assert http.get("/config", headers={"origin": served.url}).status_code == 200
    assert http.get("/config", headers={"origin": "https://a.example", "host": "a.example"}).status_code == 200
    proxied = [(b"host", b"127.0.0.1:7860"), (b"x-forwarded-host", b"a.example"), (b"origin", b"https://a.example")]
    assert foreign(proxied, behind_proxy=True) is None
    assert "its own page" in str(foreign(proxied, behind_proxy=False))  # anybody can write that header
    blocks = served.app.get_blocks()
    assert blocks._queue.max_size == QUEUE
    assert blocks.delete_cache == CACHE_SECONDS  # so often, and so old a picture may get


def test_a_visitor_who_asks_too_often_is_told_when_to_come_back(gallery: list[Path], tmp_path: Path) -> None:
    few = {"generations": RateLimit(1, "generations"), "votes": RateLimit(2, "votes and battles")}
    limited = serve_context(context_on(gallery, tmp_path, **few))
    values = ["base", "aligned", prompt_of(limited), "", 0, 1, 12, 1, 1, [], "Slider"]
    with httpx.Client(base_url=limited.url, timeout=60) as http:
        told = [call(http, "compare", json.dumps({"data": values})) for _ in range(2)]
        told += [call(http, "voter", '{"data": []}') for _ in range(3)]
    done = ["event: complete" in answer for answer in told]
    assert done == [True, False, True, True, False]
    assert "1 generations in 60 s are allowed; try again in" in told[1]
    assert "2 votes and battles in 60 s are allowed" in told[4]
    limited.app.get_blocks().close(verbose=False)
    limited.ctx.arena.close()


def prompt_of(served: SimpleNamespace) -> str:
    return served.ctx.source.prompts()[0]


def test_compare_over_the_api_gives_lossless_pictures(served: SimpleNamespace) -> None:
    client = Client(served.url, verbose=False, httpx_kwargs={"timeout": 120})
    result = client.predict(
        left="base",
        right="aligned",
        prompt=prompt_of(served),
        negative_prompt="",
        seed=1,
        seeds=2,
        steps=12,
        guidance=1,
        lora_scale=1,
        rewards=["oracle"],
        view="Side by side",
        api_name="/compare",
    )
    left = next(part["value"] for part in result if isinstance(part, dict) and part.get("value"))
    path = left if isinstance(left, str) else left["path"]
    assert path.endswith("image.png")  # not the name of a model
    from app.sources import Request

    own = served.ctx.source.sample("base", Request(prompt_of(served), (1,)))[0]
    shown = Image.open(path)
    assert shown.convert("RGB").tobytes() == own.image.tobytes()
    assert shown.info == {}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, '"../../etc/passwd"', "left model .* is unknown"),
        (2, '"<script>alert(1)</script>"', "prompt .*&lt;script&gt;.* is unknown"),
        (2, "7", "prompt must be a text"),
        (4, "-1", "seed must be from 0 to 4294967295"),
        (4, "99", "seed 99 is unknown"),
        (5, "NaN", "number of seeds must be a finite number"),
        (5, "1000000", "number of seeds must be from 1 to 8"),
        (6, "-3", "steps must be from 1 to 100"),
        (6, "NaN", "steps must be a finite number"),
        (7, "1e999", "guidance must be a finite number"),
        (8, '"much"', "LoRA scale must be a number"),
        (9, '["no-such-reward"]', "rewards .* is unknown"),
        (10, '"Anything"', "view .* is unknown"),
    ],
)
def test_the_api_checks_what_the_page_checks(
    http: httpx.Client, served: SimpleNamespace, place: int, value: str, words: str
) -> None:
    values = ['"base"', '"aligned"', json.dumps(prompt_of(served)), '""', "0", "1", "12", "1", "1", "[]", '"Slider"']
    values[place] = value
    told = call(http, "compare", '{"data": [' + ", ".join(values) + "]}")
    assert "event: complete" not in told
    assert "<script>" not in told
    assert re.search(words, told), told


def test_votes_over_the_api_are_checked(http: httpx.Client) -> None:
    def told(name: str, *values: Any) -> str:
        return call(http, name, json.dumps({"data": values}))

    voter = json.loads(told("voter").split("data: ")[1].splitlines()[0])[0]
    battle = json.loads(told("battle", voter, "pair").split("data: ")[1].splitlines()[0])[0]
    assert set(battle) == {"id", "prompt", "form", "images"}
    fine = (battle["id"], "left", "", "", [], "")
    assert "not given out" in told("vote", "somebody", *fine)
    assert "not issued" in told("vote", voter, "A" * 24, *fine[1:])
    assert "not given out" in told("vote", voter, "", *fine[1:])
    assert "choose one of" in told("vote", voter, battle["id"], "both", "", "", [], "")
    assert "choose one of" in told("vote", voter, battle["id"], "left", "", "", ["x"], "")
    assert "<script>" not in told("vote", voter, battle["id"], "<script>alert(1)</script>", "", "", [], "")
    assert "each of 0 to 3 once" in told("rank", voter, battle["id"], [0, 0, 0, 0], [], "")
    assert "choose one of" in told("battle", voter, "triple")
    assert "event: complete" in told("vote", voter, *fine)


def test_every_listener_survives_what_no_page_sends(http: httpx.Client, served: SimpleNamespace) -> None:
    before = served.ctx.arena.store.counts()["votes"]
    asked = 0
    for number, dependency in enumerate(http.get("/config").json()["dependencies"]):
        if not dependency["backend_fn"]:
            continue
        for value in ("../../../etc/passwd", None, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}):
            event = join(http, dependency.get("id", number), [value] * len(dependency["inputs"]))
            assert "root:" not in json.dumps(event)
            asked += 1
    assert asked > 30
    assert served.ctx.arena.store.counts()["votes"] == before
    assert http.get("/").status_code == 200


def test_fifty_voters_at_once_are_each_counted_once(served: SimpleNamespace) -> None:
    before = served.ctx.arena.store.counts()["votes"]
    client = Client(served.url, verbose=False, max_workers=50, httpx_kwargs={"timeout": 120})
    voters = [job.result() for job in [client.submit(api_name="/voter") for _ in range(50)]]
    assert len(set(voters)) == 50
    battles = [job.result() for job in [client.submit(voter, "pair", api_name="/battle") for voter in voters]]
    jobs = [
        client.submit(voter, battle["id"], "left", "yes", "", [], "", api_name="/vote")
        for voter, battle in zip(voters, battles, strict=True)
        for _ in range(2)  # an impatient second click
    ]
    receipts = [job.result()["receipt"] for job in jobs]
    assert receipts[0::2] == receipts[1::2]
    assert len(set(receipts)) == 50
    assert served.ctx.arena.store.counts()["votes"] == before + 50
    votes: list[Vote] = list(served.ctx.arena.store.votes())[-50:]
    assert len({vote.voter for vote in votes}) == 50
    assert {vote.ballot.better for vote in votes} == {"left"}
