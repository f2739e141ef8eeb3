"""What PostgreSQL runs for each WAL file: asks flypg over a unix socket, and answers with an exit code.

    archive_command = 'python3 -I -S walpush.py push SOCKET "%p"'
    restore_command = 'python3 -I -S walpush.py get SOCKET %f "%p"'

It starts once per segment and must cost nothing: no import that takes time, no line of flypg. It is copied to where the
server's user can read it, and any Python 3 will do; walpush.pl is the same for perl, which is preferred: it starts
sooner. push: 0 stored durably, 1 not (PostgreSQL keeps the file and asks again), 126 not, and ask no more: PostgreSQL
ends its archiver, which would try three times, a second apart, while a switchover waits for its stop. get: 0 there, 1
not in the archive, 254 "stop": the archive cannot be read now, and a mere 1 would make PostgreSQL believe that the WAL
ends here and open too early.
"""

import os
import sys
import time
from _socket import AF_UNIX, SOCK_STREAM, socket  # the C module: importing `socket` doubles the time of a start

CONNECT_S = 10.0  # while flypg restarts; a failure would make PostgreSQL pause for a minute after three
ANSWER_S = {"push": 60.0, "get": 600.0}


def ask(path: str, line: bytes, answer_s: float) -> str:
    """Send one line, return the line that comes back. Raises OSError."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        connection = socket(AF_UNIX, SOCK_STREAM)
        connection.settimeout(answer_s)
        try:
            connection.connect(path)
            break
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    connection.send(line)  # a line of a few hundred bytes fits into any socket's buffer
    answer = b""
    while not answer.endswith(b"\n"):
        piece = connection.recv(4096)
        if not piece:
            raise OSError("flypg hung up")
        answer += piece
    connection.close()
    return answer[:-1].decode()


def main(arguments: list[str]) -> int:
    verb, path = arguments[:2]
    file = os.path.abspath(arguments[-1])
    fields = [verb, file] if verb == "push" else [verb, arguments[2], file]
    try:
        answer = ask(path, ("\t".join(fields) + "\n").encode(), ANSWER_S[verb])
    except OSError as error:
        answer = "stop flypg does not answer at " + path + ": " + str(error)
    word, _, message = answer.partition(" ")
    if word == "ok":
        return 0
    if message:
        sys.stderr.write("flypg: " + message + "\n")
    if verb == "push" and word == "end":
        return 126
    return 254 if verb == "get" and word != "no" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
