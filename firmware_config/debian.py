"""An image of Debian's packages alone: for USB cameras on a Pi 3, 4 or Zero 2 W, for other Arm boards, and for QEMU.

`python -m firmware_config.build --debian` makes it. The layout is that of Raspberry Pi OS: a FAT partition `bootfs`
with the Pi's firmware, the kernel and cloud-init's files, and an ext4 partition `rootfs`. So both take the same
payload, and the same first boot installs it. A CSI camera does not work, as Debian's kernel has no driver for one.

Nothing in the image is newer than EPOCH, every identity is fixed, and `packages.txt` beside it lists the versions: the
same root gives the same image each time.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from edgesan.errors import SinkError

RELEASE: Final = "trixie"
MIRROR: Final = "http://deb.debian.org/debian"
EPOCH: Final = 1_764_547_200  # 2025-12-01
SIZE: Final = 4 * 2**30  # a power of 2, as QEMU's card readers ask for
ROOT_UUID: Final = "5a17e000-edce-4a11-8000-000000000001"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PACKAGES: Final = _words("""
    cloud-guest-utils cloud-init dbus dosfstools e2fsprogs firmware-brcm80211 initramfs-tools iproute2 iw kmod
    linux-image-arm64 netbase netplan.io openssh-server python3 python3-venv raspi-firmware rauc rauc-service
    sudo systemd systemd-resolved systemd-sysv systemd-timesyncd udev wireless-regdb wpasupplicant zstd
""")
FILES: Final = {
    "etc/hostname": "edgesan\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 edgesan\n::1 localhost\n",
    "etc/machine-id": "",  # the first boot makes one
    "etc/fstab": (
        "LABEL=rootfs / ext4 defaults,noatime,errors=remount-ro 0 1\n"
        "LABEL=bootfs /boot/firmware vfat defaults,umask=0077 0 2\n"
    ),
    "etc/default/raspi-firmware": 'ROOTPART="LABEL=rootfs"\nCONSOLES="ttyS1,115200 tty0"\n',
    "boot/firmware/cmdline.txt": (
        "console=tty0 console=ttyS1,115200 root=LABEL=rootfs rootfstype=ext4 fsck.repair=yes rootwait\n"
    ),
    # cloud-init reads user-data, meta-data and network-config where Raspberry Pi OS has them, and asks no network.
    "etc/cloud/cloud.cfg.d/99-edgesan.cfg": (
        "datasource_list: [NoCloud, None]\ndatasource:\n  NoCloud: {fs_label: bootfs}\n"
        "system_info: {network: {renderers: [netplan]}}\nssh_genkeytypes: [ed25519]\n"
    ),
    # Were it mounted meanwhile, cloud-init could not read it.
    "etc/systemd/system/cloud-init-local.service.d/edgesan.conf": "[Unit]\nRequiresMountsFor=/boot/firmware\n",
    "boot/firmware/meta-data": "instance-id: edgesan\n",
    "boot/firmware/user-data": "#cloud-config\n{}\n",
    "boot/firmware/network-config": (
        'version: 2\nethernets:\n  wired: {match: {name: "e*"}, dhcp4: true, optional: true}\n'
    ),
}
LAYOUT: Final = f"""
image bootfs.vfat {{
    vfat {{ label = "bootfs" extraargs = "--invariant -i {EPOCH & 0xFFFFFFFF:08x}" }}
    mountpoint = "/boot/firmware"
    size = 512M
}}
image rootfs.ext4 {{
    ext4 {{ label = "rootfs" use-mke2fs = true extraargs = "-U {ROOT_UUID} -E hash_seed={ROOT_UUID}" }}
    exec-post = 'eval "$SETTLE_TIMES"'
    mountpoint = "/"
    size = 3580M
}}
image edgesan.img {{
    hdimage {{ disk-signature = 0x{EPOCH & 0xFFFFFFFF:08x} }}
    partition bootfs {{ partition-type = 0xC bootable = "true" image = "bootfs.vfat" offset = 1M }}
    partition rootfs {{ partition-type = 0x83 image = "rootfs.ext4" }}
}}
"""
# mke2fs before 1.47.1 keeps the change times of its source, which nobody can set, and all keep the access times.
SETTLE_TIMES: Final = f"""
dumpe2fs -h "$IMAGEOUTFILE" | awk '
    /^Inode count:/ {{ count = $3; print "ssv lastcheck @{EPOCH}" }}
    /^Free inodes:/ {{
        for (i = 2; i <= count - $3; i++) print "sif <" i "> ctime @{EPOCH}\\nsif <" i "> atime @{EPOCH}"
    }}
