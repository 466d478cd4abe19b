"""Requirements of a study's hub sources: terms to accept, licences, a commit to name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sf.data.hub import page_of, parse_hub
from sf.evaluation.benchmarks import benchmarks_of
from workflow.jobs import JobSpec

__all__ = ["TERMS", "Terms", "repositories", "terms_notes"]


@dataclass(frozen=True)
class Terms:
    """The terms of a repository.

    Attributes:
        licence: its restrictions and requirements; empty if unknown.
        gated: the reason to assume that it is gated; empty if it is not known to be. The hub's
            information is decisive when a study fetches (`sf.data.hub.require_access`).
    """

    licence: str = ""
    gated: str = ""


TERMS: Mapping[str, Terms] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Terms("Qwen Research License, no commercial use"),
    "lmms-eval/VideoMMMU": Terms(
        "academic research only", "assumed: its earlier repository, lmms-lab/VideoMMMU, is gated"
    ),
    "sy1998/MLVU_dev": Terms("assumed CC BY-NC-SA 4.0, as sy1998/MLVU"),
}
"""Known terms of the sources in `params/`; nothing is known about the others."""


def repositories(job: JobSpec) -> dict[str, str]:
    """The repositories that a job of the stage `fetch` downloads, with their kind."""
    given = job.parameters
    if given["source"] == "hub":
        tasks = (task for one in benchmarks_of(given["suites"]) for task in one.tasks)
        return {task.repository: "dataset" for task in tasks}
    if given["source"].startswith("hub:"):
        kind = "model" if given["what"] == "weights" else "dataset"
        return {parse_hub(given["source"]).name: kind}
    return {}


def terms_notes(specs: Iterable[JobSpec]) -> Iterator[str]:
    """Sentences about the sources of the `fetch` jobs among `specs`."""
    for job in (job for job in specs if job.stage.run == "fetch"):
        for name, kind in repositories(job).items():
            terms = TERMS.get(name, Terms())
            if terms.gated:
                yield (
                    f"{name} needs accepted terms ({terms.gated}): accept them at "
                    f"{page_of(name, kind)} and set HF_TOKEN; {_token()}"
                )
            if terms.licence:
                yield f"licence of {name}: {terms.licence}"
        source = job.parameters["source"]
        if source.startswith("hub:") and not parse_hub(source).pinned:
            yield (
                f"{source} names no commit: {job.name} uses the newest and records it in "
                f"{job.output}/origin.json for all later runs"
            )


def _token() -> str:
    from huggingface_hub import get_token

    return "no token is set here" if get_token() is None else "a token is set here"
