"""The server: concurrent clients get the replies they get alone; a bad request is one error."""

from __future__ import annotations

import base64
import io
import json
import queue
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn

from sf.attention.decoding import greedy
from sf.attention.decoding.per_row import RowRules
from sf.data.vision import encode
from sf.errors import ConfigError, EnvironmentFault, UnsupportedModelError
from sf.mini.scenes import render, sample_scene
from sf.models import build_tiny
from sf.serving import Engine, Served, build_app, load, requests, serve
from sf.serving.engine import Request
from sf.serving.requests import chat_body, conversation
from sf.serving.served import method_of

TEXT = "What color is the triangle? red blue green yellow how many shapes are there"
RATIO = 0.25


def picture(number: int) -> str:
    """A data URL of a scene whose size depends on the number."""
    rng = np.random.default_rng(number)
    image = render(sample_scene(rng, rows=2 + number % 3, cols=3))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def body(number: int, **values: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": picture(number)}},
        {"type": "text", "text": f"What color is the triangle? {number}"},
    ]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 9 + number, **values}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("serving") / "tiny"
    for part in build_tiny("qwen2_5_vl", [TEXT] * 3, seed=0):
        part.save_pretrained(folder)
    served = load(str(folder), token_ratio=RATIO, device="cpu")
    # Random weights would repeat one token, or write bytes that are not text.
    decode, settings = served.processor.tokenizer.decode, served.model.generation_config
    size = served.model.config.get_text_config().vocab_size
    settings.repetition_penalty = 1.5
    settings.suppress_tokens = [
        i for i in range(size) if not re.fullmatch(r" ?[a-z]+", decode([i]))
    ]
    return served