' | debugfs -w -f - "$IMAGEOUTFILE" > /dev/null
"""
# Maintainer scripts would take an emulated processor most of an hour. So while packages are configured, /native holds a
# small root of the same release for the host's own processor, and these programs are links into it; the image's own
# programs wait beside them as NAME.arm64 (dpkg-divert(1)). Everything else is emulated. None of them goes into an
# initrd, which is made at the end, when the host's libraries are out of sight.
PROGRAMS: Final = _words("""
    basename bash cat chgrp chmod chown cmp comm cp cpio cut dash date dd diff dirname dpkg-deb dpkg-divert
    dpkg-query dpkg-trigger env expr find getent grep gzip head id install ln ls md5sum mkdir mktemp mv openssl
    perl printenv printf python3.13 readlink realpath rm rmdir run-parts sed seq sha256sum sort stat systemd-hwdb
    tail tar tee test touch tr true uname uniq update-alternatives wc xargs zstd [
""")
NATIVE: Final = " ".join(
    (*(f"usr/bin/{name}" for name in PROGRAMS), "usr/lib/dracut/dracut-install", "usr/sbin/depmod")
)
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
SETUP: Final = f"""set -e
env --unset=APT_CONFIG mmdebstrap --quiet --mode=root --variant=essential --architectures=amd64 \\
    --include=cpio,dracut-install,kmod,openssl,python3-minimal,udev,zstd {RELEASE} "$1/native" {MIRROR}
mkdir -p "$1/usr/lib/dracut" "$1/usr/lib64"
ln -s usr/lib64 "$1/lib64"
ln -s /native/usr/lib64/ld-linux-x86-64.so.2 "$1/usr/lib64"
ln -s /native/{LIBRARIES} "$1/{LIBRARIES}"
for file in {NATIVE}; do dpkg-divert --quiet --root="$1" --no-rename --divert /$file.arm64 --add /$file; done
"""
EXTRACTED: Final = f"""set -e
for file in {NATIVE}; do ln -sf /native/$file "$1/$file"; done
"""
BEFORE: Final = """set -e
mkdir -p "$1/boot/firmware" "$1/etc/ssh" "$1/etc/initramfs-tools/conf.d"
touch "$1/etc/ssh/ssh_host_rsa_key" "$1/etc/ssh/ssh_host_ecdsa_key" "$1/etc/ssh/ssh_host_ed25519_key"
printf 'COMPRESS=zstd\\nCOMPRESSLEVEL=3\\n' > "$1/etc/initramfs-tools/conf.d/edgesan"
"""
AFTER: Final = f"""set -e
rm "$1/{LIBRARIES}"
kernel=$(basename "$1"/boot/vmlinuz-*)
env --unset=INITRD DEB_MAINT_PARAMS=configure PERL5LIB=/native/{LIBRARIES}/perl-base \\
    LD_LIBRARY_PATH=/native/{LIBRARIES}:/native/{LIBRARIES}/systemd \\
    chroot "$1" run-parts --arg="${{kernel#vmlinuz-}}" --arg="/boot/$kernel" /etc/kernel/postinst.d
rm -r "$1/native" "$1/lib64" "$1/usr/lib64"
for file in {NATIVE}; do rm "$1/$file"; dpkg-divert --quiet --root="$1" --rename --remove /$file; done
"""
X86_64: Final = re.compile(rb"\x7fELF\x02\x01.{12}\x3e\x00", re.DOTALL)  # elf(5): 64 bits, little-endian, EM_X86_64
MMDEBSTRAP: Final = (
    *_words("env INITRD=No mmdebstrap --mode=root --variant=minbase --architectures=arm64"),
    "--components=main,non-free-firmware",
    '--aptopt=APT::Install-Recommends "false"',
    *_words("--dpkgopt=force-confdef --dpkgopt=force-confold"),
    *_words("--dpkgopt=path-exclude=/usr/share/doc/* --dpkgopt=path-include=/usr/share/doc/*/copyright"),
    *_words("--dpkgopt=path-exclude=/usr/share/man/* --dpkgopt=path-exclude=/usr/share/locale/*"),
    f"--setup-hook={SETUP}",
    f"--extract-hook={EXTRACTED}",
    f"--essential-hook={BEFORE}",
    f"--customize-hook={AFTER}",
    f"--include={','.join(PACKAGES)}",
    RELEASE,
)
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesan"


def root() -> Path:
    """Return the root file system as a tar file, which is kept, as making it takes minutes."""
    digest = hashlib.sha256("\0".join(MMDEBSTRAP).encode()).hexdigest()[:12]
    return cached(f"root-{digest}.tar.zst", MMDEBSTRAP)


def cached(name: str, mmdebstrap: tuple[str, ...]) -> Path:
    """Return what this command makes, in ~/.cache/edgesan, and make it if it is missing.

    Args:
        name: of the file; another command must have another name.
        mmdebstrap: the command, without its target.
    """
    tar = CACHE / name
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        part = tar.with_name(f".{os.getpid()}-{tar.name}")
        try:
            run(*mmdebstrap, str(part), MIRROR)
            part.replace(tar)
        finally:
            part.unlink(missing_ok=True)
    return tar


def image(out: Path) -> Path:
    """Write the image, with its list of packages beside it. Root only, as files keep their owners.

    Returns:
        `out`: 4 GiB, whose empty part takes no space; the first boot grows the root to the card.

    Raises:
        SinkError: the root holds programs of the host.
    """
    with tempfile.TemporaryDirectory(prefix="edgesan-", dir=out.parent) as folder:
        tree = Path(folder)
        run("tar", "--extract", "--numeric-owner", "--file", str(root()), "--directory", str(tree))
        settle(tree)
        check(tree)
        lay_out(tree, out)
        list_packages(tree, out)
    return out


def list_packages(tree: Path, out: Path) -> None:
    """Write the list of a tree's packages beside what is made of it: name and version, a line each."""
    query = ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n"]
    installed = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True)
    out.with_suffix(".packages.txt").write_text(installed.stdout, encoding="utf-8")


