"""The RO-Crate of a study: its report as a dataset, with the commands behind its results.

Written as JSON-LD according to RO-Crate 1.1 and the profile Process Run Crate 0.5.
"""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sf.atomic_files import write_json
from sf.layout import STAMP
from sf.report.results import Result, Study

__all__ = ["NAME", "write_crate"]

NAME = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
SOFTWARE = "#sf"
MANY = ("samples",)
"""Folders that are listed as a whole, not file by file."""


def write_crate(study: Study, title: str, folder: Path) -> None:
    """Write `ro-crate-metadata.json` next to the files that it describes.

    Args:
        study: its results.
        title: of the report.
        folder: of the report, complete.
    """
    results = study.everything()
    files = _parts(folder)
    outputs = [_output(result) for result in results]
    calls = [_call(result, {output["@id"] for output in outputs}) for result in results]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": title,
        "description": f"Tables and figures of the study {study.root.name}, with their sources.",
        "datePublished": _date(results),
        "license": {"@id": LICENSE},
        "conformsTo": {"@id": PROFILE},
        "hasPart": _named(files),
        "mentions": _named(calls),
    }
    descriptor = {
        "@id": NAME,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    profile = {
        "@id": PROFILE,
        "@type": "CreativeWork",
        "name": "Process Run Crate",
        "version": "0.5",
    }
    license_ = {"@id": LICENSE, "@type": "CreativeWork", "name": "Apache License 2.0"}
    graph = [descriptor, root, profile, license_, _software(results)]
    context = "https://w3id.org/ro/crate/1.1/context"
    content = {"@context": context, "@graph": [*graph, *files, *calls, *outputs]}
    write_json(folder / NAME, content)


def _named(entities: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"@id": entity["@id"]} for entity in entities]


def _parts(folder: Path) -> list[dict[str, Any]]:
    """The report's files, and the folders of `MANY` as a whole."""
    parts: list[dict[str, Any]] = [
        {"@id": f"{name}/", "@type": "Dataset", "name": name}
        for name in MANY
        if (folder / name).is_dir()
    ]
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and place.parts[0] not in MANY:
            part = {
                "@id": place.as_posix(),
                "@type": "File",
                "name": place.name,
                "contentSize": str(path.stat().st_size),
            }
            kind = mimetypes.guess_type(path.name)[0]
            parts.append(part | ({"encodingFormat": kind} if kind else {}))
    return parts


def _call(result: Result, known: Collection[str]) -> dict[str, Any]:
    """The command that produced a result, with its inputs that are results."""
    stamp = result.stamp
    inputs = [f"#{path}" for path in stamp.get("input_paths", {}).values()]
    return {
        "@id": f"#call-{stamp['key']}",
        "@type": "CreateAction",
        "name": stamp["command"],
        "instrument": {"@id": SOFTWARE},
        "object": [{"@id": name} for name in inputs if name in known],
        "result": {"@id": f"#{result.folder.as_posix()}"},
        "description": f"{stamp['seconds']:.0f} s at commit {result.commit}",
    }


def _output(result: Result) -> dict[str, Any]:
    """A result, which is outside the report."""
    return {
        "@id": f"#{result.folder.as_posix()}",
        "@type": "Dataset",
        "name": result.folder.as_posix(),
        "identifier": result.stamp["key"],
    }


def _software(results: Iterable[Result]) -> dict[str, Any]:
    """This package, with the commits and package versions of the results."""
    versions = {
        f"{name} {version}"
        for result in results
        for name, version in result.stamp.get("versions", {}).items()
    }
    return {
        "@id": SOFTWARE,
        "@type": "SoftwareApplication",
        "name": "sparsity-forcing",
        "softwareVersion": ", ".join(sorted({result.commit for result in results})),
        "softwareRequirements": sorted(versions),
    }


def _date(results: Iterable[Result]) -> str:
    """The date of the newest result, or today's date without results."""
    times = [(result.folder / STAMP).stat().st_mtime for result in results] or [time.time()]
    return datetime.fromtimestamp(max(times), UTC).date().isoformat()
