"""Kills runs at random places, resumes them until they are done, and compares what comes out with an undisturbed run.

    python tests/campaign.py --kills 25 --processes 1

Every kill is of one of the processes, at a random one of the times that it reaches a random place (continual/faults.py); so a
resumed run may be killed again. Exits with 1 unless every run ends bit by bit like the undisturbed one.
"""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from jobs import THREE_TASKS, assert_same_results, checkpoints, finish, folders, run

from continual.faults import PLACES

# How often a place is reached in the run on one process. One of several reaches some of them less often: then it goes on.
TIMES = {"data": 20, "forward": 40, "backward": 40, "step": 20, "evaluation": 42, "exemplars": 31, "finetuning": 3}
TIMES |= {"task change": 3, "end": 3, "writing": 51, "rename": 51, "manifest": 17}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as base:
        reference = Path(base, "undisturbed")
        finish([*THREE_TASKS, *folders(reference)], reference, processes=asked.processes)
        kills = nb_runs = 0
        while kills < asked.kills:
            nb_runs += 1
            folder = Path(base, f"run-{nb_runs}")
            argv, places = [*THREE_TASKS, *folders(folder)], []
            while True:
                place = draw.choice([place for place in PLACES if place in TIMES])
                rank = draw.randrange(asked.processes)
                fault = f"kill:{place}:{draw.randint(1, TIMES[place])}:rank{rank}" if kills < asked.kills else ""
                job = run(argv, folder, processes=asked.processes, fault=fault)
                if -signal.SIGKILL not in job.codes:
                    break
                kills += 1
                places.append(fault.removeprefix("kill:"))
                argv = ["--resume", str(checkpoints(folder))]
            if set(job.codes) != {0}:
                print(job.said())
                return 1
            assert_same_results(folder, reference)
            print(f"run {nb_runs}: killed at {', '.join(places) or 'no place'}: the same to the bit", flush=True)
    print(f"{kills} kills, {nb_runs} runs on {asked.processes} process(es): all the same to the bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
