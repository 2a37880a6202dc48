"""Scripts of a lab in a real guest: a Debian that is built here, by ssh."""

import json

import pytest

from tests.identity.debians import debians

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(1800)]


def test_a_script_runs_once_on_each_clone_and_again_only_where_it_failed():
    with debians() as made:
        site, fleet = made.site, made.site.fleet("run")
        (site.folder / "setup.sh").write_text(
            "date >> /root/done\n"
            '[ "$(hostname)" != "' + fleet + '-2" ] || [ -e /root/may ] || exit 3\n'
        )
        lab = site.folder / "lab.toml"
        lab.write_text(
            f'name = "{site.prefix}"\n[fleets.{fleet}]\ntemplate = "deb"\ncount = 2\n'
            'timeout = 900\nmemory = "320MiB"\nrun = ["setup.sh"]\n'
        )
        try:
            err = site.run("apply", str(lab), code=10, timeout=1700)
            assert f"{fleet}-2: setup.sh: failed with 3" in err
            rows = site.rows(fleet)
            made.ssh(rows[1], "touch /root/may")
            done = json.loads(site.run("apply", str(lab), "-f", "json", timeout=900))
            assert [(row["action"], row["name"]) for row in done] == [("provision", f"{fleet}-2")]
            runs = [made.ssh(row, "cat /root/done").count("\n") for row in rows]
            assert runs == [1, 2]
            site.run("diff", str(lab))
            assert json.loads(site.run("apply", str(lab), "-f", "json", timeout=900)) == []
            assert [made.ssh(row, "cat /root/done").count("\n") for row in rows] == [1, 2]
        finally:
            site.run("delete", "--lab", str(lab), "--yes", "--missing-ok", timeout=300)
