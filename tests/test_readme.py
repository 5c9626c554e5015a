"""What the README says of the code is so."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from jobs import TINY, checkpoints, command, folders, logs, run
from PIL import Image

from continual.data.samplers import released_drop_last

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def table(title: str) -> list[list[str]]:
    """The cells of the rows of the first table after `title`, its head left out."""
    lines = README.split(title, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def defined(path: Path) -> set[str]:
    """Names of the functions, classes and methods (Class.method) of a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in getattr(node, "body", []) if isinstance(each, ast.FunctionDef)}
    return names


def places() -> list[tuple[str, str, str]]:
    """(what the paper has, file, name) of every place in the table."""
    found = []
    for paper, code in table("**Paper → code.**"):
        path = ""
        for word in re.findall(r"`([^`]+)`", code):
            if word.endswith(".py"):
                path = word
            else:
                found.append((paper, path, word))
    return found


def test_every_row_of_paper_to_code_names_a_place():
    rows = table("**Paper → code.**")
    assert len(rows) >= 15 and {paper for paper, _ in rows} == {paper for paper, _, _ in places()}


@pytest.mark.parametrize(("paper", "path", "name"), places(), ids=lambda value: value[:40])
def test_what_the_paper_has_is_where_the_table_says(paper, path, name):
    assert name in defined(ROOT / path), paper


def share(nb_classes: int, increment: int, memory: int, replicas: int, batch_size: int = 128) -> list[float]:
    """Of the new task's exemplars, the share in finetuning's last partial batch where that is dropped, task by task."""
    shares = []
    for seen in range(2 * increment, nb_classes + 1, increment):
        quota = memory // seen
        rest = quota * seen % batch_size if released_drop_last(quota * seen, replicas, batch_size) else 0
        shares.append(min(1.0, rest / (quota * increment)))
    return shares


def test_the_shares_that_finetuning_never_sees():
    settings = [
        [(100, 10, 2000, 2), (100, 10, 1000, 2)],
        [(100, 5, 2000, 2), (100, 5, 1000, 2)],
        [(100, 2, 2000, 2), (100, 2, 1000, 2)],
        [(100, 10, 2000, 8), (100, 10, 500, 4)],
        [(1000, 100, 20000, 8)],
    ]
    rows = table("### Finetuning's last batch")
    assert len(rows) == len(settings)
    for (_, last, mean), row in zip(rows, settings, strict=True):
        told = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in (last, mean)]
        shares = [share(*setting) for setting in row]
        assert told[0] == pytest.approx([100 * each[-1] for each in shares], abs=0.51)
        assert told[1] == pytest.approx([100 * sum(each) / len(each) for each in shares], abs=0.51)


# ----------------------------------------------------------------------------------------------------------- its commands


