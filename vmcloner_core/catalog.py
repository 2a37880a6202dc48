"""Find templates: TOML files in a list of folders. The first with a given name wins.

Searched in this order: ``./templates``, the user's (``~/.config/vmcloner/templates``),
``/etc/vmcloner/templates``, then the ones shipped with vmcloner. The file's stem is the
template's name. ``extends = "NAME"`` takes all keys of another template; the keys of this file
override them, table by table. An image with another kind of source (builder, path or url) takes
nothing of the other template's image. A file that extends its own name extends the next file of
that name.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core import user_folders
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, VmclonerError, did_you_mean
from vmcloner_core.model import IMAGE_SOURCES, CapturedImage, Template
from vmcloner_core.names import check_template
from vmcloner_core.plan import Readiness
from vmcloner_core.settings import SYSTEM
from vmcloner_core.tomlfile import InvalidTable, keys_of, problem_text, read_toml, structure
from vmcloner_core.trusted_files import check_file, exists, make_folder, read_file, replacing

MAX_DEPTH = 8
"""Levels of ``extends``."""


@attrs.frozen(kw_only=True)
class TemplateInfo:
    """A template that was found, or the reason why it cannot be used."""

    name: str
    file: Path
    template: Template | None = None
    error: VmclonerError | None = None


@functools.cache
def shipped() -> Path:
    """Return the folder of the shipped templates, which are trusted like vmcloner's code."""
    return Path(str(resources.files("vmcloner_core.templates")))


def search_path() -> tuple[Path, ...]:
    """Return the folders to search, in order, whether they exist or not."""
    return (
        Path("templates").absolute(),
        user_folders.config() / "templates",
        SYSTEM / "templates",
        shipped(),
    )


