"""The templates that there are: TOML files in a list of folders, the first of a name wins.

Searched in this order: ``./templates``, the user's (``~/.config/vmcloner/templates``),
``/etc/vmcloner/templates``, then the ones shipped with vmcloner. The file's stem is the
template's name. ``extends = "NAME"`` takes everything of another template and lays this file's
keys over it, table by table; a file that extends its own name means the next of that name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
from platformdirs import user_config_path

from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, VmclonerError, did_you_mean
from vmcloner_core.model import Template
from vmcloner_core.names import check_template
from vmcloner_core.plan import Readiness
from vmcloner_core.settings import SYSTEM
from vmcloner_core.tomlfile import keys_of, read_toml, structure
from vmcloner_core.trusted_files import check_file

MAX_DEPTH = 8
"""Levels of ``extends``."""


@attrs.frozen(kw_only=True)
class TemplateInfo:
    """A template that was found: itself, or why it can't be used."""

    name: str
    file: Path
    template: Template | None = None
    error: VmclonerError | None = None


@functools.cache
def shipped() -> Path:
    """Return the folder of the templates that come with vmcloner, as trusted as its code."""
    return Path(str(resources.files("vmcloner_core.templates")))


def search_path() -> tuple[Path, ...]:
    """Return the folders that are searched, in order, whether they exist or not."""
    return (
        Path("templates").absolute(),
        user_config_path("vmcloner") / "templates",
        SYSTEM / "templates",
        shipped(),
    )


class Catalog:
    """Reads templates.

    :param built: the folder in which image builders' templates have their files, one folder each.
    :param folders: where templates are searched, in order.
    """

    def __init__(self, built: Path, folders: Sequence[Path] | None = None) -> None:
        self._built = built
        self._folders = tuple(search_path() if folders is None else folders)

    def files(self) -> dict[str, Path]:
        """Return the file of each template, by name."""
        return {name: files[0] for name, files in self._all_files().items()}

    def _all_files(self) -> dict[str, tuple[Path, ...]]:
        """Return the files of each name, by name, in the order in which they are searched."""
        found: dict[str, tuple[Path, ...]] = {}
        for folder in self._folders:
            if folder.is_dir():
                for file in folder.glob("*.toml"):
                    found[file.stem] = (*found.get(file.stem, ()), file)
        return dict(sorted(found.items()))

    def infos(self) -> tuple[TemplateInfo, ...]:
        """Read every template; one that is broken carries its error."""
        return tuple(self._info(name, file) for name, file in self.files().items())

    def _info(self, name: str, file: Path) -> TemplateInfo:
        try:
            return TemplateInfo(name=name, file=file, template=self.template(name))
        except VmclonerError as error:
            return TemplateInfo(name=name, file=file, error=error)

    def template(self, name: str) -> Template:
        """Read one template.

        :raises NotFound: there is none of that name; says which there are.
        :raises InvalidRequest: names the file, the line or key, and the reason.
        """
        check_template(name)
        files = self._all_files()
        data, kernel_folder = self._merged(name, files, ())
        file = files[name][0]
        reserved = attrs.fields_dict(Template).keys() - keys_of(Template)
        for key in sorted(reserved & data.keys()):
            raise InvalidRequest(f"{file}: unknown key {key!r}")
        # Paths are the reader's to resolve; what a builder makes lies in a folder of its own.
        template = structure({**data, "name": name}, Template, where=str(file), also=["extends"])
        if template.domain.xml is not None:
            check_file(template.domain.xml)
        folder = self._built / name if template.image.builder else kernel_folder
        try:
            Readiness.parse(template.ready)
        except InvalidRequest as error:
            raise InvalidRequest(f"{file}: ready: {error.message}", hint=error.hint) from error
        return attrs.evolve(template, folder=folder, origin_file=file)

    def _merged(
        self, name: str, files: Mapping[str, Sequence[Path]], seen: tuple[Path, ...]
    ) -> tuple[dict[str, Any], Path]:
        """Return a template's keys with those it extends, and the folder of its kernel's files.

        :param seen: the files that led here, each extending the next.
        """
        if name not in files:
            said_by = f"{seen[-1]}: extends: " if seen else ""
            raise NotFound(
                f"{said_by}unknown template {name!r}", hint=did_you_mean(name, list(files))
            )
        # What extends its own name lies over the next file of that name, a shipped one mostly.
        again = bool(seen) and seen[-1].stem == name
        left = files[name][files[name].index(seen[-1]) + 1 :] if again else files[name]
        if not left or left[0] in seen or len(seen) >= MAX_DEPTH:
            path = " > ".join([*(file.stem for file in seen), name])
            raise InvalidRequest(f"{seen[0]}: extends: {path}: a loop")
        file = left[0]
        own = _absolute(read_toml(file, trusted=file.parent != shipped()), file.parent)
        parent = own.pop("extends", None)
        if parent is None:
            return own, file.parent
        if not isinstance(parent, str):
            raise InvalidRequest(f"{file}: extends: must be a string, not {parent!r}")
        inherited, folder = self._merged(parent, files, (*seen, file))
        if own.get("boot", inherited.get("boot")) != inherited.get("boot"):
            inherited.pop("kernel", None)  # what one boot provider boots says nothing to another
        return _laid_over(inherited, own), file.parent if "kernel" in own else folder


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``data`` with the paths that always belong to their own file made absolute."""
    for table, key in (
        ("image", "path"),
        ("domain", "xml"),
        ("identity", "user_data"),
        ("identity", "network_config"),
        ("ssh", "key"),
    ):
        values = data.get(table)
        if isinstance(values, dict) and isinstance(values.get(key), str) and values[key]:
            values[key] = str(folder / Path(values[key]).expanduser())
    return data


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if key == "image":
            merged[key] = value  # a source is given whole: a path doesn't mix with a builder
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


BUILT_BY = "# Written by vmcloner image build"


def write_built(name: str, parent: str, builder: str, options: Mapping[str, Any]) -> Path:
    """Write a template of the user's own whose image a builder makes; returns its file.

    :param parent: the template that it takes all the rest of.
    :param options: the builder's, of texts, whole numbers and lists of texts.
    :raises Conflict: there is such a file, and somebody has written in it.
    """
    folder = user_config_path("vmcloner") / "templates"
    file = folder / f"{check_template(name)}.toml"
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
        if file.exists() and not _as_written(file.read_text(errors="replace")):
            raise Conflict(
                f"{file} exists, and was written or changed by hand",
                hint=f"vmcloner image build {name}, without options, builds what it says; "
                "or choose another name",
            )
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}")
        draft.write_text(_signed("\n".join(lines) + "\n"))
        draft.rename(file)
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}") from error
    return file


def _signed(text: str) -> str:
    """Return a file's text below a line that tells whether anybody has changed it since."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{BUILT_BY} ({digest}), which won't write over what you change here.\n{text}"


def _as_written(text: str) -> bool:
    return text == _signed(text.partition("\n")[2])


def _literal(value: object) -> str:
    """Return a text, whole number or list of texts in TOML, which JSON is but for DEL."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"image options: not a text: {value!r}") from error
    return text.replace("\x7f", "\\u007f")
