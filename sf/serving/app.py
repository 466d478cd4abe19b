"""The server: transformers' application around this package's engine."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.attention import Budget
from sf.attention.trained import record_of
from sf.baselines import resolve, resolve_point
from sf.baselines.method import Method
from sf.errors import ConfigError, EnvironmentFault, SparsityForcingError
from sf.extras import extra
from sf.sections import Vision
from sf.selection import TopP
from sf.serving.engine import Engine, Request
from sf.serving.requests import UnknownModel, chat_body, conversation

with extra("serve"):
    import uvicorn
    from fastapi import FastAPI
    from fastapi.exceptions import HTTPException, RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as AnyHTTPException
try:
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import (
        BaseGenerateManager,
        DirectStreamer,
        _GenerationCancelled,
        _StreamError,
    )
except ImportError as error:
    import transformers

    rule = "has no server of the form that is built on (transformers.cli.serving)"
    raise EnvironmentFault(
        "transformers", transformers.__version__, rule, "install transformers 5.23 or later"
    ) from error

__all__ = ["Served", "build_app", "load", "serve"]


@dataclass(frozen=True)
class Served:
    """A loaded model and how it is run.

    Attributes:
        name: that clients call it by.
        model, processor: the checkpoint.
        method: that prompts are read under.
        vision: bounds of pictures.
    """

    name: str
    model: Any
    processor: Any
    method: Method
    vision: Vision


def method_of(source: Any, p: float | None, token_ratio: float | None, full: bool) -> Method:
    """What a checkpoint is served under; without a choice what it was trained with.

    Raises:
        ConfigError: several choices, or a value out of range.
        UnsupportedModelError: see `sf.baselines.resolve`.
    """
    given = [name for name, value in (("p", p), ("token-ratio", token_ratio)) if value is not None]
    given += ["full"] if full else []
    if len(given) > 1:
        raise ConfigError(" and ".join(given), None, "exclude each other", "give one of them")
    if full:
        return resolve(source, "full")
    if token_ratio is not None:
        return _keeping(source, token_ratio)
    return resolve(source) if p is None else resolve_point(source, p)


def _keeping(source: Any, token_ratio: float) -> Method:
    """A share of the tokens: by the curve that a trained checkpoint carries, else by top-k."""
    if record_of(source) is None:
        return resolve(source, "top_k", token_ratio)
    policy = Budget(token_ratio).policy(source)
    if isinstance(policy, TopP):
        return resolve_point(source, float(policy.p))  # type: ignore[arg-type]
    return resolve(source, "top_k", token_ratio)


def load(
    checkpoint: str,
    *,
    p: float | None = None,
    token_ratio: float | None = None,
    full: bool = False,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_pixels: int | None = None,
) -> Served:
    """Load a checkpoint for serving.

    Raises:
        ConfigError, DataError, EnvironmentFault, UnsupportedModelError: before weights are read
            wherever that can be known.
    """
    from sf.ask import pick_runtime
    from sf.ask.media import bounds
    from sf.models import load_model, load_processor
    from sf.models.load import load_config

    runtime = pick_runtime(device, dtype)
    vision = bounds("image", max_pixels)
    source = Path(checkpoint) if Path(checkpoint).is_dir() else checkpoint
    method = method_of(load_config(source, revision), p, token_ratio, full)
    processor = load_processor(source, revision=revision)
    model = load_model(source, dtype=runtime.dtype, device=runtime.device, revision=revision)
    name = Path(checkpoint).resolve().name if isinstance(source, Path) else checkpoint
    return Served(name, model, processor, method, vision)


class _Settings:
    """What transformers' handler reads of a generation config, and the request's own rules."""

    def __init__(self, max_new_tokens: int, rules: Any) -> None:
        self.max_new_tokens, self.rules = max_new_tokens, rules


class _Manager(BaseGenerateManager):
    """transformers' interface to what generates."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ratios: dict[str, float] = {}

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], DirectStreamer]:
        """See transformers."""
        import torch

        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        tokenizer = processor.tokenizer._tokenizer
        streamer = DirectStreamer(tokenizer, loop, queue, response_parser=response_parser)
        streamer.put(inputs["input_ids"])  # the prompt, which it skips

        def made(tokens: list[int], ended: bool) -> bool:
            try:
                if tokens:
                    streamer.put(torch.tensor(tokens))
            except _GenerationCancelled:
                return False
            if ended:
                streamer.end()
            return True

        def failed(error: Exception) -> None:
            text = str(error).replace("\\", "\\\\").replace('"', "'").replace("\n", " ")
            loop.call_soon_threadsafe(queue.put_nowait, _StreamError(text))

        self.engine.submit(self._request(inputs, gen_config, request_id, made, failed))
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """See transformers."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[int]] = loop.create_future()
        answer: list[int] = []

        def settle(error: Exception | None) -> None:
            if not future.done():
                future.set_result(answer) if error is None else future.set_exception(error)

        def made(tokens: list[int], ended: bool) -> bool:
            answer.extend(tokens)
            if ended:
                loop.call_soon_threadsafe(settle, None)
            return not future.cancelled()

        def failed(error: Exception) -> None:
            loop.call_soon_threadsafe(settle, error)

        self.engine.submit(self._request(inputs, gen_config, request_id, made, failed))
        tokens = await future
        text = processor.decode(tokens, skip_special_tokens=True)
        return text, inputs["input_ids"].shape[-1], tokens

    def _request(
        self, inputs: Any, settings: Any, request_id: str, made: Any, failed: Any
    ) -> Request:
        def begun(ratio: float) -> None:
            self.ratios[request_id] = ratio

        return Request(inputs, settings.max_new_tokens, settings.rules, begun, made, failed)

    def stop(self) -> None:
        """End the engine's thread."""
        self.engine.stop()


