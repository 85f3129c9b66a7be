"""What the app compares: models given on the command line or in a YAML file, checked before any weight loads.

All of them are image generators, or all of them vision-language models.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.validation import HIGHEST_GUIDANCE, LORA_SCALES, MOST_STEPS, check_prompt
from mmalign.cli.sampling import Dtype, aligned_weights
from mmalign.cli.vlm_answers import Asker
from mmalign.models import peek
from mmalign.training.config import ModelConfig
from mmalign.training.strict_yaml import parse_yaml

PLAYGROUND_FOLDER = "playground/"
PLAYGROUND = "playground/tiny-sdxl"
QUICKSTART = "make quickstart"

Name = Annotated[str, Field(min_length=1, max_length=60)]


class Model(BaseModel):
    """One player: a base model, or what a run made of it.

    ``guidance``, ``steps`` and ``lora_scale``: fixed for this player whatever the visitor chooses; None: the visitor's.
    A vision-language model has none of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    base: Annotated[str, Field(min_length=1)]
    aligned: Path | None = None
    guidance: Annotated[float, Field(ge=0, le=HIGHEST_GUIDANCE, allow_inf_nan=False)] | None = None
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    lora_scale: Annotated[float, Field(ge=LORA_SCALES[0], le=LORA_SCALES[1], allow_inf_nan=False)] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


class Settings(BaseModel):
    """All that ``--models FILE`` may say; ``steps`` and ``guidance`` are where the sliders stand at first.

    ``prompts``: examples, and what the arena asks about; of vision-language models the questions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[Model, ...], Field(min_length=2, max_length=50)]
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 30
    guidance: Annotated[float, Field(ge=0, le=HIGHEST_GUIDANCE, allow_inf_nan=False)] = 5.0
    prompts: tuple[str, ...] = ()
    device: str | None = None
    notice: str = ""

    @field_validator("prompts")
    @classmethod
    def _prompts(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_prompt(prompt, f"prompts[{number}]") for number, prompt in enumerate(prompts))


def read_settings(file: Path) -> Settings:
    """The settings in a YAML file; ``ValueError`` with every mistake at once, of the models' folders too."""
    if not file.is_file():
        raise ValueError(f"--models {file}: no such file; app/models.example.yaml is one to start from")
    return checked(parse_yaml(file.read_text(encoding="utf-8")), str(file))


def checked(data: dict[str, Any], origin: str) -> Settings:
    """Settings of ``data``, with what each model name and run folder stands for looked up."""
    problems = []
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        settings = None
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"])
            given = "" if problem["type"] == "missing" else f" (got {str(problem['input'])[:60]!r})"
            problems.append(f"{path}: {problem['msg']}{given}")
    models = data.get("models") if isinstance(data, dict) else None
    for number, entry in enumerate(models if isinstance(models, list | tuple) else ()):
        problems += [f"models.{number}.{problem}" for problem in _model_problems(entry)]
    problems += _family_problems(data)
    names = Counter(entry.get("name") for entry in models or () if isinstance(entry, dict))
    problems += [f"models: the name {name!r} is used {count} times" for name, count in names.items() if count > 1]
    if problems or settings is None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{origin} has {len(problems)} mistakes:\n{listed}")
    return settings


def _model_problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return []  # pydantic says so already
    problems = []
    base, aligned = entry.get("base"), entry.get("aligned")
    if isinstance(base, str) and is_vlm(base):
        return _vlm_problems(entry)
    if isinstance(base, str) and base:
        try:
            peek(base)
        except ValueError as error:
            problems.append(f"base: {error}")
    if isinstance(aligned, str | Path):
        try:
            aligned_weights(Path(aligned))
        except ValueError as error:
            problems.append(f"aligned: {str(error).removeprefix('--aligned ')}")
    if entry.get("lora_scale") is not None and aligned is None:
        problems.append("lora_scale: would be ignored: there is no aligned")
    return problems


def _vlm_problems(entry: dict[str, Any]) -> list[str]:
    problems = [
        f"{name}: would be ignored: {entry['base']} is a vision-language model, whose answers are greedy"
        for name in ("guidance", "steps", "lora_scale")
        if entry.get(name) is not None
    ]
    if isinstance(entry.get("aligned"), str | Path):
        try:
            asker_of(Model(name="checked", base=entry["base"], aligned=entry["aligned"])).check()
        except ValueError as error:
            problems.append(f"aligned: {error}")
    return problems


def _family_problems(data: Any) -> list[str]:
    """That all models are of one family, and that settings of the other one are not given."""
    entries = data.get("models") if isinstance(data, dict) else None
    bases = [entry.get("base") for entry in entries or () if isinstance(entry, dict)]
    vlms = [is_vlm(base) for base in bases if isinstance(base, str)]
    if not any(vlms):
        return []
    if not all(vlms):
        return ["models: image generators and vision-language models have nothing to be compared by"]
    return [f"{name}: would be ignored by vision-language models" for name in ("steps", "guidance") if name in data]


def is_vlm(base: str) -> bool:
    """Whether ``base`` names a vision-language model of a known family; its configuration is read, no weight."""
    from mmalign.models.vlm_names import peek_vlm

    try:
        peek_vlm(ModelConfig(name=base))
    except ValueError:
        return False
    return True


def asker_of(model: Model) -> Asker:
    """Where the weights of a vision-language model are: its base's, its own, or a LoRA's."""
    return Asker(model.base, str(model.aligned or model.base), Path(), 1, 1, Dtype.float32)


def default_settings(runs: Path = Path("runs/quickstart")) -> Settings:
    """The embedded model against what the quickstart made of it, or against itself under guidance if that never ran."""
    base = {"name": "tiny-sdxl (base)", "base": PLAYGROUND}
    run = quickstart_run(runs)
    common = {"steps": 12, "guidance": 1.0}
    if run is not None:
        other = {"name": f"{run.name.split('_')[0]}-aligned", "base": PLAYGROUND, "aligned": run}
        return checked({"models": [base, other], **common, "notice": f"Aligned weights: {run}"}, "the quickstart's run")
    notice = (
        f"No aligned weights yet, so the embedded model meets itself at two strengths of guidance. "
        f"Run `{QUICKSTART}` once (some minutes on a CPU) and start again: its result is picked up by itself."
    )
    pair = [base | {"name": f"tiny-sdxl, guidance {scale:g}", "guidance": scale} for scale in (1.0, 4.0)]
    return checked({"models": pair, **common, "notice": notice}, "the embedded models")


def quickstart_run(runs: Path) -> Path | None:
    """The newest folder of ``runs`` with finished weights."""
    finished = []
    for folder in runs.glob("*_seed*") if runs.is_dir() else ():
        try:
            finished.append((aligned_weights(folder).stat().st_mtime, folder))
        except ValueError:  # a run that was interrupted, or the pairs
            continue
    return max(finished)[1] if finished else None


def given_settings(base: str, aligned: Path | None, lora_scale: float | None = None) -> Settings:
    """``--base NAME --aligned RUN_DIR``."""
    if aligned is None:
        raise ValueError(
            f"--base {base} alone has nothing to be compared with; give --aligned RUN_DIR, or --models FILE"
        )
    entry = {"name": "aligned", "base": base, "aligned": str(aligned), "lora_scale": lora_scale}
    generator = base.startswith(PLAYGROUND_FOLDER) and not is_vlm(base)
    common = {"steps": 12, "guidance": 1.0} if generator else {}
    return checked({"models": [{"name": "base", "base": base}, entry], **common}, "the command line")
