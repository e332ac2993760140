"""How a script stops: on a signal with everything saved, or with one line that says what is wrong."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stopped(Exception):
    """Asked to stop by signal `number`; everything is saved in `folder`."""

    def __init__(self, number: int, folder: Path):
        super().__init__(f"saved in {folder}; the same command goes on from here")
        self.number = number


class StopSignal:
    """Remembers the first SIGINT, SIGTERM or SIGHUP, so that the loop can save and leave; a second one leaves at once.

    SIGHUP says that the terminal was closed: what is still said goes nowhere. Where nohup has it ignored, it stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self._asking: Any = None  # of several processes: the question of the step before

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self.before = {n: signal.signal(n, self._handle) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        if self.number and number == signal.SIGHUP:  # shell and kernel each send one
            return
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        if number == signal.SIGHUP:  # writing to a terminal that is gone is an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in self.terminals:
                os.dup2(nowhere, fd)
            os.close(nowhere)
        # not by the logger: a signal may come while its handlers hold their locks
        print(f"\n{signal.Signals(number).name}: saving after this step; once more leaves at once", file=sys.stderr)

    def asked(self, world_size: int) -> int:
        """The number of the signal that any process has been sent, or 0; all processes get the same answer.

        Several processes ask at one step and hear the answer at the next, so that none of them waits for the others.
        """
        if world_size == 1:
            return self.number
        import torch  # not needed to show the help of a script
        import torch.distributed as dist

        from vfm4us.runtime.processes import cpu_group

        answer = 0
        if self._asking is not None:
            handle, flag = self._asking
            handle.wait()
            answer = int(flag)
        flag = torch.tensor([self.number])
        self._asking = (dist.all_reduce(flag, dist.ReduceOp.MAX, group=cpu_group(), async_op=True), flag)
        return answer


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and return its exit code; what a user can cause becomes one line instead of a traceback.

    ValueError, OSError, FloatingPointError: `error: ...` and 2. Stopped: 128 + the signal, so 130 (SIGINT), 143 (SIGTERM) or
    129 (SIGHUP). KeyboardInterrupt: 130.
    """
    try:
        return main() or 0
    except Stopped as stopped:
        print(stopped)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("left at once; the same command goes on from what is saved, if there is anything yet", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError, FloatingPointError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror and error.filename is None else error
        print(f"error: {words}", file=sys.stderr)
        return 2
