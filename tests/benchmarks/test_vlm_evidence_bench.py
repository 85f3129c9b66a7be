"""The records of the VLM quickstart and evidence: every arm is a valid recipe, and tables say what was measured."""

import pytest

from benchmarks import vlm_evidence, vlm_quickstart
from benchmarks.vlm_records import COLUMNS, kept, pooled
from mmalign.evaluation.vlm_playground import compare, judge
from mmalign.playground.looking import looks
from mmalign.playground.questions import describe
from mmalign.training.loading import load_config


@pytest.mark.parametrize("arm", vlm_evidence.ARMS)
def test_every_arm_is_a_valid_change_of_the_recipe(arm: str) -> None:
    config = load_config(vlm_evidence.RECIPE, [f"objective={vlm_evidence.ARMS[arm]}"], check_files=False)
    plain = load_config(vlm_evidence.RECIPE, check_files=False)
    assert config.model_copy(update={"objective": plain.objective}) == plain


def test_one_seed_has_the_interval_over_pictures_and_more_one_over_seeds() -> None:
    rows = [{"words": [10.0, 11.0, 1.0, 0.5, 1.5]}, {"words": [12.0, 15.0, 3.0, 2.5, 3.5]}]
    assert pooled(rows[:1], "words") == "10.000 -> 11.000 (+1.000 [+0.500, +1.500])"
    # Two seeds that differ by 2: mean 2, standard error 1, t of one degree of freedom 12.706.
    assert pooled(rows, "words") == "11.000 -> 13.000 (+2.000 [-10.706, +14.706])"


def test_tables_have_a_row_for_what_was_measured() -> None:
    comparison = compare(*(_said(text) for text in ("nothing", None)), seed=0)
    measures = kept(comparison)
    assert measures["object_recall"][:3] == [0, 1, 1]
    row = {"seed": 3, "seconds": 100, "processor_seconds": 50, "commit": "0" * 40, "measures": measures}
    table = vlm_quickstart.render([row])
    assert f"| 3 | {' | '.join(pooled([measures], name) for name in COLUMNS)} | 100 | 50 | `000000000000` |" in table
    text = vlm_evidence.render([{**row, "arm": "sft"}])
    assert "| sft | 3 | " in text
    assert "text dpo" not in text


def _said(text: str | None):
    from mmalign.evaluation.vlm_playground import Said

    shown = looks(3, 0)
    descriptions = tuple("one circle" if text else describe(look.scene) for look in shown)
    if text:
        descriptions = tuple("a thing" for _ in shown)
        descriptions = (f"{_absent(shown[0])} .", *descriptions[1:])
    right = tuple(tuple(question.answer for question in look.questions) for look in shown)
    existence = tuple({"present": "yes"} | dict.fromkeys(look.absent, "no") for look in shown)
    return judge(shown, Said(descriptions, right, right, existence))


def _absent(look) -> str:
    return look.absent["random"].text.removeprefix("is there a ").removesuffix(" ?")
