"""``mmalign doctor``: units of beta, counted activations, and what it says about recipes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmalign.cli.__main__ import main
from mmalign.doctor import Level, equivalents, examine, predict_memory
from mmalign.doctor.activations import counting_saved_bytes, fused_attention
from mmalign.doctor.betas import beta_findings
from mmalign.doctor.laws import law_findings
from mmalign.doctor.live import LiveBytes
from mmalign.doctor.memory import state_bytes
from mmalign.losses import dpo, mapo
from mmalign.training.config import Config
from mmalign.training.image_data import open_head
from mmalign.training.image_model import checked_objective
from mmalign.training.loading import load_config
from tests.data.making_data import FIXTURE
from tests.tiny_models import tiny_sd3, tiny_sd15, tiny_sdxl, tiny_unet_sdxl

VALUES = 4 * 8 * 8


def errors() -> tuple[torch.Tensor, ...]:
    """Squared errors [batch, 4, 8, 8] of policy and reference on both sides, float64."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(4))


def test_one_beta_in_everybodys_units_is_one_loss() -> None:
    """Each published logit, written as its code writes it, with the beta that the table gives for ours."""
    chosen, rejected, ref_chosen, ref_rejected = errors()

    def mean(value: torch.Tensor) -> torch.Tensor:
        return value.flatten(1).mean(1)

    def total(value: torch.Tensor) -> torch.Tensor:
        return value.flatten(1).sum(1)

    same = equivalents(5000.0, VALUES)
    ours = dpo(-0.5 * (mean(chosen) - mean(ref_chosen)), -0.5 * (mean(rejected) - mean(ref_rejected)), beta=same.ours)
    delta = (mean(chosen) - mean(rejected)) - (mean(ref_chosen) - mean(ref_rejected))
    total_margin = (total(ref_chosen) - total(chosen)) - (total(ref_rejected) - total(rejected))
    published = {
        "Salesforce train.py, diffusers SDXL": -F.logsigmoid(-0.5 * same.salesforce * delta),
        "flow_grpo": -F.logsigmoid(-0.5 * same.flow_grpo * delta),
        "diffusers SD1.5": -F.logsigmoid(-1.0 * same.diffusers_sd15 * delta),
        "SimpleTuner": -F.logsigmoid(0.5 * same.simpletuner * total_margin),
    }
    for name, loss in published.items():
        assert torch.allclose(loss, ours, rtol=1e-9), name
    gain = mean(ref_chosen) - mean(chosen)
    kto_logit = same.diffusion_kto * gain
    assert torch.allclose(kto_logit, same.ours * (-0.5 * (mean(chosen) - mean(ref_chosen))), rtol=1e-12)
    assert same.on_the_sum == same.simpletuner == 5000 / VALUES


def test_mapos_slope_is_that_of_the_beta_it_is_said_to_be() -> None:
    """For small errors MaPO's sigmoid has the logit beta (logp_chosen - logp_rejected), beta = num_timesteps * snr."""
    steps = equivalents(500.0, VALUES).mapo_num_timesteps
    assert steps == 1000
    chosen, rejected = torch.tensor([-1e-5], dtype=torch.float64), torch.tensor([-3e-5], dtype=torch.float64)
    ratio = (mapo(chosen, rejected, beta=1.0, snr=0.5, num_timesteps=int(steps)) + 2 * chosen).exp() ** -1
    logit = torch.log(ratio / (1 - ratio))
    assert float(logit) == pytest.approx(500.0 * 2e-5, rel=1e-3)


@pytest.mark.parametrize(("beta", "level"), [(1e6, Level.warning), (5000, Level.note), (1.0, Level.warning)])
def test_a_beta_that_saturates_or_does_nothing_is_warned_of(beta: float, level: Level) -> None:
    [found] = beta_findings([{"loss": "dpo", "beta": beta}], 65536)
    assert found.level is level
    assert (found.change == "objective.0.beta=auto") == (level is Level.warning)
    assert beta_findings([{"loss": "sft"}], 65536) == []


def test_the_meta_device_counts_what_a_real_step_holds() -> None:
    """The same bytes on the meta device as on the CPU, forward and backward, up to how attention's backward works."""
    counts = []
    for device in ("cpu", "meta"):
        unet = tiny_unet_sdxl().to(device).train()
        added = {"text_embeds": torch.zeros(2, 16, device=device), "time_ids": torch.zeros(2, 6, device=device)}
        inputs = torch.zeros(2, 4, 16, 16, device=device)
        text = torch.zeros(2, 77, unet.config.cross_attention_dim, device=device)
        weights = [*unet.parameters(), *unet.buffers()]
        with fused_attention(), counting_saved_bytes(unet) as saved, LiveBytes(weights) as live:
            output = unet(inputs, torch.tensor(5, device=device), text, added_cond_kwargs=added).sample
            kept = saved()
            output.sum().backward()
        gradients = sum(parameter.numel() * 4 for parameter in unet.parameters())
        assert live.peak >= max(kept, gradients)
        counts.append((kept, live.peak))
    assert counts[0][0] == counts[1][0] > 100_000
    assert counts[0][1] == pytest.approx(counts[1][1], rel=0.02)


