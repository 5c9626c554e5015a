"""The launcher: bad words are answered at once, and what ends a run comes through as one line and an exit code."""

import os
import subprocess
import sys

import pytest
from jobs import ROOT, TINY, folders


def train_sh(*words, cwd=ROOT, **environment):
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(["bash", str(ROOT / "train.sh"), *words], cwd=cwd, env=env, capture_output=True, text=True)


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
        (["cpu"], {"MAIN": "nowhere.py"}, "error: MAIN: there is no file nowhere.py"),
    ],
)
def test_what_cannot_be_started(words, environment, told):
    done = train_sh(*words, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + "\n")


def test_from_a_folder_with_the_same_names(tmp_path):
    (tmp_path / "continual").mkdir()
    (tmp_path / "continual" / "__init__.py").write_text("raise ImportError('not mine')\n")
    done = train_sh("cpu", "--embed-dims", "3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "command line: 'embed-dims': no such option; the nearest is embed_dim\n")


def test_a_refusal_after_the_start_is_one_line(tmp_path):
    done = train_sh("cpu:2", *TINY, *folders(tmp_path), "--memory-size", "9")
    assert done.returncode == 2
    assert "rank 0: error: memory_size: 9 is too small for 10 classes: at least 10, or 0 for no memory" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error") == 1
