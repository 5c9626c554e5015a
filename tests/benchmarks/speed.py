"""How fast this code is: one command, a JSON file with every number, a picture, and tables in Markdown.

    python tests/benchmarks/speed.py --out logs/speed
    python tests/benchmarks/speed.py --out logs/speed --only step augment
    python tests/benchmarks/speed.py --out logs/speed --only quickstart --full --against FOLDER_OR_COMMIT

Whole steps and their parts are measured warm, variants alternating in one process, and the median is kept. The rate of the
model's matrix products is measured beside them. On one CPU thread (the default) the clock counts the seconds that the processor
worked for this process, so that other work on the machine counts less. No test depends on a timing.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import timm  # noqa: E402
import torch  # noqa: E402
from parts.augment import augment  # noqa: E402
from parts.cuda import cuda  # noqa: E402
from parts.exemplars import exemplars  # noqa: E402
from parts.experiments import experiments  # noqa: E402
from parts.quickstart import quickstart  # noqa: E402
from parts.scaling import scaling  # noqa: E402
from parts.setting import Row, Setting, guarded, load_average, say, sensible, table  # noqa: E402
from parts.step import step  # noqa: E402
from parts.tasks import tasks  # noqa: E402

SECTIONS: dict[str, Callable[[Setting], Row]] = {
    "scaling": scaling,
    "experiments": experiments,
    "cuda": cuda,
    "step": step,
    "augment": augment,
    "exemplars": exemplars,
    "tasks": tasks,
    "quickstart": quickstart,
}
TITLES = {"rows": ""}


def machine() -> Row:
    """What the numbers were measured on."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor(),
        "cores": len(names),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "load average when begun": load_average(),
    }
    if torch.cuda.is_available():
        found |= {"GPU": torch.cuda.get_device_name(), "GPUs": torch.cuda.device_count()}
    return found


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> Row:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cuda": torch.version.cuda,
    }


def commit() -> str:
    """That is checked out, if git knows; empty elsewhere."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        return done.stdout.strip()
    except OSError:
        return ""


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return sensible(value)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def measured(name: str, setting: Setting) -> Row:
    """One section, with how long it took and how busy the machine was."""
    say(f"{name}: begins")
    begun = time.monotonic()
    found = guarded(lambda: SECTIONS[name](setting))
    return {
        "what": (SECTIONS[name].__doc__ or "").strip(),
        **found,
        "took (s)": time.monotonic() - begun,
        "load average": load_average(),
    }


def markdown(report: Row) -> str:
    """The tables of a report, ready to be read."""
    lines = []
    for name, section in report["sections"].items():
        lines += [f"### {name}", "", section["what"], ""]
        for key, value in section.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines += [*([f"*{key}*", ""] if key != "rows" else []), table(value), ""]
        words = [f"{key}: {value}" for key, value in section.items() if key in ("error", "not measured")]
        lines += [f"- {word}" for word in (*words, *section.get("notes", []))] + [""]
    return "\n".join(lines)


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "logs" / "speed", help="folder of speed.json and speed.png")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=None, help="sections; default: all")
    parser.add_argument("--minutes", type=float, default=0, help="begin nothing after so many; 0: no limit")
    parser.add_argument("--against", default="", help="folder or commit that quickstart is compared with")
    parser.add_argument("--device", default="cpu", help="of step, augment, exemplars and tasks; cuda is always on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each variant; the median counts")
    parser.add_argument("--max-task", type=int, default=2, help="tasks of the quickstart's runs")
    parser.add_argument("--full", action="store_true", help="all five tasks of the quickstart's runs")
    parser.add_argument("--tiny", action="store_true", help="small models and few rounds: for a test of this tool")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Row:
    """Measure, write and print; returns what is in speed.json."""
    args = parsed(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        device=torch.device(args.device),
        threads=args.threads,
        rounds=args.rounds,
        tiny=args.tiny,
        full=args.full,
        max_task=args.max_task,
        against=args.against,
        ends=time.monotonic() + 60 * args.minutes if args.minutes else float("inf"),
        folder=args.out,
    )
    command = "python tests/benchmarks/speed.py " + " ".join(sys.argv[1:] if argv is None else argv)
    how = {"threads": args.threads, "rounds": args.rounds, "clock": setting.clock, "device": args.device}
    report = {"command": command, "commit": commit(), "machine": machine(), "versions": versions(), "how": how}
    report["sections"] = {}
    for name in args.only or list(SECTIONS):
        report["sections"][name] = rounded(measured(name, setting))
        (args.out / "speed.json").write_text(json.dumps(report, indent=1) + "\n")  # what is measured is kept, whatever follows
    print(markdown(report), flush=True)
    picture(report, args.out / "speed.png")
    return report


def picture(report: Row, path: Path) -> None:
    """Draw what was measured, where there is something to draw it with."""
    try:
        from parts.picture import draw
    except ImportError as missing:
        print(f"no picture: {missing}")
        return
    draw(report, path)


def anything(report: Row) -> bool:
    """Whether there is a single number in it."""
    rows = [
        row for section in report["sections"].values() for value in section.values() if isinstance(value, list) for row in value
    ]
    return any(isinstance(value, float | int) for row in rows if isinstance(row, dict) for value in row.values())


if __name__ == "__main__":
    sys.exit(0 if anything(main()) else 1)
