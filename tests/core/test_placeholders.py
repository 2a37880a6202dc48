"""Texts with placeholders: filled in whole, or refused."""

import resource
from pathlib import Path

import pytest

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.placeholders import MAX_TEXT, fill


def test_a_text_is_filled_in_whole_up_to_its_limit():
    text = "{{ name }}".ljust(MAX_TEXT - 1, ".") + "!"
    assert fill(text, {"name": "web-1"}, what="x").endswith(".!")


@pytest.mark.parametrize("text", ["{{ name }}".ljust(MAX_TEXT + 1), "{{ '.' * 65537 }}"])
def test_a_text_beyond_its_limit_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"t1: user_data: .* longer than 65536"):
        fill(text, {"name": "web-1"}, what="t1: user_data")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{ '%03d' % index }}", "007"),
        ("{{ 8000 + index }}", "8007"),
        ("{{ '%03d'|format(index) }}", "007"),
        ("{{ '{:>4}'.format(name) }}", " web"),
        ("{{ name.upper().replace('W', 'V') ~ '-' ~ index }}", "VEB-7"),
        ("{{ address.split('/')[0] }}", "192.0.2.1"),
        ("{{ port|default(8000) }}", "8000"),
        ("{{ macs|join(', ') }} {{ ','.join(macs) }}", "a, b a,b"),
        ("{{ macs }} {{ macs|tojson }}", "['a', 'b'] [\"a\", \"b\"]"),
        ("{% for mac in macs %}{{ loop.index }}/{{ loop.length }}={{ mac }} {% endfor %}",
         "1/2=a 2/2=b "),
        ("{% for m in macs if m != 'a' %}{{ m }}{% else %}none{% endfor %}", "b"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "x1"),
        ("{% for n in range(3) %}{{ n }}{% endfor %}", "012"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m('a') }}", "<1><a>"),
        ("{% set ns = namespace(n=0) %}{% for m in macs %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "2"),
        ("{% set text %}{{ name }}{% endset %}{{ text|indent(2, true) }}", "  web"),
        ("{{ macs|map('upper')|list|sort(reverse=true)|first }}", "B"),
        ("{{ 2 ** 10 }} {{ 7 % 4 }} {{ 1 if index > 3 else 2 }}", "1024 3 1"),
    ],
)  # fmt: skip
def test_what_placeholders_can_do(text, filled):
    values = {"name": "web", "index": 7, "macs": ["a", "b"], "address": "192.0.2.1/24"}
    assert fill(text, values, what="x") == filled


LOOP = "{% for a in range(99999) %}"
END = "{% endfor %}"
DOUBLING = "{% set x = [name] %}" + "{% set x = [x, x] %}" * 60
BOMBS = (
    LOOP * 3 + END * 3,
    LOOP + "x" * 9000 + END,
    LOOP + "{% if false %}" + "x" * 9000 + "{% endif %}" + END,
    "{% for a in range(99999) if false %}{% endfor %}" * 20,
    "{% for a in 'x' * 60000 %}{% for b in 'x' * 60000 %}{% endfor %}{% endfor %}",
    "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}" + "x" * 5000 + "{% endmacro %}" + LOOP + "{% set y = m() %}" + END,
    "{% block b %}" + "{{ self.b() }}" * 2 + "{% endblock %}",
    DOUBLING,
    DOUBLING.replace("[x, x]", "(x, x)"),
    DOUBLING.replace("[x, x]", "{1: x, 2: x}"),
    "{% set x = name %}" + "{% set x = x ~ x %}" * 60,
    "{% set x = name %}" + "{% set x = x + x %}" * 60,
    "{% set x = name %}" + "{% set x = x|replace('w', x) %}" * 60,
    "{% set x = 9 %}" + "{% set x = x * x %}" * 60,
    "{% set n = namespace(x='ab') %}" + LOOP + "{% set n.x = n.x ~ n.x %}" + END,
    "{% set n = namespace(x=name, y=name) %}{{ n }}",
    "{% set n = namespace(x=name) %}{{ namespace(x=n, y=n)|string }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '%3000000000d'|format(1) }}",
    "{{ '%*d' % (3000000000, 1) }}",
    "{{ '%.3000000000f' % 1 }}",
    "{{ '{:3000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=3000000000) }}",
    "{{ '{x:3000000000}'.format_map({'x': 1}) }}",
    "{{ 'x' * 3000000000 }}",
    "{{ 3000000000 * 'x' }}",
    "{{ [1] * 3000000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ (2 ** 64) ** 64 }}",
    "{{ 1|center(3000000000) }}",
    "{{ 'x'.ljust(3000000000) }}",
    "{{ 'x'.zfill(width=3000000000) }}",
    "{{ 'x'.zfill(3000000000) }}",
    "{{ 'x'.expandtabs(3000000000) }}",
    "{{ ('x\n' * 9000)|indent(3000000) }}",
    "{{ ('x\n' * 9000)|indent('x' * 60000) }}",
    "{{ macs|tojson(indent=3000000000) }}",
    "{{ 1.5|round(3000000000, 'ceil') }}",
    "{{ ('x' * 60000)|replace('', 'x' * 60000) }}",
    "{{ ('x' * 60000).replace('x', 'x' * 60000) }}",
    "{{ range(99999)|join('x' * 60000) }}",
    "{{ ('x' * 60000).join('x' * 60000) }}",
    "{{ range(99999)|map('center', 60000)|list|length }}",
    "{{ 'x'|batch(3000000000, 'x')|list }}",
    "{{ 'x'|slice(3000000000)|list }}",
    "{{ lipsum(n=3000000000) }}",
    "{{ (1).to_bytes(3000000000) }}",
    "{{ name.encode() }}",
    "{{ " + "9" * 5000 + " }}",
    "{{ " + "(" * 20000 + " }}",
    "{{ 1" + " + 1" * 15000 + " }}",
)


@pytest.mark.parametrize("text", BOMBS, ids=[text[:40].replace("\n", " ") for text in BOMBS])
def test_work_is_bounded(text):
    """Each would take gigabytes, or never end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # what earlier tests left counts
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 1024**3, hard))
    try:
        with pytest.raises(InvalidRequest, match=r"^x: ") as caught:
            fill(text, {"name": "web", "macs": ["a"]}, what="x")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not isinstance(caught.value.__cause__, MemoryError)
    assert len(str(caught.value)) < 300


def test_strings_of_a_text_with_its_own_grammar_are_escaped():
    def escape(text):
        return text.replace("<", "&lt;")

    values = {"name": "<a>", "index": 7, "macs": ["<b>", "c"]}
    text = fill("{{ name }} {{ index }} {{ macs[0] }}", values, what="x", escape=escape)
    assert text == "&lt;a> 7 &lt;b>"
    for value in ({"a": "<b>"}, [["<b>"]], 1.5, None):
        with pytest.raises(InvalidRequest, match="x: note: neither a string nor an integer"):
            fill("{{ note }}", {"note": value}, what="x", escape=escape)
