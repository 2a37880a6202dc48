# shellcheck shell=sh
# Makes a running guest the machine that its seed disk names: see vmcloner_core/reseeding.py. Runs as
# root in any guest with a POSIX shell, from a pipe or from a file; again and again, if need be.
#
# In the environment, or set before: entropy (hexadecimal digits), now (seconds since the epoch).
# Words: "wait" only says on the console that this waits for the disk.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
umask 022
work=/run/vmcloner-seed
state=/var/lib/vmcloner-seed
name=
die() {
    echo "vmcloner-reseed-failed $*" >&2
    exit 1
}
if [ "${1:-}" = wait ]; then
    echo vmcloner-waits-for-seed
    exit 0
fi
[ "$(id -u)" = 0 ] || die "not root"
[ -d /run ] || work=/tmp/vmcloner-seed
(umask 077 && mkdir -p "$work/disk" "$state") || die "$work, $state: can't be made"
trap 'rm -f "$work/identity" "$work/network-config" "$work/entropy"' EXIT # they hold secrets
# Two at once, of a command that was killed and its successor, would mix.
if command -v flock >/dev/null; then
    exec 9>"$work/lock"
    flock -w 60 9 || die "another reseeding doesn't end"
fi

# --- the seed disk: by its serial, which needs no udev ---
seed_disk() {
    for serial in /sys/block/*/serial; do
        [ "$(cat "$serial" 2>/dev/null)" = vmcloner-seed ] || continue
        serial=${serial%/serial}
        echo "/dev/${serial##*/}"
        return
    done
}
tries=0
until [ -b "$(seed_disk)" ]; do
    [ $tries -lt 100 ] || die "no disk has the serial vmcloner-seed"
    tries=$((tries + 1))
    sleep 0.1 2>/dev/null || sleep 1
done
mount -t iso9660 -o ro,nosuid,nodev,noexec "$(seed_disk)" "$work/disk" ||
    die "the seed disk can't be mounted"
(umask 077 && cat "$work/disk/vmcloner" >"$work/identity" &&
    cat "$work/disk/network-config" >"$work/network-config")
umount "$work/disk"
[ "$(tail -n 1 "$work/identity")" = end ] || die "the seed has no whole file vmcloner"
values() { sed -n "s/^$1 //p" "$work/identity"; }
name=$(values name)
answer() {
    echo "vmcloner-reseeded $name random=$random"
    exit 0
}
random=unchanged
[ "$(cat "$state/generation" 2>/dev/null)" != "$(values generation)" ] || answer

# --- random numbers, before any are used ---
# RNDADDENTROPY mixes the bytes in and counts them, RNDRESEEDCRNG has the generator use them at once:
# linux/drivers/char/random.c. Writing to /dev/urandom only mixes: it counts from the kernel's next
# own reseeding on, in a minute at most, and until then forks may draw the same numbers. perl is in
# every Debian and Ubuntu, python3 wherever cloud-init is.
seed_random() {
    # shellcheck disable=SC2016 # for perl
    perl -e '
        local $/; my $bytes = <STDIN>;
        open(my $random, ">", "/dev/urandom") or exit 1;
        ioctl($random, 0x40085203, pack("iia*", 256, length $bytes, $bytes)) or exit 1;
        ioctl($random, 0x5207, 0) or exit 1;
    ' <"$work/entropy" 2>/dev/null && random=perl && return
    python3 -c '
import fcntl, struct, sys
data = sys.stdin.buffer.read()
with open("/dev/urandom", "wb") as random:
    fcntl.ioctl(random, 0x40085203, struct.pack("ii", 256, len(data)) + data)
    fcntl.ioctl(random, 0x5207)
' <"$work/entropy" 2>/dev/null && random=python3 && return
    cat "$work/entropy" >/dev/urandom && random=mixed
}
# The host's bytes, the clone's own private key, and what the host gives by a virtual device.
(
    umask 077
    {
        echo "${entropy:-}"
        cat "$work/identity"
        [ ! -c /dev/hwrng ] || timeout 2 head -c 64 /dev/hwrng
    } 2>/dev/null | sha512sum >"$work/entropy"
)
seed_random
rm -f /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/seedrng/seed.* \
    /boot/loader/random-seed /boot/efi/loader/random-seed /efi/loader/random-seed

# --- the clock ---
clock=/sys/class/rtc/rtc0/since_epoch
[ -n "${now:-}" ] || [ ! -r $clock ] || now=$(cat $clock)
[ -z "${now:-}" ] || date -u -s "@$now" >/dev/null

# --- the name ---
short=${name%%.*}
echo "$short" >/etc/hostname
echo "$short" >/proc/sys/kernel/hostname
names=$short
[ "$name" = "$short" ] || names="$name $short"
[ -f /etc/hosts ] || echo "127.0.0.1 localhost" >/etc/hosts
sed '/^127\.0\.1\.1[[:space:]]/d' /etc/hosts >"$work/hosts"
echo "127.0.1.1 $names" >>"$work/hosts"
cat "$work/hosts" >/etc/hosts

