"""What the Arena tab does: blind battles issued by the server, votes on disk before they are confirmed, the reveal."""

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app import validation
from app.answers import AnswerSource
from app.gallery import open_picture
from app.matching import Matching
from app.sides import Form, sides_of
from app.sources import Picture, Request, Source
from mmalign.arena import TAGS, Ballot, Battle, Receipt, Side, VoteStore

IN_A_RANKING = 4
YES_NO = {"yes": True, "no": False, None: None, "": None}


@dataclass(frozen=True)
class Shown:
    """What a voter may see before the vote: the id, the prompt, and pictures without a word on where they come from.

    Of a battle of answers the one picture that they are about, and the ``answers`` as they stand on the screen.
    """

    battle_id: str
    prompt: str
    form: Form
    images: tuple[Image.Image, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Revealed:
    """After the vote: the receipt, and the sides in the order on the screen; ``repeated``: it was a catch pair."""

    receipt: Receipt
    ballot: Ballot
    sides: tuple[Side, ...]
    pictures: tuple[Picture, ...]
    repeated: bool = False


class Arena:
    """Battles between the models of ``source``, kept in ``store``; pictures lie under ``folder`` by their digest.

    Models are drawn by :class:`app.matching.Matching`, prompts and seeds (or questions and pictures) uniformly: see
    :mod:`app.sides`. ``sampled`` gives steps, guidance and LoRA scale. ``ahead`` battles of each asked form are made in
    the background, so that the next one is there at once. ``catch_rate``: see ``Matching``.
    """

    def __init__(
        self,
        source: Source | AnswerSource,
        store: VoteStore,
        folder: Path,
        *,
        ahead: int = 2,
        sampled: Request | None = None,
        catch_rate: float = 0.0,
    ) -> None:
        self.source, self.store, self.folder, self.ahead = source, store, folder, ahead
        folder.mkdir(parents=True, exist_ok=True)
        self.sides = sides_of(source, folder, sampled)
        players = {name: self.sides.player(name) for name in source.names}
        self.matching = Matching(players, store, catch_rate=catch_rate)
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arena")
        self._ready: dict[str, list[Future[Battle]]] = {form: [] for form in self.sides.forms}
        self._images: OrderedDict[str, Image.Image] = OrderedDict()

    def new_voter(self) -> str:
        """A pass for a new voter: random, and signed by the store's key, so that nobody makes one up."""
        name = secrets.token_urlsafe(18)
        return f"{name}.{self._signature(name)}"

    def check_voter(self, token: Any) -> str:
        """The voter of a pass that this server gave out."""
        name, _, signature = validation.check_token(token, "voter").partition(".")
        if not hmac.compare_digest(signature, self._signature(name)):
            raise ValueError("this voter's pass was not given out by this server; reload the page for a new one")
        return name

    def next(self, token: Any, form: Any = "pair") -> Shown:
        """A battle issued to this voter alone."""
        voter = self.check_voter(token)
        form = validation.check_choice(form, "form", self.sides.forms)
        battle = self.matching.catch(voter) if form == "pair" else None
        if battle is None:
            with self._lock:
                ready = self._ready[form].pop(0) if self._ready[form] else None
            battle = self._make(form) if ready is None else ready.result()
        battle_id = self.store.open_battle(battle, voter=voter)
        self.preload(form)
        if battle.kind == "pictures":
            return Shown(battle_id, battle.prompt, form, tuple(self._image(side) for side in battle.shown))
        answers = tuple(side.answer or "" for side in battle.shown)
        return Shown(battle_id, battle.prompt, form, (self._image(battle.left),), answers)

    def preload(self, form: Form = "pair") -> None:
        """Have ``ahead`` battles made in the background."""
        with self._lock:
            for _ in range(self.ahead - len(self._ready[form])):
                self._ready[form].append(self._worker.submit(self._make, form))

    def vote(self, token: Any, battle_id: Any, ballot: Ballot) -> Revealed:
        """Keep the vote, and only then tell who is who. The same vote again gives the same receipt."""
        voter = self.check_voter(token)
        identity = validation.check_token(battle_id, "battle")
        receipt = self.store.vote(identity, voter, ballot)
        battle = self.store.battle(identity)
        pictures = tuple(
            Picture(self._image(side), side.model, side.prompt, side.seed or 0, _about(side)) for side in battle.shown
        )
        return Revealed(receipt, ballot, battle.shown, pictures, battle.catch is not None)

    def seconds_open(self, battle_id: str) -> float:
        """How long ago the battle was shown."""
        return max(0.0, time.time() - (self.store.battle(battle_id).opened_at or time.time()))

    def close(self) -> None:
        """Stop preparing battles."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _signature(self, name: str) -> str:
        return self.store.pseudonym(f"pass for {name}")

    def _make(self, form: Form) -> Battle:
        """A battle whose sides do not all show the same. The models are drawn once: their chance is kept with them."""
        drawn = self.matching.draw(2 if form == "pair" else IN_A_RANKING)
        for _ in range(self.sides.attempts):
            sides = self.sides.of(drawn.models)
            if len({side.shows for side in sides}) > 1:
                return Battle(tuple(sides), seed=drawn.seed, policy=drawn.policy, propensity=drawn.propensity)
        names, what = " and ".join(dict.fromkeys(drawn.models)), "made the same picture"
        if self.sides.kind == "answers":
            what = "gave the same answer"
        raise ValueError(f"{names} {what} {self.sides.attempts} times in a row; are they the same model?")

    def _image(self, side: Side) -> Image.Image:
        with self._lock:
            image = self._images.get(side.image_sha256)
        if image is None:
            image = open_picture(Path(side.file))
            with self._lock:
                self._images[side.image_sha256] = image
                while len(self._images) > 64:
                    self._images.popitem(last=False)
        return image


def read_ballot(better: Any, left_ok: Any, right_ok: Any, tags: Any, reasons: Any, seconds: float | None) -> Ballot:
    """A checked ballot on a pair; ``left_ok`` and ``right_ok`` are "yes", "no" or None."""
    v = validation
    better, left_ok, right_ok, tags, reasons = v.together(
        lambda: v.check_choice(better, "vote", ("left", "right", "tie")),
        lambda: YES_NO[v.check_choice(left_ok, "left acceptable", YES_NO)],
        lambda: YES_NO[v.check_choice(right_ok, "right acceptable", YES_NO)],
        lambda: v.check_choices(tags, "tags", TAGS),
        lambda: v.check_prompt(reasons if reasons is not None else "", "reasons", empty=True),
    )
    return Ballot(better, left_ok, right_ok, reasons=reasons, tags=tuple(tags), seconds=seconds, view="side_by_side")


def read_ranking(order: Any, tags: Any, reasons: Any, seconds: float | None) -> Ballot:
    """A checked ballot on four pictures, best first."""
    v = validation
    places, tags, reasons = v.together(
        lambda: v.check_order(order, IN_A_RANKING),
        lambda: v.check_choices(tags, "tags", TAGS),
        lambda: v.check_prompt(reasons if reasons is not None else "", "reasons", empty=True),
    )
    return Ballot(ranking=places, reasons=reasons, tags=tuple(tags), seconds=seconds, view="grid")


def _about(side: Side) -> dict[str, Any]:
    """Everything known about a side but where its file lies on this machine."""
    about = {name: value for name, value in side.as_json().items() if name not in ("file", "extras")}
    return {**about, **side.extras}
