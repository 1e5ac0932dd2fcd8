"""Model folders whose chat template fails, loops or leaves the text out."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from patience import COMMAND_S
from test_run_integration import command, environment

import agentwire
from agentwire.errors import ModelError, NackCode, RemoteProtocolError, RequestError
from agentwire.model.chat import chat_ids
from agentwire.model.prompting import compile_task
from agentwire.model.transformers import load_tokenizer
from agentwire.task.transcript import ChatMessage

LOOP = "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2
BROKEN = {
    "sandbox": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "process": ("{{ cycler.__init__.__globals__.os.system('id') }}", "unsafe"),
    "raises": ("{{ raise_exception('no \x1b[31muser turns') }}", "user turns"),
    "syntax": ("{% for m in messages %}{{ m", "end of template"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
    "division": ("{{ 1 / 0 }}", "division"),
    "loop": (LOOP + "{{ messages[0].content }}", "longer than"),
    "long": ("{{ messages[0].content }}{{ 'x' * 5000000 }}", "5,000,0"),
    "no Unicode": ("{{ messages[0].content }}\ud83d", "surrogate"),
    "nothing": ("{# a comment #}", "exactly once"),
    "constant": ("hello", "exactly once"),
    "twice": ("{{ messages[0].content }} {{ messages[0].content }}", "exactly once"),
    "changed": ("{{ messages[0].content | replace('{', '[') }}", "exactly once"),
    "a list": ([{"name": "x", "template": "{{ messages[0].content }}"}], "multiple chat templates"),
    "a number": (5, ""),
}  # fmt: skip


def model_with(template: Any, like: Path, folder: Path) -> Path:
    shutil.copytree(like, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


def scenario(folder: Path, receiver: Path, sender: Path, **more: Any) -> Path:
    agents = {
        "ada": {"model": str(sender), "device": "cpu", "threads": 1},
        "bob": {"model": str(receiver), "device": "cpu", "threads": 1},
    }
    file = folder / "scenario.yaml"
    wires = [{"from": "ada", "to": "bob"}]
    file.write_text(json.dumps({"name": "t", "agents": agents, "wires": wires, **more}))
    return file


@pytest.mark.integration
@pytest.mark.parametrize("case", ["sandbox", "raises", "loop", "no Unicode", "nothing", "twice"])
def test_a_run_names_the_chat_template(
    tmp_path: Path, tiny_llama: Path, tiny_gemma: Path, case: str
) -> None:
    template, word = BROKEN[case]
    model = model_with(template, tiny_llama, tmp_path / "model")
    tiny.write_rows(tmp_path / "rows.jsonl", 4, 1)
    task = {"dataset": "sst2", "path": "rows.jsonl", "split": "test"}
    scenario(tmp_path, model, tiny_gemma, task=task)
    done = subprocess.run(
        command("run", "scenario.yaml", "--methods", "receiver_direct"),
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error:", "next:"))]
    assert [line.split(":")[0] for line in errors] == ["error", "next"]
    assert word in errors[0] and ".." not in errors[0], errors
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr
    assert "restarts" not in done.stderr and "\x1b" not in done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("case", ["sandbox", "nothing", "twice"])
def test_requests_name_it_and_the_agent_lives_on(
    tmp_path: Path, tiny_llama: Path, tiny_gemma: Path, case: str
) -> None:
    model = model_with(BROKEN[case][0], tiny_llama, tmp_path / "model")
    chat = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "c"}])  # fmt: skip
    calls: list[tuple[str, dict[str, Any]]] = [
        ("a film", {"prompt": "Good?", "labels": ["yes", "no"]}),
        ("a film", {"prompt": "Go on:", "generate": 2}),
        (chat, {"prompt": "", "generate": 2, "form": "chat"}),
    ]

    async def go() -> None:
        async with agentwire.open(scenario(tmp_path, model, tiny_gemma)) as wire:
            for text, options in calls:
                with pytest.raises(RequestError, match="chat template") as refused:
                    await wire.direct("bob", text, **options)
                assert refused.value.code is NackCode.UNSUPPORTED
            await wire.direct("ada", "a film", prompt="Good?", labels=["yes", "no"])
            assert wire.agents["bob"].restarts == 0

    asyncio.run(go())


@pytest.mark.parametrize("case", BROKEN)
def test_no_task_is_prepared_with_it(tiny_llama: Path, case: str, tmp_path: Path) -> None:
    template, word = BROKEN[case]
    tokenizer = load_tokenizer(model_with(template, tiny_llama, tmp_path / "model"))
    with pytest.raises(ModelError, match="chat template cannot be used: ") as refused:
        compile_task(tokenizer, tiny.TASK)
    assert word in refused.value.message and ".." not in refused.value.message


def test_an_empty_template_is_none(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_with("", tiny_llama, tmp_path / "model"))
    plain = load_tokenizer(tiny_llama)
    plain.chat_template = None
    assert compile_task(tokenizer, tiny.TASK) == compile_task(plain, tiny.TASK)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | length }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content }}",
    ],
)
def test_a_conversation_is_read_once_and_in_order(tiny_llama: Path, template: str) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = template
    messages = [ChatMessage("user", "a"), ChatMessage("assistant", "b"), ChatMessage("user", "c")]
    with pytest.raises(RemoteProtocolError, match="chat template"):
        chat_ids(tokenizer, messages)


def test_a_template_is_ended_while_it_loops(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = LOOP
    start = time.monotonic()
    with pytest.raises(RemoteProtocolError, match="longer than 5 s"):
        chat_ids(tokenizer, [ChatMessage("user", "a")])
    assert time.monotonic() - start < COMMAND_S
