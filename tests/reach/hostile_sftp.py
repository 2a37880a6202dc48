"""An SFTP server that means ill: sshd runs ``hostile_sftp.py MODE``.

The protocol is version 3: draft-ietf-secsh-filexfer-02.

Every path is a folder, but those that end in ``file``. What it answers is in :data:`NAMES`.
"""

import struct
import sys

INIT, OPEN, CLOSE, READ, LSTAT, FSTAT, OPENDIR, READDIR, REALPATH, STAT = (
    1, 3, 4, 5, 7, 8, 11, 12, 16, 17,
)  # fmt: skip
OK, EOF, FAILURE = 0, 1, 4
FOLDER, FILE, LINK = 0o40755, 0o104777, 0o120777
NAMES = {
    "upwards": [("../evil.file", FILE), ("/tmp/evil.file", FILE), ("..", FOLDER), ("file", FILE)],
    "glob": [("..", FOLDER), (".x", FOLDER)],
    "endless": [("file", FILE)],
    "nested": [("down", FOLDER), ("file", FILE)],
    "many": [(f"{n}.file", FILE) for n in range(200)],
    "link": [("link", LINK), ("file", FILE)],
    "control": [("\x1b[31mred\n.file", FILE)],
}


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def attributes(mode: int, size: int) -> bytes:
    return struct.pack(">IQI", 1 | 4, size, mode)


class Server:
    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.told: set[bytes] = set()
        self.size = 2**40 if mode == "endless" else 5

    def of(self, path: bytes) -> bytes:
        return attributes(FILE if path.endswith(b"file") else FOLDER, self.size)

    def answer(self, kind: int, body: bytes) -> bytes:
        if kind == INIT:
            return bytes([2]) + struct.pack(">I", 3)
        number, rest = body[:4], body[4:]
        (length,) = struct.unpack(">I", rest[:4])
        path, rest = rest[4 : 4 + length], rest[4 + length :]
        status = bytes([101]) + number
        if kind == REALPATH:
            name = text(b"/" + path.strip(b"/."))
            return (
                bytes([104]) + number + struct.pack(">I", 1) + name + name + attributes(FOLDER, 0)
            )
        if kind in (STAT, LSTAT, FSTAT):
            return bytes([105]) + number + self.of(path)
        if kind in (OPEN, OPENDIR):
            self.told.discard(path)
            return bytes([102]) + number + text(path)
        if kind == READDIR and path not in self.told:
            self.told.add(path)
            names = [(name.encode(), mode) for name, mode in NAMES[self.mode]]
            entries = [text(n) + text(n) + attributes(m, self.size) for n, m in names]
            return bytes([104]) + number + struct.pack(">I", len(entries)) + b"".join(entries)
        if kind == READ:
            offset, wanted = struct.unpack(">QI", rest[:12])
            data = bytes(min(wanted, max(0, self.size - offset)))
            if data:
                return bytes([103]) + number + text(data)
        code = EOF if kind in (READ, READDIR) else OK
        return status + struct.pack(">I", code) + text(b"") + text(b"")


def main() -> None:
    server = Server(sys.argv[1])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while head := stdin.read(5):
        length, kind = struct.unpack(">IB", head)
        answer = server.answer(kind, stdin.read(length - 1))
        stdout.write(text(answer))
        stdout.flush()


if __name__ == "__main__":
    main()
