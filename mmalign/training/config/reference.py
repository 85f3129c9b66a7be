"""``reference:`` what log-ratios are taken against."""

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator
from pydantic.functional_serializers import SerializerFunctionWrapHandler

from mmalign.training.config.section import Section

ReferenceKind = Literal["auto", "none", "frozen", "lora_off", "adapter", "snapshot", "ema", "cached"]
# Kind -> the settings it needs; every other setting would be ignored, and is an error.
_NEEDS: dict[str, tuple[str, ...]] = {"snapshot": ("every",), "ema": ("decay",), "cached": ("path",)}


class ReferenceConfig(Section):
    """A kind by its name (``reference: frozen``), or a section (``reference: {kind: snapshot, every: 100}``).

    ``auto`` takes what the objective and the trained weights need: nothing, the LoRA switched off, a frozen adapter
    (DoRA), or a frozen copy (full weights; ``lora.train_also`` of image generators). ``frozen``: a copy of the weights.
    ``lora_off``: the policy with its LoRA off, and with copies of what ``lora.train_also`` trains. ``adapter``: a
    frozen adapter beside the trained one; with ``model.adapter``, training goes on from that adapter itself.
    ``snapshot``: the policy as it was at the last multiple of ``every`` steps.
    ``ema``: reference <- decay * reference + (1 - decay) * policy after every step. ``cached``: as ``auto``, with its
    scores kept in the folder ``path`` for other runs on the same rows with the same noise.
    """

    kind: ReferenceKind = "auto"
    every: int | None = Field(default=None, ge=1)
    decay: float | None = Field(default=None, gt=0, lt=1)
    path: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_stands_for_its_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> "ReferenceConfig":
        needed = _NEEDS.get(self.kind, ())
        given = [name for name in ("every", "decay", "path") if getattr(self, name) is not None]
        problems = [
            f"reference: {self.kind} needs {name}, such as reference: {{kind: {self.kind}, {_EXAMPLES[name]}}}"
            for name in needed
            if name not in given
        ]
        problems += [
            f"reference.{name} would be ignored by kind: {self.kind}; leave it out, or use kind: {_KIND_OF[name]}"
            for name in given
            if name not in needed
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        """A kind without settings is its name, as one writes it."""
        given = {name: value for name, value in handler(self).items() if value is not None}
        return self.kind if given.keys() == {"kind"} else given


_EXAMPLES = {"every": "every: 100", "decay": "decay: 0.995", "path": "path: runs/reference-scores"}
_KIND_OF = {setting: kind for kind, settings in _NEEDS.items() for setting in settings}
