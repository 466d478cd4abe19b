"""The server: transformers' application around this package's engine."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from sf.attention.decoding.per_row import RowRules
from sf.errors import ConfigError, EnvironmentFault, SparsityForcingError
from sf.extras import extra
from sf.serving.engine import Engine, Request
from sf.serving.requests import UnknownModel, chat_body, conversation
from sf.serving.served import Served

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

    rule = "lacks the server classes that this server uses (transformers.cli.serving)"
    raise EnvironmentFault(
        "transformers", transformers.__version__, rule, "install transformers 5.23 or later"
    ) from error

__all__ = ["build_app", "serve"]


@dataclass
class _Settings:
    """The generation settings that transformers' handler reads, and our settings of a request."""

    max_new_tokens: int
    rules: RowRules
    token_ratio: float | None = None


class _Manager(BaseGenerateManager):
    """transformers' interface to the generation."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
            text = json.dumps(str(error))[1:-1]  # transformers adds only the quotes
            loop.call_soon_threadsafe(queue.put_nowait, _StreamError(text))

        self.engine.submit(_request(inputs, gen_config, made, failed))
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

        self.engine.submit(_request(inputs, gen_config, made, failed))
        tokens = await future
        text = processor.decode(tokens, skip_special_tokens=True)
        return text, inputs["input_ids"].shape[-1], tokens

    def stop(self) -> None:
        """See transformers."""
        self.engine.stop()


def _request(inputs: Any, settings: _Settings, made: Any, failed: Any) -> Request:
    def begun(ratio: float) -> None:
        settings.token_ratio = ratio

    return Request(inputs, settings.max_new_tokens, settings.rules, begun, made, failed)


class _Models:
    """transformers' model manager for the single served model."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.force_model = served.name
        self.loaded = int(time.time())

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def get_gen_models(self) -> list[dict[str, Any]]:
        entry = {"id": self.served.name, "object": "model", "created": self.loaded}
        return [{**entry, "owned_by": "local"}]

    async def load_model_streaming(self, model_id: str, **_: Any) -> Any:
        """Report that the model is already loaded."""
        self.check(model_id)
        yield f'data: {{"status": "ready", "model": "{self.served.name}", "cached": true}}\n\n'

    def check(self, name: str | None) -> None:
        """
        Raises:
            UnknownModel: it is not the name of the model.
        """
        if name not in (None, self.served.name):
            remedy = f"request {self.served.name}, or omit the name"
            raise UnknownModel("model", name, "is not served here", remedy)

    def shutdown(self) -> None:
        """Keep the model: any client can call this through POST /reset."""


class _State:
    """transformers' generation state, always with the same engine."""

    @staticmethod
    def is_cb_alive() -> bool:
        return True


class _Reply(ChatCompletionHandler):
    """transformers' reply to one request, with the token ratio."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.settings = settings

    def _build_completion(self, *args: Any, **options: Any) -> dict[str, Any]:
        completion = super()._build_completion(*args, **options)
        return {**completion, "token_ratio": self.settings.token_ratio}

    def _build_chunk_sse(self, *args: Any, **options: Any) -> str:
        text = super()._build_chunk_sse(*args, **options)
        if options.get("finish_reason") is None:
            return text
        last = {**json.loads(text.removeprefix("data: ")), "token_ratio": self.settings.token_ratio}
        return f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"


class _Chat:
    """POST /v1/chat/completions: our checks and encoding, transformers' replies."""

    def __init__(self, served: Served, engine: Engine, models: _Models) -> None:
        self.served, self.models, self.manager = served, models, _Manager(engine)
        self._encoding = threading.Lock()  # calls change the state of a fast tokenizer

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """See transformers.

        Raises:
            SparsityForcingError: an invalid request; raised before the model runs.
        """
        asked = chat_body(body)
        self.models.check(asked.model)
        served = self.served
        settings = _Settings(
            asked.new_tokens(self.manager.engine.max_new_tokens),
            asked.rules(served.model.generation_config),
        )
        inputs = await asyncio.to_thread(self._encode, asked)
        self._check_length(inputs["input_ids"].shape[-1], settings.max_new_tokens)
        reply: Any = _Reply(settings)
        common = (request_id, served.model, served.processor, served.name, inputs, settings)
        if asked.stream:
            return reply._streaming(*common, gen_manager=self.manager)
        try:
            return await reply._non_streaming(*common, gen_manager=self.manager)
        except (SparsityForcingError, HTTPException):
            raise
        except Exception as error:  # such as out of memory; the server continues
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


class _Elsewhere:
    """A route of transformers' server that is not supported here."""

    async def handle_request(self, *_: Any) -> Any:
        raise HTTPException(404, "this server supports only POST /v1/chat/completions")


def build_app(served: Served, engine: Engine) -> FastAPI:
    """The application: routes, checks and errors.

    Args:
        served: model, processor and method.
        engine: of the same model.
    """
    models: Any = _Models(served)
    chat: Any = _Chat(served, engine, models)
    none: Any = _Elsewhere()
    state: Any = _State()
    app = build_server(models, chat, none, none, none, none, state)

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
    """An error response in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"message": message, "type": kind, "param": field, "code": None}
    return JSONResponse({"error": content}, status_code=status)


def serve(served: Served, engine: Engine, host: str, port: int) -> None:
    """Serve clients until the process is stopped, which also stops the engine.

    Raises:
        EnvironmentFault: the address is not available.
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
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        engine.stop()
