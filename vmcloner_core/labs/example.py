"""The file that ``vmcloner lab example`` prints: its test applies it to a real host."""

EXAMPLE = """\
# A lab: apply it with "vmcloner apply lab.toml", compare with "vmcloner diff lab.toml",
# remove it with "vmcloner delete --lab lab.toml". All keys: docs/labs.md.

name = "shop"                     # what the lab makes carries this name

[networks.shop]                   # as by "vmcloner host prepare network --name shop"
count = 250                       # addresses for guests
# subnet = "192.168.150.0/24"     # default: one that is free

[fleets.shop-db]
template = "tiny"
count = 2
network = "shop"                  # of the first card, instead of the template's
# memory = "2GiB"                 # instead of the template's; also vcpus, disk_size
# storage = "fast"                # a pool of the settings; also hypervisor
# values_file = "db.csv"          # values for each clone, as for "create --values"

[fleets.shop-web]
template = "tiny"
count = 3
network = "shop"
after = ["shop-db"]               # made when these are ready
# hosts = "@lab"                  # of several hosts, those that get its clones
# ready = "ssh"                   # instead of the template's
# run = ["setup.sh"]              # by ssh, once on each clone; needs an image with ssh
# playbook = "site.yml"           # by Ansible, likewise

# [images.web-image]              # as by "vmcloner image build web-image --packages nginx"
# options = { packages = ["nginx"] }
"""
