"""Kills runs at random places, resumes them until they are done, and compares what comes out with an undisturbed run.

    python tests/campaign.py --kills 25 --processes 1

Every kill is of one of the processes, at a random one of the times that it reaches a random place; so a resumed run may be
killed again. Fails unless every run ends bit by bit like the undisturbed one.
"""

import argparse
import random
import signal
import tempfile
from pathlib import Path

from jobs import THREE_TASKS, assert_same_results, checkpoints, finish, folders, run

from continual.jobs.faults import PLACES

# How often a place is reached in the run on one process. One of several reaches some of them less often: then it goes on.
TIMES = {"data": 20, "forward": 40, "backward": 40, "step": 20, "evaluation": 42, "exemplars": 31, "finetuning": 3}
TIMES |= {"task change": 3, "end": 3, "writing": 51, "rename": 51, "manifest": 17}


def campaign(kills: int, *, processes: int, seed: int = 0) -> int:
    """Returns how many runs the kills were of. Raises AssertionError if one comes out otherwise than the undisturbed one."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as base:
        reference = Path(base, "undisturbed")
        finish([*THREE_TASKS, *folders(reference)], reference, processes=processes)
        done = nb_runs = 0
        while done < kills:
            nb_runs += 1
            folder = Path(base, f"run-{nb_runs}")
            argv, places = [*THREE_TASKS, *folders(folder)], []
            while True:
                place = draw.choice([place for place in PLACES if place in TIMES])
                rank = draw.randrange(processes)
                fault = f"kill:{place}:{draw.randint(1, TIMES[place])}:rank{rank}" if done < kills else ""
                job = run(argv, folder, processes=processes, fault=fault)
                if -signal.SIGKILL not in job.codes:
                    break
                done += 1
                places.append(fault.removeprefix("kill:"))
                argv = ["--resume", str(checkpoints(folder))]
            assert set(job.codes) == {0}, job.said()
            assert_same_results(folder, reference)
            print(f"run {nb_runs}: killed at {', '.join(places) or 'no place'}: the same to the bit", flush=True)
    return nb_runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    nb_runs = campaign(asked.kills, processes=asked.processes, seed=asked.seed)
    print(f"{asked.kills} kills, {nb_runs} runs on {asked.processes} process(es): all the same to the bit")
