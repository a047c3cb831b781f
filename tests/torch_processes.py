"""Cases that four processes of torch run together, with gloo on CPUs.

The processes run every case in the same order, and write after each whether it held. One that hangs
is ended by an alarm, and the others by the connection that closes then.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

PROCESSES = 4


class Cases:
    """The cases of a file, which runs them as a program.

    `begin` is called by each process before the first one. `seconds` are those after which a case
    has hung, and all of them; `slow_seconds` are for slow cases.
    """

    def __init__(
        self,
        begin: Callable[[], None],
        seconds: tuple[int, int],
        slow_seconds: tuple[int, int] | None = None,
    ) -> None:
        self.begin = begin
        self.seconds = {False: seconds, True: slow_seconds or seconds}
        self.cases: dict[str, tuple[Callable[[], None], bool]] = {}

    def __call__(self, *, slow: bool = False):
        """Register what every process runs; a name that begins with zz is run last, always."""

        def register(f):
            self.cases[f.__name__] = f, slow
            return f

        return register

    def names(self, slow: bool) -> list[str]:
        """The names of cases to run, in their order."""
        chosen = [n for n, (_, is_slow) in self.cases.items() if is_slow == slow or n[:2] == "zz"]
        return sorted(chosen, key=lambda n: n.startswith("zz"))

    def check(self, file: str, slow: bool) -> None:
        """Run the cases of a file, and fail for the first that did not hold."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, file, folder, str(int(slow))],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                timeout=self.seconds[slow][1],
                check=False,
            )
            texts = [Path(folder, f"{rank}.txt").read_text("utf-8") for rank in range(PROCESSES)]
        results = [dict(map(json.loads, text.splitlines())) for text in texts]
        for rank, found in enumerate(results):
            for name, trouble in found.items():
                assert not trouble, f"{name} on process {rank}:\n{trouble}"
        for rank, found in enumerate(results):
            missing = set(self.names(slow)) - set(found)
            assert not missing, f"process {rank} hung, or was ended, before it finished {missing}"

    def main(self) -> None:
        """Run the cases. Processes are forked where there is fork, to import torch once."""
        folder, slow = Path(sys.argv[1]), sys.argv[2] == "1"
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        everyone = [
            context.Process(target=self.work, args=(rank, folder, slow))
            for rank in range(PROCESSES)
        ]
        for process in everyone:
            process.start()
        for process in everyone:
            process.join()

    def work(self, rank: int, folder: Path, slow: bool) -> None:
        """Run the cases as one of the processes, and write down what came of each."""
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", rank=rank, world_size=PROCESSES, init_method=(folder / "store").as_uri()
        )
        self.begin()
        with open(folder / f"{rank}.txt", "w", buffering=1, encoding="utf-8") as file:
            for name in self.names(slow):
                if hasattr(signal, "alarm"):
                    signal.alarm(self.seconds[slow][0])
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        self.cases[name][0]()
                    trouble = ""
                except BaseException:  # pytest's too
                    trouble = traceback.format_exc()
                file.write(json.dumps([name, trouble]) + "\n")
                if trouble:
                    break  # the others may wait for this process
        os._exit(0)  # gloo's threads may abort a process that ends by itself


def alike(f, kind, *words):
    """Every process must raise the same error, of one sentence."""
    try:
        f()
        text = None
    except kind as error:
        text = f"{type(error).__name__}: {error}"
    texts = [None] * PROCESSES
    dist.all_gather_object(texts, text)
    assert len(set(texts)) == 1, texts
    assert text is not None, "nothing was raised"
    assert all(word in text for word in words), text
    assert "aten" not in text, text
    assert "\n" not in text, text
