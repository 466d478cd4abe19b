"""`sf serve`: an OpenAI-compatible endpoint with sparse prefill and a pruned cache.

Routes, streaming and replies come from transformers' server (`transformers.cli.serving`);
one decode loop generates the tokens, with the requests of all clients as rows.
"""

from sf.serving.app import build_app, serve
from sf.serving.engine import Engine
from sf.serving.served import Served, load

__all__ = ["Engine", "Served", "build_app", "load", "serve"]