class Catalog:
    """Reads templates.

    :param built: the folder with the results of image builders, one folder per template.
    :param folders: where templates are searched, in order.
    :param received: the folder with templates that controllers of many hosts sent: after the
        host's own, before the shipped ones.
    """

    def __init__(
        self, built: Path, folders: Sequence[Path] | None = None, received: Path | None = None
    ) -> None:
        self._built = built
        self._own = tuple(search_path() if folders is None else folders)
        self._received = received

    @property
    def _folders(self) -> tuple[Path, ...]:
        received = self._received
        if received is None or not os.access(received.parent, os.X_OK):
            return self._own  # the state folder is another user's, or is not there yet
        return (*self._own[:-1], received, *self._own[-1:])

    def files(self) -> dict[str, Path]:
        """Return the file of each template, by name."""
        return {name: files[0] for name, files in self._all_files().items()}

    def _all_files(self) -> dict[str, tuple[Path, ...]]:
        """Return the files with each name, in search order."""
        found: dict[str, tuple[Path, ...]] = {}
        for folder in self._folders:
            for name in _names(folder):
                file = folder / name
                # Not a draft, nor what another user put into the current folder to deceive.
                if file.suffix == ".toml" and not name.startswith(".") and name.isprintable():
                    found[file.stem] = (*found.get(file.stem, ()), file)
        return dict(sorted(found.items()))

    def stray_images(self) -> dict[str, Path]:
        """Return the image files in the folders that no template names, by their stems."""
        infos = self.infos()
        names = {info.name for info in infos}
        used = {i.template.image.path for i in infos if i.template is not None}
        found: dict[str, Path] = {}
        for folder in self._folders:
            if folder != shipped() and folder.is_dir():
                for file in sorted(folder.iterdir()):
                    stem = _image_stem(file)
                    if stem is not None and stem not in names and file not in used:
                        found.setdefault(stem, file)
        return found

    def _unknown(self, name: str, files: Collection[str], said_by: str) -> NotFound:
        # Not where a template extends it: the stray images are found by reading all templates.
        stray = {} if said_by else self.stray_images()
        for stem, file in stray.items():
            if name in (stem, file.name):
                return NotFound(
                    f"no template {name!r}: {file} is only an image",
                    hint=written_beside(file, stem),
                )
        return NotFound(f"{said_by}unknown template {name!r}", hint=did_you_mean(name, list(files)))

    def infos(self) -> tuple[TemplateInfo, ...]:
        """Read every template; a broken one is returned with its error."""
        return tuple(self._info(name, file) for name, file in self.files().items())

    def _info(self, name: str, file: Path) -> TemplateInfo:
        try:
            return TemplateInfo(name=name, file=file, template=self.template(name))
        except VmclonerError as error:
            return TemplateInfo(name=name, file=file, error=error)

    def template(self, name: str) -> Template:
        """Read one template.

        :raises NotFound: there is no template of that name; the hint suggests others.
        :raises InvalidRequest: names the file, the line or key, and the reason.
        """
        return self._structured(name, *self._read(name))

    def keys(self, name: str) -> dict[str, Any]:
        """Return a template's keys with those that it extends, and absolute paths in them.

        Those of its kernel are as in its file. :raises NotFound, InvalidRequest: as
        :meth:`template`.
        """
        return copy.deepcopy(self._read(name)[0])

    def declared(self, name: str, file: Path, text: str) -> Template:
        """Return what a template would be if a file had this text; writes nothing.

        :raises NotFound, InvalidRequest: as :meth:`template`.
        """
        return self._structured(name, *self._read(name, (file, text)))

    def examined(self, name: str) -> tuple[Template | None, tuple[str, ...]]:
        """Read one template; returns all that is wrong with its keys, and what it is without these.

        :raises NotFound: there is no template of that name.
        :raises InvalidRequest: its file, or one that it extends, can't be read at all.
        """
        data, file, folder = self._read(name)
        problems: list[str] = []
        while True:
            try:
                return self._structured(name, data, file, folder), tuple(problems)
            except InvalidTable as error:
                found = error.problems
            except InvalidRequest as error:
                return None, (*problems, error.message)
            problems += [problem_text(*problem) for problem in found]
            left = _without(data, found)
            if left == data:
                return None, tuple(problems)
            data = left

    def _read(
        self, name: str, instead: tuple[Path, str] | None = None
    ) -> tuple[dict[str, Any], Path, Path]:
        """Return a template's keys with those it extends, its file, and its kernel's folder.

        :param instead: a file and its text, to be used as the template's first file.
        """
        check_template(name)
        files, own = self._all_files(), None
        if instead is not None:
            others = (file for file in files.get(name, ()) if file != instead[0])
            files[name] = (instead[0], *others)
            own = tomllib.loads(instead[1])
        data, kernel_folder = self._merged(name, files, (), own)
        return data, files[name][0], kernel_folder

    def _structured(
        self, name: str, data: Mapping[str, Any], file: Path, kernel_folder: Path
    ) -> Template:
        reserved = attrs.fields_dict(Template).keys() - keys_of(Template)
        if unknown := sorted(reserved & data.keys()):
            raise InvalidTable(str(file), [("", f"unknown key {key!r}") for key in unknown])
        # Readers resolve relative paths; the results of a builder are in their own folder.
        template = structure({**data, "name": name}, Template, where=str(file), also=["extends"])
        if template.domain.xml is not None:
            check_file(template.domain.xml)
        image = template.image
        own = name if image.builder else image.captured and image.captured.template
        folder = self._built / own if own else kernel_folder
        try:
            Readiness.parse(template.ready)
        except InvalidRequest as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise InvalidTable(str(file), [("ready", f"{error.message}{hint}")]) from error
        return attrs.evolve(template, folder=folder, origin_file=file)

    def _merged(
        self,
        name: str,
        files: Mapping[str, Sequence[Path]],
        seen: tuple[Path, ...],
        own: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], Path]:
        """Return a template's keys merged with those it extends, and the folder of its kernel.

        :param seen: the files that led here, each extending the next.
        :param own: the keys of the file itself, if they aren't to be read from it.
        """
        if name not in files:
            raise self._unknown(name, files, f"{seen[-1]}: extends: " if seen else "")
        # A file that extends its own name extends the next one of that name, usually a shipped one.
        again = bool(seen) and seen[-1].stem == name
        left = files[name][files[name].index(seen[-1]) + 1 :] if again else files[name]
        if not left or left[0] in seen or len(seen) >= MAX_DEPTH:
            path = " > ".join([*(file.stem for file in seen), name])
            raise InvalidRequest(f"{seen[0]}: extends: {path}: a loop")
        file = left[0]
        if own is None:
            own = read_toml(file, trusted=file.parent != shipped())
        own = _absolute(own, file.parent)
        parent = own.pop("extends", None)
        if parent is None:
            return own, file.parent
        if not isinstance(parent, str):
            raise InvalidRequest(f"{file}: extends: must be a string, not {parent!r}")
        inherited, folder = self._merged(parent, files, (*seen, file))
        if own.get("boot", inherited.get("boot")) != inherited.get("boot"):
            inherited.pop("kernel", None)  # does not apply to another boot provider
        return _laid_over(inherited, own), file.parent if "kernel" in own else folder


