"""Many steps without Python between them: on CUDA a recorded graph is replayed.

The graph holds the addresses of the cache and of the step's tensors, and private memory for what
lies between its kernels. It serves one `Step`; the next prompt, whose layers keep other numbers of
tokens, is recorded anew (some tens of milliseconds for a 7B, so long replies gain most).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sf.attention.decoding.step import Step
from sf.errors import ConfigError, EnvironmentFault

__all__ = ["DecodeLoop"]

_WARM_UP = 3
# Replays between two looks at whether every row has ended: each look waits for the device.
_LOOK_EVERY = 32


class DecodeLoop:
    """A step that is repeated.

    Args:
        step: after its prefill.
        graph: record and replay it; by default on CUDA. On a CPU the same step is simply called.

    Raises:
        EnvironmentFault: a graph was asked for on a CPU.
    """

    def __init__(self, step: Step, *, graph: bool | None = None) -> None:
        self.step = step
        self.device = step.token.device
        cuda = self.device.type == "cuda"
        if graph and not cuda:
            raise EnvironmentFault(
                "graph", True, "a CPU has no graphs to replay", "leave graph to its default"
            )
        self.recorded = cuda if graph is None else graph
        self._made = 0
        self._replay: Callable[[], None] = self._record() if self.recorded else step

    @torch.inference_mode()
    def _record(self) -> Callable[[], None]:
        """Warm up beside the current stream (kernels compile, libraries allocate), then record."""
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self.step.restart()
                    self.step()
                self.step.restart()
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
            self.step.restart()
        replay: Callable[[], None] = graph.replay
        return replay

    def restart(self) -> None:
        """Go back to the state after the prefill."""
        self.step.restart()
        self._made = 0

    def advance(self, tokens: int) -> None:
        """Make tokens without looking at them; does not wait for the device.

        Raises:
            ConfigError: the buffers have no room for so many.
        """
        room = self.step.cache.room
        if self._made + tokens > room:
            raise ConfigError(
                "tokens",
                tokens,
                f"the buffers have room for {room} and hold {self._made}",
                "reserve more room, or restart the loop",
            )
        for _ in range(tokens):
            self._replay()
        self._made += tokens

    def run(self, tokens: int) -> Tensor:
        """Make up to `tokens` tokens; stops early once every row has ended.

        Returns:
            int64 (B, made) with `pad` after a row's end, as wide as the longest row.
        """
        left = tokens
        while left and not bool(self.step.finished.all()):
            batch = min(_LOOK_EVERY, left) if self.step.rules.end else left
            self.advance(batch)
            left -= batch
        return self.step.written[:, : self._needed()].clone()

    def _needed(self) -> int:
        """Tokens until the last row ended, its end token included."""
        step = self.step
        if not step.rules.end:
            return self._made
        made_BN = torch.cat([step.first_token, step.written[:, : self._made]], dim=1)
        ended_BN = torch.isin(made_BN, step.end)
        length_B = torch.where(ended_BN.any(-1), ended_BN.int().argmax(-1), self._made)
        return int(length_B.max())