def lay_out(tree: Path, out: Path, layout: str = LAYOUT, size: int = SIZE) -> None:
    """Write the image of a card with this tree; the same tree gives the same bytes."""
    date(tree)
    with tempfile.TemporaryDirectory(prefix="edgesan-", dir=out.parent) as folder:
        work = Path(folder)
        (work / "genimage.cfg").write_text(layout, encoding="utf-8")
        paths = [f"--config={work / 'genimage.cfg'}", f"--rootpath={tree}", f"--inputpath={work}"]
        paths += [f"--tmppath={work / 'tmp'}", f"--outputpath={work}"]
        run("genimage", *paths, E2FSPROGS_FAKE_TIME=str(EPOCH), SETTLE_TIMES=SETTLE_TIMES)
        (work / "edgesan.img").replace(out)
    os.truncate(out, size)


def publish(image: Path, *, compress: bool) -> None:
    """Write the image's block map; and also the compressed image, which edgesan, bmaptool and the Pi's Imager read."""
    run("bmaptool", "create", "--output", str(image.with_suffix(".bmap")), str(image))
    if compress:
        run("xz", "--quiet", "--keep", "--force", "-T0", "-3", str(image))


def settle(tree: Path) -> None:
    """Make a system of the packages: mount points, names, the network, and where the first boot reads its settings."""
    for name, text in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):  # each board makes its own
        key.unlink()
    resolv = tree / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    run("systemctl", f"--root={tree}", "--quiet", "enable", "systemd-networkd.service", "systemd-resolved.service")


def check(tree: Path) -> None:
    """Check that none of the host's own programs is left.

    Raises:
        SinkError: there is one, in a file or inside an initrd.
    """
    for folder, _, names in os.walk(tree):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                content = file.read(20)
                if path.name.startswith("initrd.img"):
                    content = _unpacked(content + file.read())
            if X86_64.search(content):
                name, cure = path.relative_to(tree), f"remove {CACHE} and try again"
                raise SinkError(f"/{name} holds a program for x86-64: expected only programs for Arm; {cure}")


def _unpacked(initrd: bytes) -> bytes:
    """Unpack an initrd: two archives, of which the second is packed."""
    first, _, second = initrd.partition(b"TRAILER!!!")
    packed = second.lstrip(b"\0")
    return first + subprocess.run(["zstd", "-dcq"], input=packed, check=True, stdout=subprocess.PIPE).stdout


def date(tree: Path) -> None:
    """Give everything that was made just now the time EPOCH."""
    for folder, folders, files in os.walk(tree):
        for path in (Path(folder, name) for name in (".", *folders, *files)):
            if path.lstat().st_mtime > EPOCH:
                os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def run(*command: str, **more: str) -> None:
    """Run a program of the system; every time in what it makes is EPOCH."""
    subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"} | more)
