"""What is found of a run and of a series, as text and as a certificate: JSON that is sealed by its own SHA-256."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from continual.errors import CheckpointError, OptionsError
from continual.files import UNREADABLE
from continual.options import STORED, Options, parse
from continual.report import checking, rerunning
from continual.report.checking import ALTERED, ANOTHER, CLOSE, SAME, UNKNOWN, Finding
from continual.report.reading import Past
from continual.runs import evidence
from continual.runs.checkpoint import seal
from continual.runs.experiment import benchmark_of
from continual.runs.run import PREDICTIONS
from continual.seeing.tables import summarise

FORMAT = 1
OF_THE_RUN = ("experiment", "told", "made_with", "began", "images", "checkpoints", "predictions", "results")
WORDS = {SAME: "the same", CLOSE: "close", ANOTHER: "another", UNKNOWN: "not verified", ALTERED: "ALTERED"}


@dataclass
class Verdict:
    """What is known of one run, as a certificate tells it, and what was found."""

    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def altered(self) -> bool:
        return any(each.outcome == ALTERED for each in self.findings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise OptionsError(f"{message}; usage: python -m continual.verify RUN [--steps N] [--certificate] [--check FILE]")


def asked(argv: Sequence[str]) -> argparse.Namespace:
    """The words of the command. Raises OptionsError."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--certificate", action="store_true")
    parser.add_argument("--check", metavar="FILE")
    parser.add_argument("--data-path", default="")
    parser.add_argument("--device", default="")
    found = parser.parse_args(argv)
    if not 0 <= found.steps <= evidence.STEPS:
        raise OptionsError(f"--steps: a run keeps {evidence.STEPS} steps; 0 to {evidence.STEPS}, not {found.steps}")
    return found


def options_of(past: Past, asked: argparse.Namespace) -> Options:
    """The options of a run for whoever computes a part of it again. Raises OptionsError."""
    argv = ["--options", str(past.folder / STORED)]
    for key, value in (("--data-path", asked.data_path), ("--device", asked.device)):
        argv += [key, value] if value else []
    return parse(argv)


def verify(past: Past, asked: argparse.Namespace, device: torch.device) -> Verdict:
    """Everything that can be said of one run; what was altered in its files or images leaves the rest unsaid."""
    found = checking.gathered(past)
    verdict = Verdict(findings=list(checking.of_files(past, found)))
    if not found.kept:
        return verdict
    verdict.facts = _facts(found)
    if verdict.altered:
        return verdict
    options = options_of(past, asked)
    rerunning.prepare(options, found.kept[-1], device)
    verdict.findings += checking.of_environment(found, evidence.environment(device))
    verdict.findings += checking.of_data(past.checkpoints, found, benchmark_of(options))
    if not verdict.altered:
        verdict.findings.append(rerunning.first_steps(options, found.kept[-1], asked.steps, device))
        verdict.findings.append(rerunning.last_evaluation(past, options, found.kept, device))
    return verdict


def _facts(found: checking.Evidence) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "experiment": manifest["identity"],
        "told": manifest.get(evidence.TOLD),
        "made_with": manifest.get(evidence.MADE_WITH),
        "began": manifest.get(evidence.FINGERPRINT),
        "images": manifest.get(evidence.SEEN),
        "checkpoints": [each.facts() for each in found.kept],
        "predictions": manifest.get(PREDICTIONS, {}),
        "results": found.report.measured() if found.newest["report"]["scores"] else None,
    }


def document(asked: argparse.Namespace, runs: Sequence[Past], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The certificate of the runs of a folder, held against an earlier one if asked. Raises CheckpointError."""
    single = len(runs) == 1 and runs[0].series is None
    facts = {past.label: verdict.facts for past, verdict in zip(runs, verdicts, strict=True)}
    together = [] if single else list(_of_the_series(runs))
    if asked.check:
        together += list(_against(read(Path(asked.check)), facts))
    entries = {
        past.label: {**verdict.facts, "findings": [asdict(each) for each in verdict.findings]}
        for past, verdict in zip(runs, verdicts, strict=True)
    }
    lines = [(past.label, each) for past, verdict in zip(runs, verdicts, strict=True) for each in verdict.findings]
    told = [f"{label}: {each.what}: {each.told}" for label, each in lines if each.outcome == ALTERED]
    told += [f"{each.what}: {each.told}" for each in together if each.outcome == ALTERED]
    content = {
        "certificate": FORMAT,
        "verified": not told,
        "altered": told,
        "not_verified": [f"{label}: {each.what}: {each.told}" for label, each in lines if each.outcome == UNKNOWN],
        "together": [asdict(each) for each in together],
        "runs": entries,
    }
    content = json.loads(json.dumps(content))
    return {**content, "seal": seal(content)}


def _of_the_series(runs: Sequence[Past]) -> list[Finding]:
    """Whether the figures of a series are those of its runs."""
    path = runs[0].series / "series.json"
    if not path.exists() or not all(past.done for past in runs):
        return [Finding("series", UNKNOWN, "not all of its runs are done")]
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        if list(then["runs"]) != [past.label for past in runs]:
            return [Finding("series", ALTERED, "series.json is of other runs")]
        now = json.loads(json.dumps(summarise([past.summary for past in runs])[1]))
        keys = [key for key in now if then.get(key) != now[key]]
    except UNREADABLE:
        return [Finding("series", ALTERED, "series.json is damaged")]
    if keys:
        return [Finding("series", ALTERED, f"series.json: {keys[0]} is not that of its runs")]
    return [Finding("series", SAME, f"figures of {len(runs)} runs")]


def read(path: Path) -> dict[str, Any]:
    """A certificate. Raises CheckpointError if it is none, or not as it was printed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known, kept = content["certificate"], content["seal"]
        runs = {label: {key: run[key] for key in OF_THE_RUN} for label, run in content["runs"].items() if run["findings"]}
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is no certificate ({type(error).__name__})") from None
    if known != FORMAT or kept != seal(content):
        raise CheckpointError(f"{path}: the certificate was altered: its seal does not fit")
    return runs


def _against(then: dict[str, Any], now: dict[str, Any]) -> list[Finding]:
    """What an earlier certificate says against what is there now."""
    found = []
    if list(then) != list(now):
        found.append(Finding("certificate", ALTERED, f"it is of {', '.join(then)}; here are {', '.join(now)}"))
    for label in (label for label in then if label in now):
        keys = [key for key in OF_THE_RUN if then[label][key] != json.loads(json.dumps(now[label].get(key)))]
        if keys:
            found.append(Finding("certificate", ALTERED, f"{label}: {keys[0]} are others than it says"))
    return found or [Finding("certificate", SAME, "it says what is there now")]


def in_words(document: dict[str, Any]) -> str:
    """What was found, a line each, and the verdict."""
    lines = []
    for label, run in document["runs"].items():
        lines += [label, *(_line(each) for each in run["findings"])]
    lines += [_line(each) for each in document["together"]]
    if document["altered"]:
        return "\n".join([*lines, "altered"])
    rest = " as far as it can be; see what is not verified above" if document["not_verified"] else ""
    return "\n".join([*lines, f"verified{rest}"])


def _line(finding: dict[str, Any]) -> str:
    return f"  {finding['what']:<16} {WORDS[finding['outcome']]}: {finding['told']}"
