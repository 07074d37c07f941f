"""What the tests do in a network namespace that is not theirs."""

import ctypes
import queue
import threading

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace, make, seconds):
    """What `make()` gives, called in the namespace of that file within that time: the sockets that it opens, and the
    programs that it starts, belong there for good."""
    result = queue.SimpleQueue()

    def enter():
        try:
            with open(namespace) as file:
                if _libc.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            result.put((make(), None))
        except BaseException as failure:
            result.put((None, failure))

    # A thread of its own: entering a namespace changes the thread for ever.
    threading.Thread(target=enter, daemon=True).start()
    value, failure = result.get(timeout=seconds)
    if failure:
        raise failure
    return value
