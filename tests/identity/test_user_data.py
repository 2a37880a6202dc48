"""User-data beside cloud-init's own reading of it."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcloner_core.errors import InvalidRequest
from vmcloner_identity.documents import check_user_data

pytestmark = pytest.mark.others

MODULES = Path(__file__).parents[2] / ".venv/unpacked/usr/lib/python3/dist-packages"
HANDLED = {
    "text/cloud-config", "text/cloud-config-jsonp", "text/x-shellscript", "text/cloud-boothook",
    "text/part-handler", "text/jinja2", "text/x-include-url", "text/x-include-once-url",
    *(f"text/x-shellscript-per-{when}" for when in ("boot", "instance", "once")),
}  # fmt: skip
PROGRAM = """
import base64, json, logging, sys
sys.path.append(sys.argv[1])
logging.disable()
from cloudinit import helpers, safeyaml, user_data, util
user_data.UserDataProcessor._do_include = lambda self, content, message: message.attach(
    user_data.convert_string("", "text/x-include-url"))
processor = user_data.UserDataProcessor(helpers.Paths({}))
for line in sys.stdin:
    try:
        found = []
        for part in processor.process(base64.b64decode(line)).walk():
            if part.get_content_maintype() != "multipart":
                payload = util.fully_decoded_payload(part)
                kind = part.get_content_type()
                if kind == "text/cloud-config":
                    try:
                        sound = isinstance(safeyaml.load(util.decode_binary(payload)), dict | None)
                    except Exception:
                        sound = False
                    kind = kind if sound else "unsound"
                found.append(kind)
    except Exception as error:
        found = ["unsound"]
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def cloud_init() -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(MODULES)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        _stream(process.stdin).close()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def types(cloud_init: subprocess.Popen[str], content: bytes) -> set[str]:
    """Return the types of the parts that cloud-init finds; "unsound" where its YAML is."""
    stream = _stream(cloud_init.stdin)
    stream.write(base64.b64encode(content).decode() + "\n")
    stream.flush()
    return set(json.loads(_stream(cloud_init.stdout).readline()))


BEGINNING = st.sampled_from(
    ["#cloud-config\na: 1\n", "#!/bin/sh\n", "#include http://x\n", "#include-once\nhttp://x\n",
     "#cloud-boothook\n", "#part-handler\n", "## template: jinja\n#cloud-config\n", "{}\n",
     "#cloud-config-archive\n- {content: '#!/bin/sh'}\n", "#cloud-config-jsonp\n", "hello\n",
     "#upstart-job\n", "# cloud-config\n", "#CLOUD-CONFIG\n", "cloud-config\n", "Content-Type: x\n",
     "#cloud-config-archive\n- '#cloud-config'\n- {type: text/plain, content: x}\n",
     "#Include http://x\n", "##template: jinja\n", "#cloudconfig\n", "", "#cloud-config garbage\n"]
)  # fmt: skip
BLANK = st.sampled_from(["", "", "\n", "  ", "\t", "\r\n", "\ufeff", "\x0b", "\x1f", "\u00a0"])
TYPE = st.sampled_from(
    ["text/cloud-config", "text/x-shellscript", "text/plain", "text/x-not-multipart", "text/html",
     "text/cloud-boothook", "TEXT/CLOUD-CONFIG", "application/octet-stream", "text/jinja2",
     "text/x-shellscript-per-boot", "text/part-handler", "text/cloud-config; charset=utf-8", "x",
     "text/x-include-url", "text/cloud-config-jsonp"]
)  # fmt: skip
PLAIN = st.tuples(BLANK, BEGINNING).map("".join)


def mime(parts: list[tuple[str, str]], first: str, version: str) -> str:
    """Return a MIME message of several parts."""
    head = f'Content-Type: multipart/mixed; boundary="=="\n{version}\n'
    body = "".join(f"--==\nContent-Type: {kind}\n\n{text}\n" for kind, text in parts)
    return f"{first}{head}\n{body}--==--\n"


VERSION = st.sampled_from(["MIME-Version: 1.0", "mime-version: 1.0", "Mime-Version: 1.0", "X: 1"])
FIRST = st.sampled_from(["", "From nobody\n", "Subject: x\n", "\n", "X-Long: " + "y" * 5000 + "\n"])
MESSAGE = st.builds(mime, st.lists(st.tuples(TYPE, PLAIN), max_size=3), FIRST, VERSION)
SINGLE = st.builds(
    lambda kind, version, text: f"Content-Type: {kind}\n{version}\n\n{text}", TYPE, VERSION, PLAIN
)


@settings(max_examples=300)
@given(PLAIN | MESSAGE | SINGLE)
def test_what_cloud_init_takes_is_taken(cloud_init: subprocess.Popen[str], text: str) -> None:
    found = types(cloud_init, text.encode())
    try:
        check_user_data(text.encode(), "user-data")
        taken = True
    except InvalidRequest:
        taken = False
    known = not found or bool(HANDLED & found)
    assert taken == (known and "unsound" not in found), found
