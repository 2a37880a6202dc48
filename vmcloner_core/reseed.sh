# shellcheck shell=sh
# Makes a running guest the machine that its seed disk names: see vmcloner_core/reseeding.py. Runs as
# root in any guest with a POSIX shell, from a pipe or from a file; again and again, if need be.
#
# In the environment, or set before: entropy (hexadecimal digits), now (seconds since the epoch).
# Words: "settle" only waits until the guest has booted, and writes all to its disk; with a port, an
# SSH server in the guest must answer there. "wait" does so, and says that it waits for the disk.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
umask 022
work=/run/vmcloner-seed
state=/var/lib/vmcloner-seed
name=
line='
'
die() {
    echo "vmcloner-reseed-failed $*" >&2
    exit 1
}

# --- for a parent of forks: all of them go on from here ---
# What an SSH server says first, of this guest itself: it may have no card.
greeting() {
    if command -v bash >/dev/null; then
        # shellcheck disable=SC2016 # for bash
        timeout 20 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0"; read -r line <&3; echo "$line"' "$1"
    else
        timeout 20 nc 127.0.0.1 "$1" </dev/null | head -n 1
    fi 2>/dev/null
}
ssh_answers() {
    tries=0
    until greeting "$1" | grep -q '^SSH-2\.0-'; do
        tries=$((tries + 1))
        [ $tries -lt 15 ] || return 1
        sleep 2
    done
}
settle() {
    ! command -v systemctl >/dev/null || systemctl is-system-running --wait >/dev/null 2>&1
    # What each fork would load when its seed and its cards are plugged.
    modprobe -qa isofs virtio_blk virtio_net 2>/dev/null
    sync
}
case ${1:-} in
settle)
    settle
    [ -z "${2:-}" ] || ssh_answers "$2" || {
        echo "no SSH server answers at 127.0.0.1:$2" >&2
        exit 1
    }
    exit
    ;;
wait)
    settle
    echo vmcloner-waits-for-seed
    exit
    ;;
esac
[ "$(id -u)" = 0 ] || die "not root"
[ -d /run ] || work=/tmp/vmcloner-seed
(umask 077 && mkdir -p "$work/disk" "$state") || die "$work, $state: can't be made"
trap 'rm -f "$work/identity" "$work/network-config" "$work/entropy"' EXIT # they hold secrets
# Two at once would mix: of a command that was killed and its successor, or where an agent answered so
# late that it was asked again. The host has a time limit.
if command -v flock >/dev/null; then
    exec 9>"$work/lock"
    flock 9
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
# Read by the shell itself: emulated, every process that it starts takes long.
generation='' machine='' uuid='' user='' keys='' host_key='' host_key_public='' cards='' servers='' word=''
while read -r word value; do
    case $word in
    name) name=$value ;;
    generation) generation=$value ;;
    machine-id) machine=$value ;;
    uuid) uuid=$value ;;
    user) user=$value ;;
    key) keys="$keys$value$line" ;;
    host-key) host_key=$value ;;
    host-key-public) host_key_public=$value ;;
    card) cards="$cards$value$line" ;;
    nameserver) servers="$servers$value$line" ;;
    end) break ;;
    esac
done <"$work/identity"
[ "$word" = end ] || die "the seed has no whole file vmcloner"
answer() {
    echo "vmcloner-reseeded $name random=$random"
    exit 0
}
random=unchanged
[ "$(cat "$state/generation" 2>/dev/null)" != "$generation" ] || answer

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
echo "$machine" >/etc/machine-id || die "/etc/machine-id can't be written"
[ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] ||
    echo "$machine" >/var/lib/dbus/machine-id

# --- the UUID of the firmware: the kernel has read the parent's, and shows that until the next boot ---
product=/sys/class/dmi/id/product_uuid
if [ -n "$uuid" ] && [ -e $product ]; then
    (umask 377 && echo "$uuid" >"$work/product_uuid")
    mount -o bind "$work/product_uuid" $product || die "$product can't be covered"
fi

# What services make anew when they are started and it is missing; see also vmcloner_core/sealing.py.
rm -f /var/lib/systemd/credential.secret /etc/iscsi/initiatorname.iscsi \
    /etc/nvme/hostnqn /etc/nvme/hostid /etc/dropbear/dropbear_*_host_key

# --- SSH: the host key, and who may log in ---
if [ -d /etc/ssh ]; then
    rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
    key=/etc/ssh/ssh_host_ed25519_key
    (umask 077 && echo "$host_key" | base64 -d >$key) || die "$key can't be written"
    echo "$host_key_public" >$key.pub
fi
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
if [ -n "$home" ] && [ -n "$keys" ]; then
    (
        umask 077
        mkdir -p "$home/.ssh"
        touch "$home/.ssh/authorized_keys"
        printf %s "$keys" | while read -r key; do
            grep -qxF "$key" "$home/.ssh/authorized_keys" ||
                printf '%s\n' "$key" >>"$home/.ssh/authorized_keys"
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
    printf %s "$cards" | while read -r mac address gateway; do
        {
            printf '[Match]\nMACAddress=%s\n\n[Network]\n' "$mac"
            if [ "$address" = dhcp ]; then echo DHCP=ipv4; else echo "Address=$address"; fi
            [ "$gateway" = - ] || echo "Gateway=$gateway"
            for server in $servers; do echo "DNS=$server"; done
            # A name that the server says would start systemd-hostnamed, to be refused there.
            [ "$address" != dhcp ] || printf '\n[DHCPv4]\nUseHostname=no\n'
            [ "$address" != dhcp ] || [ -z "$servers" ] || echo UseDNS=no
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
elif [ -n "$cards" ]; then
    die "neither netplan nor systemd-networkd sets up this guest's network"
fi

# --- what still has the parent's keys and ids in memory ---
# A server that has this signal runs itself anew, and reads its keys: a restart would check them too.
sshd() {
    for unit in ssh sshd; do
        pid=$(systemctl show -p MainPID --value $unit 2>/dev/null)
        [ "${pid:-0}" = 0 ] || { kill -HUP "$pid" && return; }
    done
    for unit in ssh sshd; do
        ! systemctl -q is-enabled $unit 2>/dev/null || { systemctl restart $unit && break; }
    done
}
if command -v systemctl >/dev/null; then
    [ ! -d /var/lib/systemd ] ||
        (umask 077 && head -c 32 /dev/urandom >/var/lib/systemd/random-seed)
    systemctl try-restart systemd-journald
    sshd
elif [ -r /run/sshd.pid ]; then
    kill -HUP "$(cat /run/sshd.pid)"
fi

echo "$generation" >"$state/generation"
sync
answer
