"""Disks for tests, made by the real tools: mke2fs, mkfs.fat, mtools and sfdisk."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

MIB = 1024**2
BZIMAGE = bytes(0x202) + b"HdrS" + bytes(600)


def run(*argv: object, text: str = "") -> None:
    subprocess.run(
        list(map(str, argv)), input=text.encode(), check=True, capture_output=True, timeout=120
    )


def fill(folder: Path, files: Mapping[str, object]) -> Path:
    """Fill a folder: bytes or text are a file, a Path is a link, None a folder."""
    for name, content in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return folder


def ext(
    path: Path,
    files: Mapping[str, object],
    *options: str,
    kind: str = "ext4",
    size: int = 16,
    source: Path | None = None,
) -> Path:
    """Make a file system with files, or what is in ``source``, ``size`` MiB large."""
    root = source or fill(path.with_name(path.name + ".d"), {"lost": None, **files})
    path.write_bytes(b"")
    run("mke2fs", "-q", "-F", "-t", kind, *options, "-d", root, path, f"{size}M")
    return path


def fat(path: Path, bits: int, files: Mapping[str, object], size: int) -> Path:
    """Make a FAT with files, ``size`` MiB large."""
    with path.open("wb") as stream:
        stream.truncate(size * MIB)
    run("mkfs.fat", "-F", bits, "-n", "MY ESP", "-i", "1234abcd", path)
    root = fill(path.with_name(f"{path.name}.d"), files)
    for name in sorted(root.iterdir()):
        run("mcopy", "-s", "-i", path, name, "::")
    return path


def disk(path: Path, table: str, parts: Sequence[Path | None], **numbers: int) -> Path:
    """Make a disk with a table of partitions (``gpt`` or ``dos``), each of the size of its file.

    With ``dos``, those from ``logical`` on (counted from 0) are logical partitions.
    """
    logical = numbers.get("logical", len(parts))
    lines = [f"label: {table}"]
    at = MIB
    places = []
    for index, part in enumerate(parts):
        if index == logical:
            lines.append(f"start={at // 512}, type=5")
            at += MIB
        size = part.stat().st_size if part is not None else MIB
        lines.append(f"start={at // 512}, size={size // 512}")
        places.append((part, at))
        at += size + MIB
    with path.open("wb") as stream:
        stream.truncate(at + MIB)
    run("sfdisk", "-q", path, text="\n".join(lines) + "\n")
    with path.open("r+b") as stream:
        for part, at in places:
            if part is not None:
                stream.seek(at)
                stream.write(part.read_bytes())
    return path