def test_the_state_that_adafactor_keeps_is_counted() -> None:
    from transformers import Adafactor

    module = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Linear(8, 16))
    optimizer = Adafactor(module.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)
    module[1](module[0](torch.randn(1, 4, 3, 3)).flatten(1)).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(value.numel() * value.element_size() for value in kept if value.ndim)
    assert state_bytes("adafactor", module.parameters()) == held
    assert state_bytes("adamw", module.parameters()) == 8 * sum(weight.numel() for weight in module.parameters())


def test_live_bytes_are_freed_and_known_ones_count_for_nothing() -> None:
    weight = torch.zeros(1000)
    with LiveBytes([weight]) as live:
        one = weight + 1
        view = one[:10]
        assert live.now == 4000
        del one
        assert live.now == 4000
        del view
        assert live.now == 0
        weight.view(10, 100)
        live.add(8)
    assert (live.now, live.peak) == (8, 4000)


def recipe(folder: Path, *overrides: str, name: str = "playground/dpo") -> Config:
    base = [f"data.path={FIXTURE}", "data.held_out=0.3", f"output={folder / 'run'}"]
    given = [] if any(o.startswith("training.batch_size") for o in overrides) else ["training.batch_size=2"]
    return load_config(name, [*base, *given, *overrides])


def test_memory_adds_up_and_moves_with_the_settings(tmp_path: Path) -> None:
    plain = predict_memory(recipe(tmp_path))
    parameters = plain.weights // 4
    assert plain.reference == plain.weights
    assert (plain.gradients, plain.optimizer) == (4 * parameters, 8 * parameters)
    assert plain.total == sum(plain.parts.values())
    assert plain.encoders == 0  # data.cache: memory
    twice = predict_memory(recipe(tmp_path, "training.batch_size=4"))
    assert twice.activations > plain.activations
    assert predict_memory(recipe(tmp_path, "data.cache=none")).encoders > 0
    lora = predict_memory(recipe(tmp_path, "model.lora.rank=4"))
    assert lora.reference == 0
    assert lora.optimizer < plain.optimizer / 10
    saving = predict_memory(recipe(tmp_path, "training.gradient_checkpointing=true"))
    assert saving.activations < plain.activations
    assert predict_memory(recipe(tmp_path, "training.ema.decay=0.9")).average == plain.weights


@pytest.mark.parametrize("make", [tiny_sd15, tiny_sdxl, tiny_sd3])
def test_every_kind_of_model_is_examined_to_the_end(make, tmp_path: Path) -> None:
    make(tmp_path / "model")
    overrides = [f"model.name={tmp_path / 'model'}", "data.resolution=32", "evaluation.pictures=null"]
    found = list(examine(recipe(tmp_path, *overrides)))
    assert [finding for finding in found if finding.level is Level.error] == []
    about = {finding.about for finding in found}
    assert {"model", "data", "prompts", "objective.0 (dpo)", "schedule", "memory", "cache", "step 0"} <= about
    assert sum("every log-ratio is 0" in finding.text for finding in found) == 1
    assert not (tmp_path / "run").exists()


def test_a_reference_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.references import FrozenReference

    config = recipe(tmp_path)
    original = FrozenReference.__init__

    def spoilt(self: FrozenReference, module: torch.nn.Module) -> None:
        original(self, module)
        with torch.no_grad():
            next(self.module.parameters()).add_(0.01)

    monkeypatch.setattr(FrozenReference, "__init__", spoilt)
    found = law_findings(config, open_head(config, checked_objective(config)))
    assert found[0].level is Level.error
    assert "differ before any training" in found[0].text


def test_the_command_says_what_to_change_and_finds_cut_prompts(tmp_path: Path, capsys) -> None:
    line = ["doctor", "playground/dpo", f"data.path={FIXTURE}", "data.held_out=0.3", "training.batch_size=2"]
    assert main([*line, "objective.0.beta=10000000", f"output={tmp_path / 'run'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the sigmoid saturates" in said
    assert "to try: mmalign train playground/dpo" in said
    assert "objective.0.beta=auto" in said
    assert "more than 32 tokens" in said
    assert main(["doctor", "playground/dpo", "objective.0.loss=dpoo"]) == 2