@pytest.fixture(scope="module")
def engine(served: Served) -> Iterator[Engine]:
    engine = Engine(served.model, served.method, slots=4, max_new_tokens=40)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def client(served: Served, engine: Engine) -> Iterator[httpx.Client]:
    """A client of a server on a real socket."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(served, engine), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    headers = {"x-request-id": "the same"}  # clients choose it: replies must not depend on it
    with httpx.Client(base_url=address, timeout=120, headers=headers) as client:
        while not server.started:
            thread.join(0.05)
        yield client
    server.should_exit = True
    thread.join(30)


def alone(served: Served, request: dict[str, Any]) -> tuple[str, int]:
    """The reply of the model by itself, and its number of tokens."""
    turns = conversation(chat_body(request))
    inputs = encode(served.processor, [turns], served.vision)
    sequences, _ = greedy(
        served.model,
        inputs,
        served.method.apply(served.model),
        decodes_densely=True,
        max_new_tokens=request["max_tokens"],
    )
    tokens = sequences[0, inputs["input_ids"].shape[1] :]
    return served.processor.decode(tokens, skip_special_tokens=True).strip(), len(tokens)


def ask(client: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: httpx.Client, request: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
    """Text, last chunk and number of chunks with text."""
    chunks = []
    with client.stream("POST", "/v1/chat/completions", json={**request, "stream": True}) as got:
        lines = [line for line in got.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    return "".join(filter(None, texts)), chunks[-1], sum(map(bool, texts))


def test_concurrent_clients_get_what_they_get_alone(
    client: httpx.Client, served: Served, engine: Engine
) -> None:
    """Eight at a time on four slots, half of them streaming, with various prompts and limits."""
    requests = [body(number) for number in range(8)]
    expected = [alone(served, request) for request in requests]
    assert len({text for text, _ in expected}) == 8
    engine.most_at_once = 0

    pieces = []

    def reply(number: int) -> tuple[str, int, float]:
        if number % 2:
            text, last, count = streamed(client, requests[number])
            pieces.append(count)
        else:
            last = ask(client, requests[number])
            text = last["choices"][0]["message"]["content"]
        return text.strip(), last["usage"]["completion_tokens"], last["token_ratio"]

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(reply, range(8)))
    assert [(text, count) for text, count, _ in replies] == expected
    assert all(abs(ratio - RATIO) < 0.05 for _, _, ratio in replies)
    assert engine.most_at_once > 1  # else nothing was concurrent
    assert max(pieces) > 1, pieces  # text came in pieces


def test_sampling_follows_its_seed_and_no_other_row(client: httpx.Client) -> None:
    hot = [body(1, temperature=1.5, top_p=0.9, seed=seed) for seed in (1, 2)]
    first = [ask(client, request)["choices"][0]["message"]["content"] for request in hot]
    assert first[0] != first[1]
    with ThreadPoolExecutor(4) as pool:
        both = list(pool.map(lambda request: ask(client, request), [*hot, body(3), body(4)]))
    assert [reply["choices"][0]["message"]["content"] for reply in both[:2]] == first
    cold = ask(client, body(1, temperature=0.0))
    assert cold["choices"] == ask(client, body(1))["choices"]


def test_a_client_that_leaves_frees_its_slot(client: httpx.Client, engine: Engine) -> None:
    with client.stream("POST", "/v1/chat/completions", json=body(2, stream=True)) as got:
        next(got.iter_lines())
    replies = [ask(client, body(number)) for number in range(3)]
    assert len(replies) == 3
    assert engine._loop.free == 4


def test_several_turns_and_system_messages(client: httpx.Client, served: Served) -> None:
    request = body(0)
    talk = [
        {"role": "system", "content": "red or blue"},
        *request["messages"],
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many"},
    ]
    request["messages"] = talk
    text, _ = alone(served, request)
    assert ask(client, request)["choices"][0]["message"]["content"].strip() == text


BAD = [
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 41}, 400, "max_tokens"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"temperature": -1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 2}, 400, "n"),
    ({"stop": ["x"]}, 400, "stop"),
    ({"tools": []}, 400, "tools"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"model": "another"}, 404, "model"),
]


@pytest.mark.parametrize(("change", "status", "field"), BAD)
def test_a_bad_request_is_one_clear_error(
    client: httpx.Client, change: dict[str, Any], status: int, field: str
) -> None:
    response = client.post("/v1/chat/completions", json={**body(0), **change})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert field.split(".")[-1] in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1/x.png", "fetches no URLs"),
        ("file:///etc/hostname", "reads no files"),
        ("/etc/hostname", "reads no files"),
        ("data:image/png;base64,@@", "base64"),
        ("data:image/png;base64,AAAA", "image_url"),
    ],
)
def test_a_picture_that_cannot_be_read_is_said(client: httpx.Client, url: str, named: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]
    answer = client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    )
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_other_bodies_and_routes(client: httpx.Client, served: Served) -> None:
    for content in (b"{", b"[1]", b"\xff"):
        answer = client.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        assert "body" in answer.json()["error"]["message"]
    control = {"messages": [{"role": "user", "content": "a <|im_end|> b"}]}
    answer = client.post("/v1/chat/completions", json=control)
    assert answer.status_code == 400
    assert "control token" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 404
    assert client.get("/nowhere").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [served.name]
    with_name = ask(client, body(0, model=served.name))
    assert with_name["model"] == served.name


def test_the_client_library_reads_the_replies(client: httpx.Client) -> None:
    from openai import BadRequestError, OpenAI

    library = OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "What color"}]
    reply = library.chat.completions.create(model="tiny", messages=messages, max_tokens=5)
    chunks = library.chat.completions.create(
        model="tiny", messages=messages, max_tokens=5, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == reply.choices[0].message.content.strip() != ""
    with pytest.raises(BadRequestError, match="max_tokens"):
        library.chat.completions.create(model="tiny", messages=messages, max_tokens=0)


def test_an_error_in_the_model_ends_its_requests_only(
    client: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = type(engine._loop.step)

    message = 'no "memory"\tleft\n'

    def broken(self: Any) -> None:
        raise torch.OutOfMemoryError(message)

    with monkeypatch.context() as patch:
        patch.setattr(step, "__call__", broken)
        assert client.post("/v1/chat/completions", json=body(0)).status_code == 500
        stream = client.post("/v1/chat/completions", json=body(0, stream=True))
    last = stream.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: ")) == {"error": message}
    assert ask(client, body(0))["choices"]


def test_a_reply_that_cannot_be_handed_over_ends_alone(
    client: httpx.Client, served: Served, engine: Engine
) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "red"}]}
    failures = queue.Queue[Exception]()

    def broken(tokens: list[int], ended: bool) -> bool:
        raise ValueError("no text")

    inputs = encode(served.processor, [[turn]], served.vision)
    engine.submit(Request(inputs, 30, RowRules(), lambda _: None, broken, failures.put))
    assert str(failures.get(timeout=60)) == "no text"
    assert ask(client, body(0))["choices"]
    assert failures.empty()  # it was told once


def test_a_picture_that_crashes_its_decoder_ends_alone(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import crashing_decoders

    monkeypatch.setattr(requests, "read_picture", crashing_decoders.read_picture)
    monkeypatch.setattr(requests, "_SECONDS", 1.0)
    for content, named in ((b"abort", "crashed"), (b"hang", "within 1 s")):
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        bad = body(0)
        bad["messages"][0]["content"][0]["image_url"]["url"] = url
        answer = client.post("/v1/chat/completions", json=bad)
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
    assert ask(client, body(0))["choices"]


def test_no_client_ends_the_server(client: httpx.Client) -> None:
    assert client.post("/reset").status_code == 200
    assert ask(client, body(0))["choices"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"retention_p": 0.9, "full": True}, "exclude each other"),
        ({"retention_p": 1.5}, "p = 1.5"),
        ({"token_ratio": 0.0}, r"\(0, 1\]"),
    ],
)
def test_choices_of_attention_are_checked(
    served: Served, values: dict[str, Any], named: str
) -> None:
    chosen = {"retention_p": None, "token_ratio": None, "full": False, **values}
    with pytest.raises(ConfigError, match=named):
        method_of(served.model, **chosen)


def test_what_cannot_be_served_is_refused(served: Served, tmp_path: Path) -> None:
    from sf.baselines import build

    with pytest.raises(UnsupportedModelError, match="twilight"):
        Engine(served.model, build("twilight"))
    with pytest.raises(ConfigError, match="at least 1"):
        Engine(served.model, served.method, slots=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        engine = Engine(served.model, served.method, slots=1, max_new_tokens=2)
        with pytest.raises(EnvironmentFault, match="give another --port"):
            serve(served, engine, "127.0.0.1", taken.getsockname()[1])
        engine.stop()
