"""Requests of many clients as rows of one decode loop.

One thread runs the model. It prefills each prompt alone, under the method, as soon as a slot is
free, and copies the pruned cache into the loop's buffers, where all requests are decoded together.
Rows are independent.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sf.attention.decoding.generate import Prefilled, prefill, rules_of
from sf.attention.decoding.loop import Prompts
from sf.attention.decoding.online import OnlineLoop, Progress
from sf.attention.decoding.per_row import PerRow, RowRules
from sf.attention.decoding.step import supported
from sf.baselines.method import Method
from sf.errors import ConfigError, EnvironmentFault, UnsupportedModelError

__all__ = ["Engine", "Request"]


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        inputs: of the processor, one row.
        max_new_tokens: at most the engine's.
        rules: its sampling rules.
        begun: called with the token ratio after the prefill.
        made: called with new tokens and whether they are the last ones; False ends the request.
        failed: called instead of the remaining calls when an error ended the request.

    All three are called from the engine's thread.
    """

    inputs: Mapping[str, Any]
    max_new_tokens: int
    rules: RowRules
    begun: Callable[[float], None]
    made: Callable[[list[int], bool], bool]
    failed: Callable[[Exception], None]


class Engine:
    """Runs a model for all clients.

    Args:
        model: in evaluation mode, on its device, of a family that the decode loop supports.
        method: attention of the prefill.
        slots: maximum number of requests decoded together; others wait.
        max_new_tokens: limit for a reply, which sets the size of every slot's buffers.

    Attributes:
        most_at_once: the largest number of rows that were decoded together so far.

    Raises:
        UnsupportedModelError: another family, or a method whose decoding is not plain attention
            over its cache.
        ConfigError: no slots, no tokens, or generation settings that the loop does not support.
    """

    def __init__(self, model: Any, method: Method, slots: int = 8, max_new_tokens: int = 1024):
        if slots < 1 or max_new_tokens < 1:
            raise ConfigError("slots, max-tokens", (slots, max_new_tokens), "both are at least 1")
        supported(model)
        if not method.decodes_densely:
            rule = "its decoding is not plain attention over the cache, which serving needs"
            raise UnsupportedModelError("method", method.name, rule, "serve another method")
        self.model, self.method = model, method
        self.slots, self.max_new_tokens = slots, max_new_tokens
        self.rules = rules_of(model.generation_config, False, ())
        self.most_at_once = 0
        self._queue: queue.Queue[Request | None] = queue.Queue()
        self._rows: dict[int, Request] = {}
        self._number = 0
        self._loop = self._new_loop()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sf-serve", daemon=True)
        self._thread.start()

    def _new_loop(self) -> OnlineLoop:
        return OnlineLoop(self.model, self.slots, max(1, self.max_new_tokens - 1), self.rules)

    def submit(self, request: Request) -> None:
        """Queue a request and return immediately.

        Raises:
            ConfigError: it requests more tokens than fit in the buffers, or none.
            EnvironmentFault: the engine has been stopped.
        """
        if not 1 <= request.max_new_tokens <= self.max_new_tokens:
            rule = f"must lie in [1, {self.max_new_tokens}]"
            remedy = "ask for fewer, or start the server with a larger --max-tokens"
            raise ConfigError("max_tokens", request.max_new_tokens, rule, remedy)
        if self._stopped:
            raise EnvironmentFault("server", None, "it is shutting down")
        self._queue.put(request)

    def stop(self) -> None:
        """Stop the thread; unfinished requests fail."""
        self._stopped = True
        self._queue.put(None)
        self._thread.join(timeout=60)

    # The thread

    def _run(self) -> None:
        while not self._stopped:
            self._admit()
            if self._loop.busy:
                self._turn()
        error = EnvironmentFault("server", None, "it was shut down")
        waiting = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        for request in [*self._rows.values(), *(each for each in waiting if each is not None)]:
            request.failed(error)

    def _admit(self) -> None:
        """Prefill prompts while slots are free; wait for a request when idle."""
        while self._loop.free and not self._stopped:
            try:
                request = self._queue.get(block=not self._loop.busy)
            except queue.Empty:
                return
            if request is None:
                return
            try:
                start = prefill(self.model, request.inputs, self.method.apply(self.model))
                ratio = 1.0 if start.trace is None else float(start.trace.token_ratio[0])
                number = self._number
                self._loop.enter(self._prompts(start, request), number)
            except Exception as error:  # noqa: BLE001 - reported to the client; others continue
                request.failed(error)
                continue
            self._number += 1
            self._rows[number] = request
            self.most_at_once = max(self.most_at_once, len(self._rows))
            request.begun(ratio)

    @torch.inference_mode()
    def _prompts(self, start: Prefilled, request: Request) -> Prompts:
        """The prompt with its first token, chosen by the request's rules."""
        assert start.logits is not None
        vocabulary = start.logits.shape[-1]
        seen = torch.zeros(1, vocabulary, dtype=torch.bool, device=start.prompt.device)
        seen.scatter_(1, start.prompt, True)
        choice = PerRow([request.rules], seen, self.rules.forbidden)
        choice.draw(1)
        token, _ = choice(start.logits)
        cache, start.cache = start.cache, None
        limits = [request.max_new_tokens]
        return Prompts(cache, start.valid, token[:, 0], None, start.position, choice, limits)

    def _turn(self) -> None:
        try:
            fresh = self._loop.turn()
        except Exception as error:  # noqa: BLE001 - such as out of memory; all rows are lost
            for request in self._rows.values():
                request.failed(error)
            self._rows.clear()
            self._loop = self._new_loop()
            return
        for number, progress in fresh.items():
            self._hand_over(number, progress)

    def _hand_over(self, number: int, progress: Progress) -> None:
        request = self._rows.get(number)
        if request is None:  # a row that was dropped has left the loop
            return
        try:
            wanted = request.made(progress.tokens, progress.ended)
        except Exception as error:  # noqa: BLE001 - of the tokenizer; others continue
            request.failed(error)
            wanted = False
        if progress.ended or not wanted:
            del self._rows[number]
        if not progress.ended and not wanted:
            self._loop.drop(number)
