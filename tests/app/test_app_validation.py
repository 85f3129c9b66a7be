"""Everything a visitor may send: what is taken, and what is refused with a sentence."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from app import validation as v
from app.limits import Cancelled, Jobs, RateLimit, TooMany, unless_stopped, visitor_of


class Sent:
    """A request as Gradio hands it to a handler."""

    def __init__(self, host: str, username: str | None = None, **headers: str) -> None:
        self.client = type("Client", (), {"host": host})
        self.username, self.headers = username, headers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 101, 10**400, 1e300, "3", True, None, [1], {}])
def test_numbers_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match="steps must be"):
        v.check_whole(value, "steps", 1, 100)
    with pytest.raises(ValueError, match="guidance must be"):
        v.check_real(value, "guidance", 0, 30)


def test_numbers_that_are_taken() -> None:
    assert v.check_whole(3.0, "steps", 1, 100) == 3
    assert type(v.check_whole(3.0, "steps", 1, 100)) is int
    assert v.check_real(7, "guidance", 0, 30) == 7.0
    with pytest.raises(ValueError, match=r"whole number from 1 to 100, got 3\.5"):
        v.check_whole(3.5, "steps", 1, 100)


@pytest.mark.parametrize("sent", ["", "  \n", "a" * 1001, "a\x00b", "a\x1b[2J", "\ud800", 3, None, ["a"], {"a": 1}])
def test_prompts_that_are_refused(sent: Any) -> None:
    with pytest.raises(ValueError, match="prompt "):
        v.check_prompt(sent)


def test_prompts_that_are_taken() -> None:
    assert v.check_prompt("  ein rotes Haus, 東京, 🐈\nzwei  ") == "ein rotes Haus, 東京, 🐈\nzwei"
    assert v.check_prompt("", "negative prompt", empty=True) == ""


def test_choices_are_of_the_same_type() -> None:
    assert v.check_choices(["a", "b"], "tags", "abc") == ["a", "b"]
    refused: list[Callable[[], Any]] = [
        lambda: v.check_choice("../../etc/passwd", "model", ["base"]),
        lambda: v.check_choice(True, "seed", [1, 2]),
        lambda: v.check_choice(["base"], "model", ["base"]),
        lambda: v.check_choices(["a", "a"], "tags", "abc"),
        lambda: v.check_choices("abcdef", "tags", "abc"),
        lambda: v.check_choices({"a": 1}, "tags", "abc"),
        lambda: v.check_token("../votes.db", "battle"),
        lambda: v.check_token(None, "battle"),
        lambda: v.check_token("a" * 201, "battle"),
    ]
    for refuse in refused:
        with pytest.raises(ValueError, match=r"unknown|twice|must be a list|not given out"):
            refuse()


@pytest.mark.parametrize(
    "sent", ["0,1,2", "0,1,2,2", "0,1,2,9", "-1,0,1,2", [0, 1, 2, True], [0, 1, 2, 3.0], None, 7, "a,b,c,d"]
)
def test_orders_that_are_none(sent: Any) -> None:
    with pytest.raises(ValueError, match="each of 0 to 3 once"):
        v.check_order(sent, 4)


def test_orders_that_are_taken() -> None:
    assert v.check_order("2, 0,3,1", 4) == v.check_order([2, 0, 3, 1], 4) == (2, 0, 3, 1)


def test_all_mistakes_come_at_once_and_errors_stay_short() -> None:
    with pytest.raises(ValueError, match="a must be") as caught:
        v.together(lambda: v.check_real(math.nan, "a", 0, 1), lambda: v.check_prompt(""), lambda: 3)
    assert str(caught.value).count("\n") == 1
    with pytest.raises(ValueError, match="unknown") as caught:
        v.check_choice("x" * 100_000, "model", ["base"])
    assert len(str(caught.value)) < 200


def test_a_visitor_is_slowed_down_and_others_are_not() -> None:
    now = [0.0]
    limit = RateLimit(2, "votes", seconds=60, clock=lambda: now[0])
    limit.take("a")
    now[0] = 50
    limit.take("a")
    with pytest.raises(TooMany, match=r"2 votes in 60 s are allowed; try again in 10 s"):
        limit.take("a")
    limit.take("b")
    now[0] = 60.5
    limit.take("a")
    with pytest.raises(TooMany):
        limit.take("a")


def test_who_a_visitor_is() -> None:
    forged = {"x-forwarded-for": "1.1.1.1, 2.2.2.2"}
    assert visitor_of(Sent("9.9.9.9", **forged), behind_proxy=False) == "address:9.9.9.9"
    assert visitor_of(Sent("9.9.9.9", **forged), behind_proxy=True) == "address:2.2.2.2"
    assert visitor_of(Sent("9.9.9.9", username="eva"), behind_proxy=True) == "user:eva"
    assert visitor_of(Sent("9.9.9.9"), behind_proxy=True) == "address:9.9.9.9"


def test_a_job_can_be_stopped_and_a_new_one_stops_the_old() -> None:
    jobs = Jobs()
    first = jobs.start("page")
    unless_stopped(first)
    second = jobs.start("page")
    with pytest.raises(Cancelled):
        unless_stopped(first)
    jobs.finish("page", first)  # the old job's end does not end the new one
    assert jobs.stop("page")
    with pytest.raises(Cancelled):
        unless_stopped(second)
    assert not jobs.stop("page")
