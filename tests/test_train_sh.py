"""The launcher: bad words are answered at once, and what ends a run comes through as one line and an exit code."""

import shutil
import subprocess

import pytest
from jobs import ROOT, bash, folders, for_bash, wait_for


def train_sh(*words, cwd=ROOT, **environment):
    argv = ["bash", str(ROOT / "train.sh"), *words]
    return subprocess.run(argv, cwd=cwd, env=for_bash(environment), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        ([], {}, "error: the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not ''"),
        (["gpu"], {}, "error: the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not 'gpu'"),
        (["cpu:0"], {}, "error: the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not 'cpu:0'"),
        (["0,x"], {}, "error: the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not '0,x'"),
        (["cpu", "--lr", "x"], {}, "command line: lr: expects a number, not 'x'"),
        (["cpu"], {"NNODES": "x"}, "error: NNODES: expects a whole number, not 'x'"),
        (["cpu"], {"NNODES": "2"}, "error: MASTER_ADDR: several machines need the address of the first"),
        (["cpu"], {"MAX_RESTARTS": "-1"}, "error: MAX_RESTARTS: expects a whole number, not '-1'"),
        (["cpu"], {"NNODES": "0"}, "error: NNODES: expects at least 1, not 0"),
        (["cpu"], {"MASTER_PORT": "99999"}, "error: MASTER_PORT: expects at most 65535, not 99999"),
        (["cpu"], {"MAIN": "nowhere.py"}, "error: MAIN: there is no file nowhere.py"),
        (["cpu"], {"PYTHON": "nowhere/python"}, "error: PYTHON: there is no interpreter nowhere/python"),
        (["cpu"], {"TMPDIR": "/dev/null"}, "error: TMPDIR: cannot make a folder in /dev/null"),
    ],
)
def test_what_cannot_be_started(words, environment, told):
    done = train_sh(*words, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + "\n")


def test_another_shell_is_told_that_bash_is_needed():
    """By every shell that is here; and what comes before the message is for any of them."""
    beginning = (ROOT / "train.sh").read_text().partition("set -u\n")[0]
    told = "error: train.sh is a script for bash: bash train.sh ...\n"
    for shell in filter(shutil.which, ("dash", "busybox", "zsh")):
        words = [shell, "sh"] if shell == "busybox" else [shell]
        done = subprocess.run([*words, str(ROOT / "train.sh"), "cpu"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    done = subprocess.run(["sh", "-c", f"BASH_VERSION=\n{beginning}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_train_sh_can_be_executed():
    done = subprocess.run([str(ROOT / "train.sh"), "gpu"], capture_output=True, text=True)
    assert done.returncode == 2 and "the first argument is GPU ids" in done.stderr


def test_from_a_folder_with_the_same_names(tmp_path):
    (tmp_path / "continual").mkdir()
    (tmp_path / "continual" / "__init__.py").write_text("raise ImportError('not mine')\n")
    done = train_sh("cpu", "--embed-dims", "3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "command line: 'embed-dims': no such option; the nearest is embed_dim\n")


MINE = """
import os
import runpy

import continual  # of this project, from whatever folder
from continual.registry import METHODS, RULES

RULES.add("newest", None)
METHODS.add("mine", type("Mine", (), {"settings": {"rehearsal": "newest_all"}}))
print("registered", bool(os.environ.get("DYTOX_CHECK")))
runpy.run_path(os.path.join(os.path.dirname(continual.__path__[0]), "main.py"), run_name="__main__")
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.py").write_text(MINE)
    return {"cwd": tmp_path / "elsewhere", "MAIN": str(tmp_path / "mine.py")}


def test_what_a_script_registers_is_heard_by_the_check(mine, tmp_path):
    """The last refusal comes from the two processes, without a GPU: the check had let the method and the rule pass."""
    done = train_sh("cpu", "--method", "mime", **mine)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("command line: method: there is no method 'mime'; the nearest is mine ")
    done = train_sh("cpu", "--method", "mime")
    assert done.returncode == 2 and "the nearest is mine" not in done.stderr
    argv = ["--method", "mine", "--rehearsal", "newest_token", "--device", "cuda", *folders(tmp_path)]
    done = train_sh("0,1", *argv, CUDA_VISIBLE_DEVICES="", **mine)
    assert done.returncode == 2 and "error: device: " in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error") == 1
    assert done.stdout.count("registered False") == 2 and "registered True" not in done.stdout


def test_help_is_that_of_the_script(mine):
    done = train_sh("cpu", "--lr", "x", "-h", **mine)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("registered False\n")
    assert "--rehearsal-modes" in done.stdout and "newest_token, newest_all" in " ".join(done.stdout.split())


def test_the_check_keeps_the_path_that_is_set(tmp_path):
    script = "import os, sys; print(os.environ['PYTHONPATH'], file=sys.stderr); sys.exit(3)"
    (tmp_path / "path.py").write_text(script)
    done = train_sh("cpu", MAIN=str(tmp_path / "path.py"), PYTHONPATH="/some:/more")
    assert (done.returncode, done.stderr) == (3, f"{ROOT}:/some:/more\n")


LATE = """
import os, pathlib, signal, sys, time
if os.environ.get("DYTOX_CHECK"):
    sys.exit(0)
job = pathlib.Path(os.environ["DYTOX_JOB"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
(job / "pid-0").write_text(str(os.getpid()))
(job / "exit").write_text("75\\nerror: stopped and saved\\n")
time.sleep(60)
"""


def test_asked_to_stop_when_all_is_said(tmp_path):
    """After the processes have told train.sh why they end, but before torchrun has noticed that."""
    (tmp_path / "late.py").write_text(LATE)
    job = bash(["train.sh", "cpu"], tmp_path, MAIN=str(tmp_path / "late.py"), TMPDIR=str(tmp_path))
    wait_for(lambda: job.poll() is not None or list(tmp_path.glob("tmp.*/exit")))
    assert job.poll() is None
    job.terminate()
    assert job.wait(60) == 75
