"""A real run on the digits, killed in the middle and resumed, against one that nobody disturbed."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import continual
from parts.models import FILES
from parts.setting import ROOT, OutOfTime, Row, Setting

SHORT = {"base-epochs": 8, "epochs": 8, "finetuning-epochs": 4, "max-task": 2, "save-every-epoch": 1, "keep-checkpoints": 100}
TINY = {"base-epochs": 2, "epochs": 3, "finetuning-epochs": 1, "embed-dim": 16, "depth": 2, "local-up-to-layer": 1}
PRECISIONS = {"float32": ["--amp", "off"], "bf16": ["--amp", "bf16"]}
LEFT = 3  # checkpoints, at least, that the killed run has written of its second task


class Started:
    """One run of main.py, below `folder`, on that device."""

    def __init__(self, folder: Path, words: list[str]):
        self.folder, self.words, self.begun = folder, words, time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        self._start(words)

    def _start(self, words: list[str]) -> None:
        with open(self.output, "a") as output:
            command = [sys.executable, "main.py", *words]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=dict(os.environ))

    @property
    def logs(self) -> Path | None:
        return next((path.parent for path in (self.folder / "logs").rglob("run.json")), None)

    def evaluations(self) -> bytes:
        path = self.logs and self.logs / "evaluations.jsonl"
        return path.read_bytes() if path and path.exists() else b""

    def in_the_middle(self) -> bool:
        """Whether the second task is well under way."""
        named = [path.name for path in (self.folder / "checkpoints").rglob("*.pt")]
        return bool(self.evaluations()) and sum("finished" not in name for name in named) >= LEFT

    def kill(self, ends: float) -> bool:
        """Kill it in the middle of the second task; False if it had ended before."""
        while self.process.poll() is None and not self.in_the_middle():
            if time.monotonic() > ends:
                self.process.kill()
                raise OutOfTime("not measured: the run had not come to its second task when the time was up")
            time.sleep(0.05)
        alive = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        return alive

    def resume(self) -> None:
        device = self.words[self.words.index("--device") + 1]
        self._start(["--resume", str(self.logs), "--device", device])

    def finish(self, seconds: float) -> None:
        """Raises RuntimeError with its last words if it did not end well."""
        try:
            code = self.process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise OutOfTime("not measured: a run had not ended when the time was up") from None
        if code:
            raise RuntimeError(f"a run ended with {code}: {self.output.read_text().strip()[-400:]}")


def kill_and_resume(setting: Setting) -> list[Row]:
    """Whether evaluations and weights of a killed and resumed run equal, bit by bit, those of an undisturbed one."""
    rows = []
    for name, words in PRECISIONS.items():
        if setting.seconds_left() < 300 and rows:
            break
        folder = Path(tempfile.mkdtemp(prefix="resumed-"))
        try:
            rows.append({"precision": name, **compared(setting, folder, words)})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if setting.tiny:
            break
    return rows


def compared(setting: Setting, folder: Path, words: list[str]) -> Row:
    options = [word for file in FILES["digits"] for word in (f"options/{file}",)]
    changes = {**SHORT, **(TINY if setting.tiny else {})}
    common = ["--options", *options, *words, "--device", setting.device.type, "--name", "speed"]
    common += [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    runs = []
    for name in ("undisturbed", "killed"):
        place = ["--log-path", str(folder / name / "logs"), "--output-basedir", str(folder / name / "checkpoints")]
        run = Started(folder / name, [*common, *place])
        runs.append(run)
        if name == "killed":
            killed = run.kill(setting.ends)
            run.resume()
        run.finish(setting.seconds_left())
    weights = [continual.load(run.logs).model.state_dict() for run in runs]
    alike = [torch.equal(weights[0][key], weights[1][key]) for key in weights[0]]
    same = runs[0].evaluations() == runs[1].evaluations()
    return {
        "killed on the way": "yes" if killed else "no: it had ended",
        "evaluations": "the same bytes" if same else "differ",
        "weights": "the same bits" if all(alike) else f"{len(alike) - sum(alike)} of {len(alike)} tensors differ",
        "seconds": time.perf_counter() - runs[0].begun,
    }