def _names(folder: Path) -> Sequence[str]:
    """Return the names in a folder of templates; none if it doesn't exist."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise InvalidRequest(f"templates in {folder}: {error.strerror}") from error


_IMAGES = {".qcow2", ".qcow", ".raw", ".img", ".vmdk", ".vdi", ".vhd", ".vhdx", ".qed", ".ova",
           ".box"}  # fmt: skip
_PACKED = {".gz", ".xz", ".zst", ".bz2"}


def _image_stem(file: Path) -> str | None:
    """Return the stem of an image file's name, None if it is called like something else."""
    name = Path(file.stem) if file.suffix.lower() in _PACKED else Path(file.name)
    return name.stem if name.suffix.lower() in _IMAGES and file.is_file() else None


def written_beside(file: Path, stem: str) -> str:
    """Return what to write so that an image file becomes a template."""
    return f"write {file.with_name(stem)}.toml with the table [image], path = {_literal(file.name)}"


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``data`` with absolute paths for keys that are relative to their own file."""
    for table, key in (
        ("image", "path"),
        ("image", "keyring"),
        ("domain", "xml"),
        ("identity", "user_data"),
        ("identity", "network_config"),
        ("ssh", "key"),
    ):
        values = data.get(table)
        if isinstance(values, dict) and isinstance(values.get(key), str) and values[key]:
            values[key] = str(folder / user_folders.expanded(values[key]))
    identity = data.get("identity")
    if isinstance(identity, dict) and isinstance(identity.get("authorized_keys"), list):
        keys = identity["authorized_keys"]
        identity["authorized_keys"] = [_located_key(key, folder) for key in keys]
    return data


def _located_key(item: object, folder: Path) -> object:
    """Return an item of ``authorized_keys`` with an absolute path if it is a file.

    A public key has at least two words: its type and itself.
    """
    is_file = isinstance(item, str) and re.fullmatch(r"(?!~)\S*[./]\S*", item)
    return str(folder / str(item)) if is_file else item


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            lay = _image_over if key == "image" else _laid_over
            merged[key] = lay(merged[key], value)
        else:
            merged[key] = value
    return merged


def _image_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table ``image`` laid over another: a source of another kind replaces all of it."""
    given = [key for key in IMAGE_SOURCES if key in over]
    if any(key not in under or (key == "builder" and under[key] != over[key]) for key in given):
        return dict(over)
    checks = ("sha256", "checksums")
    if any(under[key] != over[key] for key in given) or any(key in over for key in checks):
        # They are of other bytes, or say it in another way.
        gone = (*checks, "signature", "keyring")
        under = {key: value for key, value in under.items() if key not in gone}
    return _laid_over(under, over)


