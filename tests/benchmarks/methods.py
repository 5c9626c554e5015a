"""DyTox and its rivals on one data set, with the same encoder, memory, data order and schedule: the README's table.

    python tests/benchmarks/methods.py --seeds 0 1 2

Runs `main.py` once for each method (each run does all seeds), prints a table in Markdown, and keeps it with the machine, the
versions and the commands in `methods.json` in the output folder. Runs that are done already are not repeated.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA, MODEL = "options/data/digits_2-2.yaml", "options/model/digits_dytox.yaml"
METHODS = {
    "joint (upper bound)": [MODEL, "options/baseline/joint.yaml"],
    "DyTox++": ["options/model/digits_dytox_plusplus.yaml"],
    "DyTox+": ["options/model/digits_dytox_plus.yaml"],
    "DyTox": [MODEL],
    "WA": [MODEL, "options/baseline/wa.yaml"],
    "BiC": [MODEL, "options/baseline/bic.yaml"],
    "DER without pruning": [MODEL, "options/baseline/der.yaml"],
    "PODNet's distillation": [MODEL, "options/baseline/podnet.yaml"],
    "iCaRL": [MODEL, "options/baseline/icarl.yaml"],
    "rehearsal": [MODEL, "options/baseline/rehearsal.yaml"],
    "finetuning (lower bound)": [MODEL, "options/baseline/finetuning.yaml"],
}


def run(method: str, files: list[str], seeds: list[str], out: Path) -> dict:
    """All seeds of one method; returns what series.json holds, and the command."""
    logs = out / "".join(c if c.isalnum() or c == "+" else "-" for c in method.lower())
    command = ["main.py", "--options", DATA, *files, "--seeds", *seeds, "--name", "methods", "--device", "cpu"]
    place = ["--log-path", str(logs), "--output-basedir", str(logs / "checkpoints")]
    if not list(logs.rglob("series.json")):
        begun = [str(path.parent) for path in logs.glob("digits/**/run.json") if not path.parent.name.startswith("seed")]
        arguments = ["--resume", begun[0]] if begun else [*command[1:], *place]
        logs.mkdir(parents=True, exist_ok=True)
        with open(logs / "output.txt", "a") as output:
            subprocess.run(
                [sys.executable, "main.py", *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=True
            )
    (found,) = logs.rglob("series.json")
    return {"command": "python " + " ".join(command), **json.loads(found.read_text())}


def row(method: str, figures: dict) -> str:
    def spread(name: str) -> str:
        std = figures[name]["std"]
        return f"{figures[name]['mean']:.1f}" + (f" ± {std:.1f}" if std is not None else "")

    cells = [spread(name) for name in ("avg_acc", "acc", "forgetting", "acc_known")]
    size = [f"{figures[name]['mean']:,.0f}" for name in ("n_exemplars", "n_parameters", "time")]
    return f"| {' | '.join([method, *cells, *size])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "methods", help="folder of the runs and of methods.json")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // args.at_once))
    with ThreadPoolExecutor(args.at_once) as pool:
        jobs = {method: pool.submit(run, method, files, args.seeds, args.out.resolve()) for method, files in METHODS.items()}
        results = {method: job.result() for method, job in jobs.items()}

    import timm
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "at_once": args.at_once}
    report = {"versions": versions, "machine": machine, "methods": results}
    (args.out / "methods.json").write_text(json.dumps(report, indent=1))
    print("| method | average | last | forgetting | last, task known | exemplars | parameters | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for method, figures in results.items():
        print(row(method, figures))


if __name__ == "__main__":
    main()
