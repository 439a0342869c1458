"""An image from Debian's packages alone: for USB cameras on a Pi 3, 4 or Zero 2 W, for other Arm boards, and for QEMU.

`python -m firmware_config.build --debian` runs it. The layout is Raspberry Pi OS's: a FAT partition `bootfs` with the Pi's
firmware, the kernel and cloud-init's files, and an ext4 partition `rootfs`. So the same payload goes into both, and the
same first boot installs it. A CSI camera does not work: Debian's kernel has no driver for one.

Every time in the image is EPOCH, every identity fixed, and `packages.txt` beside it tells the versions: it is meant to come out the
same each time. Not shown yet: two images of one small root differed, probably by the inodes' change times, which e2fsprogs
before 1.47.1 takes from the clock.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

RELEASE: Final = "trixie"
MIRROR: Final = "http://deb.debian.org/debian"
EPOCH: Final = 1_764_547_200  # 2025-12-01
SIZE: Final = 4 * 2**30  # a power of 2, as QEMU's card readers ask for
ROOT_UUID: Final = "5a17e000-edce-4a11-8000-000000000001"
PACKAGES: Final = (
    "cloud-guest-utils", "cloud-init", "dbus", "dosfstools", "e2fsprogs", "firmware-brcm80211", "initramfs-tools",
    "iproute2", "iw", "kmod", "linux-image-arm64", "netbase", "netplan.io", "openssh-server", "python3", "python3-venv",
    "raspi-firmware", "rauc", "rauc-service", "sudo", "systemd", "systemd-resolved", "systemd-sysv",
    "systemd-timesyncd", "udev", "wireless-regdb", "wpasupplicant", "zstd",
)  # fmt: skip
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
        "system_info: {network: {renderers: [netplan]}}\n"
    ),
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
    mountpoint = "/"
    size = 3580M
}}
image edgesan.img {{
    hdimage {{ disk-signature = 0x{EPOCH & 0xFFFFFFFF:08x} }}
    partition bootfs {{ partition-type = 0xC bootable = "true" image = "bootfs.vfat" offset = 1M }}
    partition rootfs {{ partition-type = 0x83 image = "rootfs.ext4" }}
}}
"""
# What an emulated processor would do for most of an hour, and need not. Python's library is compiled where it is imported, at
# the first boot; each board makes host keys of its own; the certificates are put into one file natively; and the initrd is packed less tightly.
STUBS: Final = "/usr/bin/py3compile /usr/lib/python3.13/py_compile.py /usr/sbin/update-ca-certificates"
BEFORE: Final = f"""
mkdir -p "$1/boot/firmware" "$1/etc/ssh" "$1/etc/initramfs-tools/conf.d"
for file in {STUBS}; do
    dpkg-divert --root="$1" --divert $file.real --rename --add $file
    mkdir -p "$1$(dirname $file)" && printf '#!/bin/true\\n' > "$1$file" && chmod 755 "$1$file"
done
touch "$1/etc/ssh/ssh_host_rsa_key" "$1/etc/ssh/ssh_host_ecdsa_key" "$1/etc/ssh/ssh_host_ed25519_key"
printf 'COMPRESS=zstd\\nCOMPRESSLEVEL=3\\n' > "$1/etc/initramfs-tools/conf.d/edgesan"
"""
AFTER: Final = f"""
for file in {STUBS}; do rm "$1$file" && dpkg-divert --root="$1" --rename --remove $file; done
cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt"
"""
MMDEBSTRAP: Final = (
    "mmdebstrap", "--mode=root", "--variant=minbase", "--architectures=arm64", "--components=main,non-free-firmware",
    "--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=force-confdef", "--dpkgopt=force-confold",
    "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
    f"--essential-hook={BEFORE}", f"--customize-hook={AFTER}",
    f"--include={','.join(PACKAGES)}", RELEASE,
)  # fmt: skip


CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesan"


def root() -> Path:
    """The root file system as a tar file: 13 minutes where its scripts are emulated, so it is kept."""
    digest = hashlib.sha256("\0".join(MMDEBSTRAP).encode()).hexdigest()[:12]
    return cached(f"root-{digest}.tar.zst", MMDEBSTRAP)


def cached(name: str, mmdebstrap: tuple[str, ...]) -> Path:
    """What this command makes, in ~/.cache/edgesan; made there if it is not. `name` must tell all that it is made from."""
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
    """Write the image `out`, with its list of packages beside it. Root only: files keep their owners.

    Returns:
        `out`: 4 GiB, of which the empty part takes no place; a first boot grows the root to the card.
    """
    with tempfile.TemporaryDirectory(prefix="edgesan-", dir=out.parent) as folder:
        work = Path(folder)
        tree = work / "root"
        tree.mkdir()
        run("tar", "--extract", "--numeric-owner", "--file", str(root()), "--directory", str(tree))
        settle(tree)
        date(tree)
        (work / "genimage.cfg").write_text(LAYOUT, encoding="utf-8")
        run(
            "genimage", "--config", str(work / "genimage.cfg"), "--rootpath", str(tree), "--inputpath", str(work),
            "--tmppath", str(work / "tmp"), "--outputpath", str(work), E2FSPROGS_FAKE_TIME=str(EPOCH),
        )  # fmt: skip
        installed = subprocess.run(
            ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        out.with_suffix(".packages.txt").write_text(installed, encoding="utf-8")
        (work / "edgesan.img").replace(out)
    os.truncate(out, SIZE)
    return out


def publish(image: Path, *, compress: bool) -> None:
    """Its block map; and itself compressed, which `edgesan flash`, bmaptool and Raspberry Pi Imager read."""
    run("bmaptool", "create", "--output", str(image.with_suffix(".bmap")), str(image))
    if compress:
        run("xz", "--quiet", "--keep", "--force", "-T0", "-3", str(image))


def settle(tree: Path) -> None:
    """What makes a system of these packages: mount points, names, the network, and where the first boot reads its orders."""
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


def date(tree: Path) -> None:
    """Give everything that was made just now the time EPOCH."""
    for folder, _, files in os.walk(tree, topdown=False):
        for path in (*(Path(folder, name) for name in files), Path(folder)):
            if path.lstat().st_mtime > EPOCH:
                os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def run(*command: str, **more: str) -> None:
    """A program of the system, with every time in what it makes set to EPOCH."""
    subprocess.run(command, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"} | more)