def _without(data: Mapping[str, Any], problems: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a template's keys without those that have problems.

    A table goes as a whole, unless the problem is only a key of it that is unknown.
    """
    left = dict(data)
    for place, reason in problems:
        unknown = re.match(r"unknown key '([^']*)'", reason)
        table = left.get(place) if place else left
        if unknown is not None and isinstance(table, dict):
            table = {key: value for key, value in table.items() if key != unknown[1]}
            left = {**left, place: table} if place else table
        else:
            left.pop(re.split(r"[.\[]", place)[0], None)
    return left


def own_file(name: str) -> Path:
    """Return the file of a template of the user's own."""
    return user_folders.config() / "templates" / f"{check_template(name)}.toml"


BUILT_BY = "# Written by vmcloner image build"


def built(name: str, parent: str, builder: str, options: Mapping[str, Any]) -> tuple[Path, str]:
    """Return a user template whose image is made by a builder: its file, and the text to write.

    :param parent: the template that it extends.
    :param options: the builder's options: strings, integers and lists of strings.
    :raises Conflict: the file exists, and was written or changed by hand.
    """
    file = own_file(name)
    lines = [
        f"extends = {_literal(parent)}",
        "",
        "[image]",
        f"builder = {_literal(builder)}",
        "",
        "[image.options]",
        *(f"{key} = {_literal(value)}" for key, value in options.items()),
    ]
    try:
        there = read_file(file, trusted=False) if exists(file) else None
        if there is not None and not _as_written(there.decode(errors="replace")):
            raise Conflict(
                f"{file} exists and was written or changed by hand",
                hint=f"vmcloner image build {name}, without options, builds it as it is; "
                "or choose another name",
            )
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}") from error
    return file, _signed("\n".join(lines) + "\n")


CAPTURED_BY = "# Written by vmcloner template capture"


def captured(
    parent: str, keys: Mapping[str, Any], kernel: Mapping[str, str], image: CapturedImage | str
) -> str:
    """Return the text of a template's file whose image was captured.

    :param parent: the template that it extends. :param keys: others at the top.
    :param kernel: keys of the table of that name. :param image: where it is: a pool, or a file.
    """
    lines = [f"extends = {_literal(parent)}"]
    lines += [f"{key} = {_literal(value)}" for key, value in keys.items()]
    if kernel:
        lines += ["", "[kernel]", *(f"{key} = {_literal(value)}" for key, value in kernel.items())]
    if isinstance(image, str):
        lines += ["", "[image]", f"path = {_literal(image)}"]
    else:
        lines += ["", "[image.captured]"]
        lines += [f"{key} = {_literal(value)}" for key, value in attrs.asdict(image).items()]
    return _signed("\n".join(lines) + "\n", CAPTURED_BY)


def is_captured(file: Path) -> bool:
    """Tell whether a file is a captured template's, as it was written.

    :raises InvalidRequest: it can't be read.
    """
    return _as_written(read_file(file, trusted=False).decode(errors="replace"), CAPTURED_BY)


def sent(keys: Mapping[str, Any]) -> str:
    """Return the text of a template's file with these keys, for a host to which it is sent."""
    lines = ["# Sent by a controller of many hosts; vmcloner template delete removes it.", ""]
    lines += [f"{_literal(key)} = {_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """Return a value as TOML; tables are written in line."""
    if isinstance(value, Mapping):
        inner = (f"{_literal(key)} = {_value(each)}" for key, each in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return _literal(value)


def write(file: Path, text: str) -> None:
    """Write a template's file, whole or not at all.

    :raises InvalidRequest: it can't be written.
    """
    try:
        make_folder(file.parent)
        with replacing(file, 0o644, lasting=False) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}") from error


def _signed(text: str, by: str = BUILT_BY) -> str:
    """Return the text with a first line that reveals later changes."""
    return f"{_signature(text, by)}, which does not overwrite your changes.\n{text}"


def _signature(text: str, by: str) -> str:
    return f"{by} ({hashlib.sha256(text.encode()).hexdigest()[:16]})"


def _as_written(text: str, by: str = BUILT_BY) -> bool:
    first, _, rest = text.partition("\n")
    return first.startswith(_signature(rest, by))


def _literal(value: object) -> str:
    """Return a string, integer or list of strings as TOML, which equals JSON except for DEL."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"image options: not valid text: {value!r}") from error
    return text.replace("\x7f", "\\u007f")
