"""`sf serve`: an OpenAI-compatible endpoint with sparse prefill and a pruned cache.

Routes, streaming and replies are those of transformers' own server (`transformers.cli.serving`);
tokens are made by one decode loop in which the requests of all clients are rows.
"""

from sf.serving.app import build_app, serve
from sf.serving.engine import Engine
from sf.serving.served import Served, load

__all__ = ["Engine", "Served", "build_app", "load", "serve"]