def commands() -> list[str]:
    """Every command in the README's blocks of bash; scripts for SLURM are run by tests of their own."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        if not block.startswith("#!"):
            lines = re.sub(r"\s+#.*", "", block.replace("\\\n", " ")).splitlines()
            found += [" ".join(each.split()) for line in lines for each in line.split(" && ") if each.strip()]
    return list(dict.fromkeys(found))


ELSEWHERE = {  # what is not run here
    "pip install -r requirements.txt": "before any test",
    "python -m pytest": "this",
    "pip install wandb": "the network",
    "wandb login": "the network",
    "tensorboard --logdir logs": "a server; what it reads: test_board.py",
    "python tests/benchmarks/methods.py": "an hour; test_benchmarks.py",
    "python -m continual.published": "test_published.py",
}
SMALL = ["--embed-dim", "16", "--num-heads", "4", "--depth", "2", "--local-up-to-layer", "1", "--patch-size", "4"]
SMALL += ["--debug", "--device", "cpu", "--num-workers", "0", "--no-tensorboard", "--max-task", "1", "--sweep-tasks", "1"]
ON_DIGITS = ["--data-set", "digits", "--class-order", "none", "--initial-increment", "2", "--increment", "2"]
ON_DIGITS += ["--batch-size", "8"]
SIZES = {"--input-size": "32", "--sweep-draws": "2", "--memory-size": "100"}  # in the place of those of the README
OF_A_RUN = re.compile(r"logs/\S+-dytox\b|\bRUN\b|\b[AB]\b(?= |$)")


def elsewhere(line: str) -> bool:
    return any(line.startswith(each) for each in ELSEWHERE)


def words_of(line: str, where: dict[str, str]) -> list[str]:
    """Of a command, with the places that it names as they are in a test."""
    line = OF_A_RUN.sub(where["run"], line).replace("@3", "@1").replace("--start-task 5", "--start-task 2")
    for name in ("DATA", "CHECKPOINTS", "photos/", "exports/digits", "certificate.json", "answers.csv"):
        line = line.replace(f" {name}", f" {where['folder']}/{name}")
    return [word for word in shlex.split(line) if word != "..."]


def trains(words: list[str], folder: Path, script: str) -> None:
    """A command of train.sh or main.py, small and short, ends well."""
    if words[0] == "bash":
        assert words[1] == "train.sh" and re.fullmatch(r"cpu(:\d+)?|\d+(,\d+)*", words[2])
    argv = words[3:] if words[0] == "bash" else words[2:]
    for key, value in SIZES.items():
        if key in argv:
            argv[argv.index(key) + 1] = value
    if not {"--resume", "--branch"} & set(argv):
        argv += [*SMALL, *(ON_DIGITS if "cifar" in " ".join(words) else [])]
        argv += ["--input-size", "16"] if "--input-size" not in argv else []
    if "--resume" not in argv:
        argv = [word for word in argv if word not in ("--output-basedir", f"{folder}/CHECKPOINTS")]
        argv += folders(folder)[:4]
    job = run(argv, folder, environment={"WANDB_MODE": "offline", **({"MAIN": script} if script else {})})
    if "--wandb" in argv and importlib.util.find_spec("wandb") is None:
        assert job.codes == [2] and "pip install wandb" in job.said()
    else:
        assert job.codes == [0], job.said()
        assert "--resume" not in argv or "--eval" in argv or "resumed from task-2-training-epoch-2-step-1" in job.said()


@pytest.mark.parametrize("line", [line for line in commands() if not elsewhere(line)])
def test_every_command_ends_well(line, done, tmp_path):
    """With small models, few steps and digits in the place of CIFAR, on one process."""
    if "train.sh" in line and "--resume" in line:  # one that was stopped
        done = tmp_path / "stopped"
        assert run([*TINY, *folders(done)], done, fault="term:step:7").codes == [75]
    where = {"run": str(checkpoints(done) if "--branch" in line else logs(done)), "folder": str(tmp_path)}
    words, script, told = words_of(line, where), "", None
    if words[0].startswith("MAIN="):
        name, script = Path(words.pop(0)).stem, str(tmp_path / "script.py")
        (cell,) = [
            each
            for each in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
            if re.search(rf'register_\w+\("{name}"', each)
        ]
        Path(script).write_text(cell)
    if "photos/" in line:
        (tmp_path / "photos").mkdir()
        Image.new("L", (8, 8), 200).save(tmp_path / "photos" / "1.png")
    if "train.sh" in line or "main.py" in line:
        trains(words, tmp_path, script)
        return
    if ">" in words:
        told = Path(words[words.index(">") + 1])
        words = words[: words.index(">")]
    if "--check" in words:
        assert_ends_well(["continual.verify", where["run"], "--certificate"], tmp_path, Path(words[-1]))
    if words[2] == "continual.report":
        words += ["--out", str(tmp_path / "page")]
    assert_ends_well(words[2:], tmp_path, told, **({"MAIN": script} if script else {}))


def assert_ends_well(words: list[str], folder: Path, told: Path | None, **environment: str) -> None:
    code, said = command(words[0], words[1:], folder, **environment)
    assert code == 0, said
    if told:
        told.write_text(said)


def test_nothing_is_said_to_be_elsewhere_for_nothing():
    assert all(any(line.startswith(each) for line in commands()) for each in ELSEWHERE)