class _Models:
    """transformers' model manager for the one model that is served."""

    def __init__(self, served: Served, manager: _Manager) -> None:
        self.served, self.manager = served, manager
        self.force_model = served.name
        self.loaded = int(time.time())

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def get_gen_models(self) -> list[dict[str, Any]]:
        entry = {"id": self.served.name, "object": "model", "created": self.loaded}
        return [{**entry, "owned_by": "local"}]

    async def load_model_streaming(self, model_id: str, **_: Any) -> Any:
        """The model is there already."""
        self.check(model_id)
        yield f'data: {{"status": "ready", "model": "{self.served.name}", "cached": true}}\n\n'

    def check(self, name: str | None) -> None:
        """
        Raises:
            UnknownModel: it is not the name of the model.
        """
        if name not in (None, self.served.name):
            remedy = f"ask for {self.served.name}, or leave the name out"
            raise UnknownModel("model", name, "is not served here", remedy)

    def shutdown(self) -> None:
        """When the server ends."""
        self.manager.stop()


class _State:
    """transformers' generation state: always the one engine."""

    @staticmethod
    def is_cb_alive() -> bool:
        return True


class _Chat(ChatCompletionHandler):
    """POST /v1/chat/completions: our checks and encoding, transformers' replies."""

    def __init__(self, served: Served, manager: _Manager, models: _Models) -> None:
        super().__init__(models, _State())  # type: ignore[arg-type]
        self.served, self.manager, self.models = served, manager, models
        self._encoding = threading.Lock()  # a fast tokenizer is changed by its calls

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """See transformers.

        Raises:
            SparsityForcingError: a request that cannot be answered; before any work of the model.
        """
        asked = chat_body(body)
        self.models.check(asked.model)
        served = self.served
        settings: Any = _Settings(
            asked.new_tokens(self.manager.engine.max_new_tokens),
            asked.rules(served.model.generation_config),
        )
        inputs = await asyncio.to_thread(self._encode, asked)
        self._check_length(inputs["input_ids"].shape[-1], settings.max_new_tokens)
        common = (request_id, served.model, served.processor, served.name, inputs, settings)
        if asked.stream:
            return self._streaming(*common, gen_manager=self.manager)
        try:
            return await self._non_streaming(*common, gen_manager=self.manager)
        except (SparsityForcingError, HTTPException):
            raise
        except Exception as error:  # of memory, of a kernel: the server goes on
            logging.getLogger("sf.serving").error("a request failed", exc_info=error)
            raise HTTPException(500, f"The server failed: {type(error).__name__}.") from error

    def _encode(self, asked: Any) -> Any:
        from sf.data.vision import encode

        turns = conversation(asked)
        with self._encoding:
            device = str(self.served.model.device)
            return encode(self.served.processor, [turns], self.served.vision, device)

    def _check_length(self, prompt: int, new: int) -> None:
        most = self.served.model.config.get_text_config().max_position_embeddings
        if prompt + new > most:
            rule = f"with max_tokens {new} it exceeds the model's {most} positions"
            raise ConfigError("prompt tokens", prompt, rule, "shorten the prompt or the reply")

    def _build_completion(self, request_id: str, *args: Any, **options: Any) -> dict[str, Any]:
        ratio = self.manager.ratios.pop(request_id, None)
        return {**super()._build_completion(request_id, *args, **options), "token_ratio": ratio}

    def _build_chunk_sse(self, request_id: str = "", *args: Any, **options: Any) -> str:
        text = super()._build_chunk_sse(request_id, *args, **options)
        if options.get("finish_reason") is None:
            return text
        ratio = self.manager.ratios.pop(request_id, None)
        return f'{text.rstrip()[:-1]},"token_ratio":{ratio or "null"}}}\n\ndata: [DONE]\n\n'


class _Elsewhere:
    """A route of transformers' server that this one does not have."""

    async def handle_request(self, *_: Any) -> Any:
        raise HTTPException(404, "this server answers POST /v1/chat/completions only")


def build_app(served: Served, engine: Engine) -> FastAPI:
    """The application: routes, checks and errors.

    Args:
        served: model, processor and method.
        engine: of the same model.
    """
    manager = _Manager(engine)
    models = _Models(served, manager)
    chat: Any = _Chat(served, manager, models)
    none: Any = _Elsewhere()
    app = build_server(models, chat, none, none, none, none, _State())  # type: ignore[arg-type]

    @app.exception_handler(SparsityForcingError)
    async def _ours(_: Any, error: SparsityForcingError) -> JSONResponse:
        status = 404 if isinstance(error, UnknownModel) else 400
        if isinstance(error, EnvironmentFault):
            status = 503
        return _error(status, str(error), error.field)

    @app.exception_handler(AnyHTTPException)
    async def _http(_: Any, error: AnyHTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def _body(_: Any, error: RequestValidationError) -> JSONResponse:
        reasons = "; ".join(str(entry["msg"]) for entry in error.errors())
        return _error(400, f"The body must be a JSON object: {reasons}.", "body")

    return app


def _error(status: int, message: str, field: str | None = None) -> JSONResponse:
    """As OpenAI's clients expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"message": message, "type": kind, "param": field, "code": None}
    return JSONResponse({"error": content}, status_code=status)


def serve(served: Served, engine: Engine, host: str, port: int) -> None:
    """Answer clients until the process is told to end.

    Raises:
        EnvironmentFault: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        rule = f"cannot be listened at: {error.strerror}"
        raise EnvironmentFault("address", f"{host}:{port}", rule, "give another --port") from error
    config = uvicorn.Config(build_app(served, engine), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])
