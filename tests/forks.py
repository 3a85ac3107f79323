"""Commands of the scripts in processes of their own, forked from one interpreter that has imported them.

Importing torch costs seconds, a fork milliseconds: dozens of processes can be killed in the time of one
start. `Forks(scripts)` starts the interpreter, which runs this file.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDERS = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]


class Forks:
    """A clean interpreter with `scripts` imported; `run` gives one command a process."""

    def __init__(self, scripts):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.interpreter = subprocess.Popen([sys.executable, __file__, *scripts], **pipes)
        assert self.interpreter.stdout.readline() == "ready\n"

    def run(self, script, argv, **how):
        """(exit status, standard output, standard error); the status of a killed one is minus the signal.

        `kill=(signal, seconds)` is sent that long after the start, or with `after_text=True` after the first
        output. `file_size` is the limit in bytes that a full disk is. With `evaluate=False` evaluation
        is left out. `repeat=True` runs the command again and again.
        """
        request = {"script": script, "argv": [str(word) for word in argv], "cwd": os.getcwd(), **how}
        self.interpreter.stdin.write(json.dumps(request) + "\n")
        self.interpreter.stdin.flush()
        return tuple(json.loads(self.interpreter.stdout.readline()))

    def close(self):
        self.interpreter.stdin.close()
        self.interpreter.stdout.close()
        self.interpreter.wait()


def become(script, argv, cwd, evaluate=True, file_size=None, repeat=False, **_):
    """In the forked process: `python script.py argv...`."""
    os.chdir(cwd)
    sys.stdout.reconfigure(line_buffering=True)
    module = importlib.import_module(script)
    if not evaluate:
        module.evaluate = lambda *_: module.np.zeros(1)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    status = 0
    try:
        module.main(argv)
        while repeat:
            module.main(argv)
    except SystemExit as exit_:
        status = exit_.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(scripts):
    """Answer each line of standard input, a request, with a line of standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # banners of imports do not belong among the answers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for script in scripts:
        importlib.import_module(script)
    importlib.import_module("torch._dynamo")  # which the first optimizer imports, a second's work
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                become(**request)
            if "kill" in request:
                number, seconds = request["kill"]
                while request.get("after_text") and os.fstat(out.fileno()).st_size == 0:
                    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                        break
                    time.sleep(0.01)
                time.sleep(seconds)
                os.kill(pid, number)  # it was not waited for yet: the number is still its own
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
            for file in (out, err):
                file.seek(0)
                answer.append(file.read().decode())
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path[:0] = FOLDERS
    serve(sys.argv[1:])
