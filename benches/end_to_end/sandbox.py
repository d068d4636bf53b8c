"""A place of its own for a measurement: processes, mounts and networks that end with it.

Everything that is measured runs below one process that is the first of its PID namespace and has a private /run. So the
kernel itself ends every daemon and takes away every namespace, link and socket file when that process ends, however it
ends: finished, interrupted or killed. Two measurements at once cannot even see each other's names.

Only namespaces are made here; what is put into them is in lab.py.
"""

import ctypes
import os
import signal
import sys
import traceback

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
PR_SET_PDEATHSIG = 1

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Somebody asked this run to end."""


def run(work):
    """Calls `work` inside of a new sandbox; returns its exit code."""
    check(libc.unshare(CLONE_NEWPID), "unshare")
    first = os.fork()
    if first == 0:
        os._exit(as_first_process(work))
    for number in ENDING:
        signal.signal(number, lambda number, _frame: os.kill(first, number))
    _, status = os.waitpid(first, 0)
    return os.waitstatus_to_exitcode(status)


def as_first_process(work):
    try:
        for number in ENDING:
            signal.signal(number, interrupt)
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        mount("proc", "/proc", "proc")
        for directory in {"/run", os.path.realpath("/var/run")}:
            mount("tmpfs", directory, "tmpfs")
        os.makedirs("/var/run/wireguard", mode=0o755)
        return work()
    except Interrupted as asked:
        print(f"interrupted ({asked}); nothing is left behind", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def interrupt(number, _frame):
    for every in ENDING:
        signal.signal(every, signal.SIG_IGN)
    raise Interrupted(signal.Signals(number).name)


def mount(source, target, kind, flags=0):
    check(libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None), f"mount on {target}")


def check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
