"""``mmalign evaluate vlm`` from the command line to the report: stored answers, and live models of the real classes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.cli.__main__ import main
from mmalign.evaluation.vlm_answers import greedy_answers

LABELS = ["yes", "yes", "no", "no", "yes", "no"]
OBJECTS = ["star", "circle", "square", "ring", "cross", "heart"]


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    """Two splits in the official layout, six questions about three pictures each, and the pictures."""
    folder = tmp_path_factory.mktemp("pope")
    for split in ("random", "popular"):
        lines = [
            {
                "question_id": number,
                "image": f"{number % 3}.png",
                "text": f"is there a {OBJECTS[number]} ?",
                "label": label,
            }
            for number, label in enumerate(LABELS)
        ]
        (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    return folder


def write_answers(folder, side, texts):
    files = []
    for split in ("random", "popular"):
        file = folder / f"{side}_{split}.jsonl"
        file.write_text("".join(json.dumps({"question_id": n, "answer": t}) + "\n" for n, t in enumerate(texts)))
        files.append(str(file))
    return [part for file in files for part in (f"--{side}-answers", file)]


def test_stored_answers_from_the_command_line_to_the_report(pope, tmp_path):
    base = write_answers(tmp_path, "base", ["Yes", "Yes", "Yes", "Yes", "Yes", "<script>alert(1)</script>"])
    aligned = write_answers(tmp_path, "aligned", ["Yes", "No", "No", "No", "Yes", "No"])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmalign.cli", "evaluate", "vlm", "--benchmark", "pope", "--out", str(out)]
    command += ["--questions", str(pope), "--images", str(pope / "images"), "--bootstrap", "200", *base, *aligned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "results.json").read_text())
    titles = [(one["title"], one["rules"]) for one in found["sections"]]
    assert titles == [
        (split, rules) for rules in ("official", "strict") for split in ("random", "popular", "mean of splits")
    ]
    rows = {row["name"]: row for row in found["sections"][2]["rows"]}
    assert rows["accuracy"]["base"]["value"] == 3 / 6
    assert rows["accuracy"]["aligned"]["value"] == 5 / 6
    assert rows["yes ratio"]["base"]["value"] == 1
    assert rows["F1"]["difference"]["value"] == pytest.approx(2 * 1 * (2 / 3) / (5 / 3) - 2 * 0.5 / 1.5)
    assert rows["accuracy"]["difference"]["low"] <= 2 / 6 <= rows["accuracy"]["difference"]["high"]
    assert "yes ratio 100.00 -> 33.33" in done.stdout
    assert "words per answer" in (out / "table.txt").read_text()
    page = (out / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory):
    """A LLaVA of the real classes with random weights, and a LoRA for it as a run exports one."""
    from peft import LoraConfig

    from mmalign.models.vlm import VLMComponents
    from mmalign.models.vlm_export import save_vlm
    from mmalign.models.vlm_names import peek_vlm
    from mmalign.playground.tiny_llava import build_processor, build_tiny_llava
    from mmalign.training.config import ModelConfig

    folder = tmp_path_factory.mktemp("llava")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build_tiny_llava().eval(), build_processor()
        # Random weights say the same word for ever; larger ones make the answers depend on picture and question.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)
        model.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        model.add_adapter(
            LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False), "policy"
        )
    info = peek_vlm(ModelConfig(name=str(folder / "base")))
    save_vlm(VLMComponents(info, model, processor), folder / "run" / "aligned")
    return folder


def live(pope, tiny_llava, out, *more):
    return main(
        [
            *("evaluate", "vlm", "--benchmark", "pope", "--questions", str(pope), "--images", str(pope / "images")),
            *("--base", str(tiny_llava / "base"), "--aligned", str(tiny_llava / "run"), "--out", str(out)),
            *("--dtype", "float32", "--max-new-tokens", "4", "--bootstrap", "200", "--device", "cpu", *more),
        ]
    )


def test_live_models_are_asked_and_an_interrupted_run_goes_on(pope, tiny_llava, tmp_path, capsys):
    out = tmp_path / "out"
    assert live(pope, tiny_llava, out, "--batch-size", "4") == 0
    lines = {side: (out / "answers" / f"{side}.jsonl").read_text().splitlines() for side in ("base", "aligned")}
    said = {side: [json.loads(line) for line in many] for side, many in lines.items()}
    assert len(said["base"]) == len(said["aligned"]) == 12
    texts = {side: [one["answer"] for one in many] for side, many in said.items()}
    assert texts["base"] != texts["aligned"], "the LoRA was not put on"
    settings = json.loads((out / "answers" / "aligned.settings.json").read_text())
    assert len(settings["adapter_sha256"]) == 64
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["answers"] == "greedy, up to 4 tokens, float32, 4 at once"
    # The base's answers are those that the model gives without any of this.
    assert texts["base"][:2] == _plain_answers(tiny_llava / "base", pope, said["base"][:2])

    # Half of the aligned answers lost: they come again, the others are not touched.
    file = out / "answers" / "aligned.jsonl"
    file.write_text("\n".join(lines["aligned"][:5]) + "\n" + lines["aligned"][5][:20])
    assert live(pope, tiny_llava, out, "--batch-size", "4") == 0
    again = [json.loads(line) for line in file.read_text().splitlines()]
    key = lambda one: (one["split"], one["question_id"])  # noqa: E731
    assert sorted(again, key=key) == sorted(said["aligned"], key=key)
    # Other settings are other answers, and so are other weights of the same name.
    assert live(pope, tiny_llava, out, "--suffix", "one word .") == 2
    assert "name a new --out" in capsys.readouterr().err
    (tiny_llava / "base" / "model.safetensors").touch()
    assert live(pope, tiny_llava, out) == 2
    assert "holds answers that were made otherwise (weights was" in " ".join(capsys.readouterr().err.split())


def test_a_template_with_a_begin_token_gets_no_second_one(tiny_llava, monkeypatch):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_llava / "base").eval()
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    read, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: read.append(inputs["input_ids"]) or generate(**inputs))
    for begin in ("", "<s>"):
        processor = AutoProcessor.from_pretrained(tiny_llava / "base")
        processor.chat_template = begin + processor.chat_template
        greedy_answers(model, processor, pictures, ["is there a star ?", "what ?"], max_new_tokens=2)
    assert torch.equal(read[0], read[1])
    assert (read[1] == processor.tokenizer.bos_token_id).sum(dim=1).tolist() == [1, 1]


def _plain_answers(folder, pope, records):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for record in records:
        picture = Image.open(pope / "images" / record["image"]).convert("RGB")
        text = f"USER: <image>\n{record['question']} ASSISTANT:"
        inputs = processor(text=text, images=picture, return_tensors="pt")
        new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(new, skip_special_tokens=True).strip())
    return answers


MISTAKES = {
    "nothing given": (["--benchmark", "pope"], ["give --base MODEL", "needs --questions"]),
    "mixed": (
        ["--benchmark", "pope", "--questions", "q", "--base", "x", "--base-answers", "{file}", "--synonyms", "s"],
        ["--base would be ignored", "belong together", "--synonyms would be ignored: it is for chair"],
    ),
    "amber": (
        ["--benchmark", "amber", "--questions", "q", "--base-answers", "{file}", "--aligned-answers", "{file}"],
        ["needs --annotations DIR", "junyangwang0410/AMBER"],
    ),
    "chair": (
        ["--benchmark", "chair", "--base-answers", "{file}", "--aligned-answers", "{file}"],
        ["needs --annotations DIR", "annotations_trainval2014.zip", "data/synonyms.txt"],
    ),
}


@pytest.mark.parametrize(("line", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told_at_once(tmp_path, capsys, line, told):
    file = tmp_path / "answers.jsonl"
    file.write_text("{}")
    line = [part.format(file=file) for part in line]
    assert main(["evaluate", "vlm", "--out", str(tmp_path / "out"), *line]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert [text for text in told if text not in error] == []
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_an_error_before_anything_is_asked(pope, tmp_path, capsys):
    line = ["--benchmark", "pope", "--questions", str(pope), "--images", str(pope / "images")]
    line += ["--base", str(tmp_path / "nothing"), "--aligned", "x", "--out", str(tmp_path / "out")]
    assert main(["evaluate", "vlm", *line]) == 2
    assert "is no folder with a config.json" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_amber_of_stored_answers_with_the_builtin_tools(tmp_path, capsys):
    """Descriptions of two pictures and a question about each."""
    truths = [
        {"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
        {"id": 2, "type": "generative", "truth": ["cat"], "hallu": ["dog"]},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "type": "discriminative-relation", "truth": "yes"},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(truths))
    (tmp_path / "relation.json").write_text(json.dumps({"dog": ["puppy"], "cat": []}))
    (tmp_path / "safe_words.txt").write_text("light\n")
    queries = [{"id": n, "image": f"AMBER_{2 - n % 2}.jpg", "query": "Describe this image."} for n in range(1, 5)]
    (tmp_path / "query_all.json").write_text(json.dumps(queries))
    line = ["--benchmark", "amber", "--annotations", str(tmp_path), "--questions", str(tmp_path / "query_all.json")]
    for side, texts in {
        "base": ["Dogs, cats.", "A dog", "Yes", "Yes"],
        "aligned": ["A puppy", "A cat", "No", "Yes"],
    }.items():
        file = tmp_path / f"{side}.json"
        file.write_text(json.dumps([{"id": n, "response": text} for n, text in enumerate(texts, 1)]))
        line += [f"--{side}-answers", str(file)]
    out = tmp_path / "out"
    line += ["--text-tools", "builtin", "--bootstrap", "200", "--out", str(out)]
    assert main(["evaluate", "vlm", *line]) == 0
    # cats and dog of 3 nouns are not there: 2 / 3.001 = 66.6; F1 of No: 0 and 2 / 2.001 -> 1.0 / 1.001 = 99.9
    assert "CHAIR 66.60 -> 0.00" in capsys.readouterr().out
    sections = {
        (one["title"], one["rules"]): one["rows"] for one in json.loads((out / "results.json").read_text())["sections"]
    }
    assert ("descriptions", "exact words") in sections
    assert ("questions, relation", "strict") in sections
    assert sections["questions, existence", "official"][3]["base"]["value"] == 0
    assert main(["evaluate", "vlm", *line]) == 2
    assert "is not empty; name a new folder" in " ".join(capsys.readouterr().err.split())


def test_chair_of_stored_captions(tmp_path, capsys):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    instances = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 2, "category_id": 17}],
    }
    (annotations / "instances_val2014.json").write_text(json.dumps(instances))
    (annotations / "captions_val2014.json").write_text(json.dumps({"annotations": []}))
    (annotations / "synonyms.txt").write_text("dog, puppy\ncat, kitten\n")
    sides = {"base": ["A dog and a cat.", "A kitten."], "aligned": ["A puppy.", "A cat."]}
    line = []
    for side, captions in sides.items():
        file = tmp_path / f"{side}.jsonl"
        file.write_text("".join(json.dumps({"image_id": n, "caption": c}) + "\n" for n, c in enumerate(captions, 1)))
        line += [f"--{side}-answers", str(file)]
    out = tmp_path / "out"
    line += ["--benchmark", "chair", "--annotations", str(annotations), "--bootstrap", "200", "--out", str(out)]
    assert main(["evaluate", "vlm", *line]) == 0
    # 1 of 2 captions and 1 of 3 mentions; nothing after alignment; all that is there was found by both
    assert "CHAIRs 50.00 -> 0.00" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["sections"][0]["rows"]}
    assert rows["CHAIRi"]["base"]["value"] == pytest.approx(1 / 3)
    assert rows["object recall"]["aligned"]["value"] == 1