# --- the machine id, which systemd's DHCP client id and the journal's folder come from ---
values machine-id >"$work/machine-id"
cat "$work/machine-id" >/etc/machine-id || die "/etc/machine-id can't be written"
[ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] ||
    cat "$work/machine-id" >/var/lib/dbus/machine-id

# What services make anew when they are started and it is missing; see also vmcloner_core/sealing.py.
rm -f /var/lib/systemd/credential.secret /etc/iscsi/initiatorname.iscsi \
    /etc/nvme/hostnqn /etc/nvme/hostid /etc/dropbear/dropbear_*_host_key

# --- SSH: the host key, and who may log in ---
if [ -d /etc/ssh ]; then
    rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
    key=/etc/ssh/ssh_host_ed25519_key
    (umask 077 && values host-key | base64 -d >$key) || die "$key can't be written"
    values host-key-public >$key.pub
fi
user=$(values user)
if ! id "$user" >/dev/null 2>&1; then
    shell=$(command -v bash || echo /bin/sh)
    useradd -m -s "$shell" "$user" 2>/dev/null || adduser -D -s "$shell" "$user" ||
        die "the user $user can't be made"
    [ ! -d /etc/sudoers.d ] || (
        umask 337
        echo "$user ALL=(ALL) NOPASSWD:ALL" >/etc/sudoers.d/90-vmcloner
    )
fi
home=$(sed -n "s/^$user:\([^:]*:\)\{4\}\([^:]*\):.*/\2/p" /etc/passwd)
if [ -n "$home" ] && [ -n "$(values key)" ]; then
    (
        umask 077
        mkdir -p "$home/.ssh"
        touch "$home/.ssh/authorized_keys"
        values key | while read -r key; do
            grep -qxF "$key" "$home/.ssh/authorized_keys" ||
                echo "$key" >>"$home/.ssh/authorized_keys"
        done
        chown -R "$user:" "$home/.ssh"
    )
fi

# --- cloud-init: a later boot takes the seed for that of a new instance, which has the same names ---
rm -rf /var/lib/cloud/instances /var/lib/cloud/instance
rm -f /var/lib/cloud/data/instance-id /var/lib/cloud/data/previous-*

# --- the network: cards are matched by their MAC addresses, and may be plugged later ---
rm -rf /run/systemd/netif/leases/* /var/lib/systemd/network/* /var/lib/dhcp/* /var/lib/dhclient/* \
    /var/lib/dhcpcd/* /var/lib/dhcpcd5/* /var/lib/NetworkManager/* \
    /etc/udev/rules.d/70-persistent-net.rules
networkd() {
    folder=/etc/systemd/network number=0
    mkdir -p $folder
    rm -f $folder/10-cloud-init-* $folder/10-vmcloner-* /run/systemd/network/10-netplan-*
    values card | while read -r mac address gateway; do
        {
            printf '[Match]\nMACAddress=%s\n\n[Network]\n' "$mac"
            if [ "$address" = dhcp ]; then echo DHCP=ipv4; else echo "Address=$address"; fi
            [ "$gateway" = - ] || echo "Gateway=$gateway"
            values nameserver | sed 's/^/DNS=/'
            [ "$address" != dhcp ] || [ -z "$(values nameserver)" ] ||
                printf '\n[DHCPv4]\nUseDNS=no\n'
        } >$folder/10-vmcloner-$number.network
        printf '[Match]\nMACAddress=%s\n\n[Link]\nName=eth%s\n' "$mac" $number \
            >$folder/10-vmcloner-$number.link
        number=$((number + 1))
    done
    systemctl restart systemd-networkd || die "systemd-networkd doesn't start again"
}
if [ -d /etc/netplan ] && command -v netplan >/dev/null; then
    (umask 077 && { echo network: && sed 's/^/  /' "$work/network-config"; } \
        >/etc/netplan/50-cloud-init.yaml)
    netplan apply || die "netplan apply fails"
elif command -v systemctl >/dev/null && systemctl -q is-active systemd-networkd; then
    networkd
elif [ -n "$(values card)" ]; then
    die "neither netplan nor systemd-networkd sets up this guest's network"
fi

# --- what still has the parent's keys and ids in memory ---
if command -v systemctl >/dev/null; then
    systemctl try-restart systemd-random-seed systemd-journald # the former stores a new seed
    for unit in ssh sshd; do
        ! systemctl -q is-enabled $unit 2>/dev/null || { systemctl restart $unit && break; }
    done
elif [ -r /run/sshd.pid ]; then
    kill -HUP "$(cat /run/sshd.pid)"
fi

values generation >"$state/generation"
sync
answer
