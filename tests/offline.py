"""A command without network: in a network namespace of its own, where nothing but the loopback is.

From a shell: `python tests/offline.py COMMAND …`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings

# Notebook kernels talk over the loopback, which a new namespace has switched off. Two flags: up, running.
LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    fcntl.ioctl(end, 0x8914, struct.pack("16sH", b"lo", 0x1 | 0x40))
    try:
        end.connect(("192.0.2.1", 9))
        sys.exit("there is a network")
    except OSError:
        os.execvp(sys.argv[1], sys.argv[1:])
"""


def offline(command: list[str]) -> list[str]:
    """The command as it runs without network.

    As it is, with a warning, where that is not permitted, which a continuous integration must not let pass.
    """
    tool = shutil.which("unshare")
    if tool and subprocess.run([tool, "-rn", "true"], capture_output=True).returncode == 0:
        return [tool, "-rn", sys.executable, "-c", LOOPBACK, *command]
    assert "CI" not in os.environ, "no network namespaces here: `unshare -rn` has to be permitted"
    warnings.warn("no network namespaces here (`unshare -rn` is not permitted): this ran with a network", stacklevel=2)
    return command


if __name__ == "__main__":
    line = offline(sys.argv[1:])
    os.execvp(line[0], line)
