"""python -m service.launcher.child: become a command that ends when the launcher does.

Between the start of the process and the command, it asks the kernel for a signal at the launcher's death (on Linux) and
registers with the reaper, which works on every system. Then it replaces itself with the command. Nothing can be lost
between the two: the reaper acts only when every writer of its pipe has ended, and this process is one of them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from service.launcher.reaper import registration
from service.parent_death import request_kernel_signal


def command_line(command: Sequence[str], *, parent: int, pipe: int, stop_signal: signal.Signals) -> list[str]:
    """Build the command line that runs `command` as a child of the launcher.

    Args:
        command: The program and its arguments.
        parent: The process id of the launcher.
        pipe: The file descriptor of the reaper's pipe, which the child must inherit.
        stop_signal: The signal that ends the command when the launcher is gone.

    Returns:
        The command line for `subprocess.Popen`.
    """
    own = [sys.executable, "-m", "service.launcher.child"]
    return [*own, str(parent), str(pipe), str(int(stop_signal)), *command]


def main() -> None:
    """Bind this process to the launcher and replace it with the command."""
    parser = argparse.ArgumentParser(prog="python -m service.launcher.child", description=__doc__)
    parser.add_argument("parent", type=int, help="process id of the launcher")
    parser.add_argument("pipe", type=int, help="file descriptor of the reaper's pipe")
    parser.add_argument("stop_signal", type=int, help="number of the signal at the launcher's death")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command to become")
    args = parser.parse_args()
    stop_signal = signal.Signals(args.stop_signal)
    os.write(args.pipe, registration(os.getpid(), stop_signal))
    os.close(args.pipe)
    request_kernel_signal(stop_signal)
    if os.getppid() != args.parent:
        sys.exit(1)  # the launcher ended before the request
    os.execvp(args.command[0], args.command)  # noqa: S606 - becomes the command, without a shell


if __name__ == "__main__":
    main()
