"""`plan` and `support`: what would be done, without running a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch
import transformers

from tests import zoo
from tests.tiny import byte_tokenizer


def test_plan_says_what_ask_would_do_without_loading_weights(run, model_folder, long, monkeypatch):
    limit = ("--memory-limit", "64MiB")
    _, out, _ = run("ask", long, "-q", "Why?", "--model", model_folder, "--json", *limit)
    asked = json.loads(out)["plan"]
    assert asked["memory"]["devices"][0]["weights_bytes"] > 0
    forbid_weights(monkeypatch)
    code, out, err = run("plan", long, "-q", "Why?", "--model", model_folder, "--json", *limit)
    assert (code, err) == (0, "")
    assert json.loads(out)["plan"] == asked
    code, out, err = run("plan", long, "--model", model_folder)
    assert (code, err) == (0, "")
    assert f"{asked['prompt_tokens']} tokens of prompt" in out


def forbid_weights(monkeypatch):
    """Make every way of loading weights fail."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", refuse, raising=False)


def test_plan_needs_no_weights_to_be_there(run, model_folder, long, tmp_path):
    folder = tmp_path / "no weights"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    plans = []
    for model in (model_folder, folder):
        code, out, _ = run("plan", long, "--model", model, "--json", "--memory-limit", "64MiB")
        assert code == 0
        plans.append(json.loads(out)["plan"])
    assert plans[0] == plans[1]


def test_plan_says_what_memory_lacks_and_what_would_help(run, model_folder, long, short):
    code, out, err = run("plan", long, short, "--model", model_folder, "--memory-limit", "1.5MiB")
    assert (code, out) == (2, "")
    assert "on cpu" in err
    assert "1.5 MiB for them" in err
    assert "take a smaller model or a device with more memory" in err
    code, out, _ = run("plan", long, "--model", model_folder, "--memory-limit", "cpu=1GiB")
    assert code == 0
    assert "Memory on cpu: 126 KiB of weights" in out
    assert "of 1024 MiB available" in out or "of 1 GiB available" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["much"], "memory must be a positive number of bytes"),
        (["0"], "memory must be a positive number of bytes"),
        (["cuda:7=1GiB"], "--memory-limit names cuda:7, and the model is on cpu"),
        (["1GiB", "2GiB"], "given twice"),
        (["cpu=1GiB", "2GiB"], "must name a device each time"),
    ],
)
def test_a_limit_of_memory_that_makes_no_sense_is_refused(run, model_folder, short, given, message):
    limits = [part for limit in given for part in ("--memory-limit", limit)]
    code, _, err = run("plan", short, "--model", model_folder, *limits)
    assert code == 2
    assert message in err


def test_plan_puts_files_in_groups(run, model_folder, tmp_path):
    files = []
    for number in range(7):
        files.append(tmp_path / f"part {number}.txt")
        files[-1].write_text(f"Part {number}. " + "x" * 50)
    arguments = (*files, "--model", model_folder, "--groups", "--max-group-size", "4")
    code, out, _ = run("plan", *arguments, "--json")
    assert code == 0
    groups = json.loads(out)["groups"]
    assert 1 < len(groups) < 7
    names = [name for group in groups for name in group["documents"]]
    assert len(names) == len(set(names)) == 7
    assert run("plan", *arguments)[1].startswith(f"1 of {len(groups)}: ")
    files[3].write_text("y" * 3000)
    code, _, err = run("plan", *arguments)
    assert code == 2
    assert "part 3" in err
    assert "fits no prompt by itself" in err


def test_the_exact_rule_and_turns_change_the_plan(run, model_folder, long):
    def plan(*more):
        code, out, _ = run("plan", long, "--model", model_folder, "--json", *more)
        assert code == 0
        return json.loads(out)["plan"]

    assert plan("--rule", "exact")["group_size"] < plan()["group_size"]
    assert plan("--turns", "3")["total_tokens"] > plan()["total_tokens"]


@pytest.mark.parametrize("weights", [[], ["--weights"]], ids=["configuration", "weights"])
def test_support_goes_layer_by_layer(run, model_folder, weights):
    code, out, err = run("support", model_folder, *weights)
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM: supported" in out
    assert out.count(": extended") == 2
    code, out, _ = run("support", model_folder, "--json", *weights)
    assert json.loads(out)["supported"] is True


def test_support_of_a_model_that_can_not_be_extended_is_exit_code_1(run, tmp_path):
    transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=300).save_pretrained(tmp_path)
    code, out, err = run("support", tmp_path)
    assert (code, err) == (1, "")
    assert "refused" in out


@pytest.mark.parametrize("device", ["warp9", "", "meta"])
def test_plan_knows_no_device_that_torch_does_not(run, model_folder, short, device):
    code, out, err = run("plan", short, "--model", model_folder, "--device", device)
    assert (code, out) == (2, "")
    assert "torch has none of that name; take cpu, cuda, cuda:1, ... or auto\n" in err


HEAVY = (
    *(
        "transformers.modeling_utils",
        "transformers.generation.utils",
        "transformers.processing_utils",
    ),
    *("transformers.models.gemma3.modeling_gemma3", "torch._dynamo", "torch.distributed.tensor"),
    *("selfextend_rag.engine", "selfextend_rag.model", "selfextend_rag.cache", "matplotlib"),
)


def test_the_second_plan_imports_nothing_that_builds_models(run, short, tmp_path, monkeypatch):
    """It took 4.6 s of CPU time on one page, most of it for importing what it did not use.

    Llama's own configuration imports much of that, so this is another family.
    """
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path / "home"))
    folder = tmp_path / "gemma"
    zoo.build("gemma3_text").config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    arguments = ["plan", short, "--model", str(folder), "--json", "--memory-limit", "1GiB"]
    first = run(*arguments)
    assert first[0] == 0
    program = f"""
        import sys
        import torch, transformers
        before = len(sys.modules)
        from selfextend_rag.cli import main
        assert main({arguments!r}) == 0
        print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
        print(len(sys.modules) - before, file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120,
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    heavy, imported = done.stderr.splitlines()
    assert heavy == "[]"
    assert int(imported) < 400
    assert done.stdout == first[1]
