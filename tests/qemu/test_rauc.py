"""A signed update of the whole system: written to the other slot, tried, kept if frames flow, and left if they do not.

The guest is a small Debian of this machine's own processor kind (x86-64: its root is made in minutes), with our own
system.conf, backend, health unit and bundle hook, and with stand-ins for the two units of edgesan. The test plays a
Pi's firmware: it reads config.txt, or tryboot.txt once after `reboot '0 tryboot'`, follows `os_prefix`, and hands over
what lies there.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesan.board.settings import Fat
from firmware_config import debian, slots
from tests.firmware_config.test_slots import signer
from tests.qemu.conftest import Row
from tests.qemu.guest import IGNORED, PATIENCE_S, Guest
from tests.support import free_port

pytestmark = [pytest.mark.board, pytest.mark.slow, IGNORED]
PACKAGES = (
    "dbus,e2fsprogs,initramfs-tools,iproute2,kmod,linux-image-cloud-amd64,openssh-server,python3,rauc,rauc-service,sudo,"
    "systemd,systemd-sysv,udev,zstd"
)
SMALL_INITRD = """\
mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list > "$1/etc/initramfs-tools/conf.d/small"
printf 'virtio_blk\\nvirtio_pci\\n' > "$1/etc/initramfs-tools/modules"
"""
MASKED = (
    "e2scrub_reap.service",
    "getty@tty1.service",
    "systemd-binfmt.service",
    "systemd-udev-settle.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "dpkg-db-backup.timer",
    "modprobe@.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
)
MAKE = (
    "mmdebstrap",
    "--mode=root",
    "--variant=minbase",
    '--aptopt=APT::Install-Recommends "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    f"--essential-hook={SMALL_INITRD}",
    f"--include={PACKAGES}",
    "trixie",
)
# What the runtime would do, as the health check sees it. A good root and a bad one differ only in HEALTH.
STAND_IN = """\
import http.server

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = open("/usr/share/health").read() == "frames flow"
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"ready" if ready else b"no frame yet")

http.server.HTTPServer(("127.0.0.1", 8080), Page).serve_forever()
"""
# Emulated on a busy machine: nothing may be given up too early.
PATIENCE = ("systemd.default_timeout_start_sec=1800", "systemd.default_device_timeout_sec=1800")
UNIT = "[Service]\nExecStart={command}\n[Install]\nWantedBy=multi-user.target\n"
FILES = {
    **{name: debian.FILES[name] for name in ("etc/hostname", "etc/hosts", "etc/fstab", "etc/machine-id")},
    # What a first boot would do, and what nobody looks at, this processor need not emulate.
    "etc/.updated": "",
    "var/.updated": "",
    "etc/systemd/network/wired.network": "[Match]\nName=e*\n[Network]\nDHCP=yes\n",
    "etc/sudoers.d/pi": "pi ALL=(ALL) NOPASSWD:ALL\n",
    "usr/share/stand-in.py": STAND_IN,
    "usr/lib/systemd/system/edgesan-sanitize.service": UNIT.format(command="/usr/bin/sleep infinity"),
    "usr/lib/systemd/system/edgesan-transmit.service": UNIT.format(command="/usr/bin/python3 /usr/share/stand-in.py"),
    # As Debian's hook for a Pi writes it.
    "boot/firmware/config.txt": (
        "arm_64bit=1\n\nenable_uart=1\nupstream_kernel=1\n\nkernel=vmlinuz-6\ninitramfs initrd.img-6\n"
    ),
    "boot/firmware/cmdline.txt": debian.FILES["boot/firmware/cmdline.txt"],
}


class Board(Guest):
    """Its firmware is this test."""

    booted: list[str]

    def start(self, config: str = "config.txt") -> None:
        fat, folder = Fat(self.image), self.image.parent
        found = re.search(r"^os_prefix=(([AB])/)$", fat.read(config).decode(), re.MULTILINE)
        assert found, fat.read(config)
        for name in ("vmlinuz", "initrd.img"):
            (folder / name).write_bytes(fat.read(found[1] + name))
        words = re.sub(r"console=\S+", "", fat.read(f"{found[1]}cmdline.txt").decode()).split()
        self.booted = [*getattr(self, "booted", []), found[2]]
        self._said_before = len(self.console()) if self._log.exists() else 0
        self._ssh_port = free_port()
        command = [
            "qemu-system-x86_64",
            "-M",
            "q35,sata=off,smbus=off,hpet=off",
            "-cpu",
            "qemu64",
            "-m",
            "1024",
            "-accel",
            "tcg",
            "-nodefaults",
            "-kernel",
            str(folder / "vmlinuz"),
            "-initrd",
            str(folder / "initrd.img"),
            "-append",
            " ".join([*words, "console=ttyS0,115200", *PATIENCE]),
            "-drive",
            f"if=virtio,file={self.image},format=raw",
            "-device",
            "virtio-rng-pci",
            "-netdev",
            f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._ssh_port}-:22",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
            "-serial",
            "stdio",
            "-display",
            "none",
            "-no-reboot",
        ]
        with self._log.open("ab") as log:
            self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started_s = time.monotonic()

    def until_settled(self) -> list[str]:
        """Switch it on again whenever it resets, until it stays up with nothing to try; return the slots it booted."""
        self.booted, deadline_s = [], time.monotonic() + 3 * PATIENCE_S
        while time.monotonic() < deadline_s:
            assert self._qemu is not None
            if self._qemu.poll() is not None:
                said = self.console()[self._said_before :]
                assert "reboot: Power down" not in said
                once = "Restarting system with command '0 tryboot'" in said
                self.start("tryboot.txt" if once else "config.txt")
            try:
                said = self.run(
                    "systemctl is-active edgesan-slot; sudo cat /boot/firmware/slots.json", check=False, timeout_s=90
                )
            except subprocess.TimeoutExpired:
                continue
            unit, _, state = said.partition("\n")
            if self.booted and unit == "inactive" and json.loads(state)["trying"] == "":
                return self.booted
            time.sleep(5)
        raise AssertionError(f"it did not settle; booted were {self.booted}:\n{self.console()[-4000:]}")

    def install(self, bundle: Path) -> str:
        self.run("cat > /var/tmp/update.raucb", stdin=bundle.read_bytes(), timeout_s=PATIENCE_S)
        return self.run("sudo rauc install /var/tmp/update.raucb", check=False, timeout_s=PATIENCE_S)

    def slot(self) -> dict[str, str]:
        """Return what runs, and RAUC's state of both slots."""
        said = json.loads(self.run("sudo rauc status --output-format=json"))
        states = {slot["bootname"]: slot["boot_status"] for entry in said["slots"] for slot in entry.values()}
        return {"booted": said["booted"], "primary": said["boot_primary"]} | states


@pytest.fixture(scope="module")
def made(needs: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, row: Row) -> Path:
    """A folder with the card, the key to log in, and the bundles: `second`, `sick`, `dead` and `stranger`."""
    needs("mmdebstrap", "genimage", "mcopy", "qemu-system-x86_64", "ssh", "zstd", "rauc", "mksquashfs", "openssl")
    folder = tmp_path_factory.mktemp("rauc")
    started_s = time.monotonic()
    tar = debian.cached(f"slots-{hashlib.sha256(repr(MAKE).encode()).hexdigest()[:12]}.tar.zst", MAKE)
    tree = folder / "tree"
    tree.mkdir()
    debian.run("tar", "--extract", "--numeric-owner", "--file", str(tar), "--directory", str(tree))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    debian.run("chroot", str(tree), "useradd", "--create-home", "--shell=/bin/bash", "pi")
    (tree / "home/pi/.ssh").mkdir()
    shutil.copy(folder / "key.pub", tree / "home/pi/.ssh/authorized_keys")
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    units = ("systemd-networkd.service", "edgesan-sanitize.service", "edgesan-transmit.service")
    debian.run("systemctl", f"--root={tree}", "--quiet", "enable", *units)
    debian.run("systemctl", f"--root={tree}", "--quiet", "mask", *MASKED)
    ours, stranger = signer(folder, "update"), signer(folder, "stranger")

    def mark(root: str, health: str, patience_s: int = 1800) -> None:
        (tree / "usr/share/root").write_text(root)
        (tree / "usr/share/health").write_text(health)
        (tree / "etc/systemd/system/edgesan-slot.service.d").mkdir(exist_ok=True)
        (tree / "etc/systemd/system/edgesan-slot.service.d/test.conf").write_text(
            f"[Service]\nExecStart=\nExecStart=/{slots.PROGRAM} boot {patience_s} 5\nStandardOutput=journal+console\n"
        )

    slots.prepare(tree, ours.certificate)
    mark("first", "frames flow")
    slots.image(tree, folder / "card.img")
    mark("second", "frames flow")
    slots.bundle(tree, folder / "second.raucb", ours.certificate, ours.key)
    mark("sick", "no frame yet", 30)
    slots.bundle(tree, folder / "sick.raucb", ours.certificate, ours.key)
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin/init").symlink_to("/usr/bin/false")
    slots.bundle(tree, folder / "dead.raucb", ours.certificate, ours.key)
    small = folder / "small"
    small.mkdir()
    (small / "random").write_bytes(os.urandom(2**16))  # RAUC 1.8 wants more than a page
    slots.bundle(small, folder / "stranger.raucb", stranger.certificate, stranger.key)
    megabytes = (folder / "second.raucb").stat().st_size / 1e6
    row(
        "card with two slots, three bundles",
        f"made in {time.monotonic() - started_s:.0f} s; {megabytes:.0f} MB a bundle",
    )
    return folder


@pytest.fixture(scope="module")
def board(made: Path) -> Iterator[Board]:
    with Board(made / "card.img", made / "key") as guest:
        yield guest


def test_slot_a_boots(board: Board, row: Row) -> None:
    login_s = board.wait_for_login()
    assert board.slot() == {"booted": "A", "primary": "rootfs.0", "A": "good", "B": "good"}
    assert board.run("cat /usr/share/root") == "first"
    row("slots: boot to login", f"{login_s:.0f} s")


def test_a_strangers_bundle_is_refused(made: Path, board: Board) -> None:
    before = board.run("sudo dd if=/dev/vda3 bs=1M count=4 status=none | sha256sum")
    assert "signature verification failed" in board.install(made / "stranger.raucb")
    assert board.run("sudo dd if=/dev/vda3 bs=1M count=4 status=none | sha256sum") == before
    assert board.slot()["primary"] == "rootfs.0"


def test_an_update_is_written_tried_and_kept(made: Path, board: Board, row: Row) -> None:
    board.run("sudo mkdir -p /etc/edgesan && echo 'background = \"plain\"' | sudo tee /etc/edgesan/edgesan.toml")
    before = board.run("cat /etc/machine-id; cat /etc/ssh/ssh_host_*.pub")
    started_s = time.monotonic()
    said = board.install(made / "second.raucb")
    assert "succeeded" in said, said
    row("rauc install, 1 root", f"{time.monotonic() - started_s:.0f} s")
    assert board.slot()["primary"] == "rootfs.1"
    board.run("sudo systemctl reboot", check=False)
    assert board.until_settled() == ["A", "B"], "the firmware boots the good slot, which lets it try the other one once"
    assert board.run("cat /usr/share/root") == "second"
    assert board.slot() == {"booted": "B", "primary": "rootfs.1", "A": "good", "B": "good"}
    assert "os_prefix=B/" in board.run("sudo cat /boot/firmware/config.txt")
    assert board.run("cat /etc/machine-id; cat /etc/ssh/ssh_host_*.pub") == before, "the board is the same"
    assert board.run("cat /etc/edgesan/edgesan.toml") == 'background = "plain"'
    row("update to the other slot", "written, tried, healthy, kept: booted A, B")


def test_a_root_that_never_becomes_healthy_is_left_again(made: Path, board: Board, row: Row) -> None:
    said = board.install(made / "sick.raucb")
    assert "succeeded" in said, said
    board.run("sudo systemctl start edgesan-slot", check=False)  # no need to boot the good one once more
    assert board.until_settled() == ["A", "B", "A", "B"]
    assert board.run("cat /usr/share/root") == "second"
    assert board.slot() == {"booted": "B", "primary": "rootfs.1", "A": "bad", "B": "good"}
    assert "slot A is not healthy: 503 no frame yet; back to slot B" in board.console()
    row("update that never becomes healthy", "tried twice, left: booted A, B, A, B")


def test_a_root_that_does_not_even_boot_is_left_again(made: Path, board: Board, row: Row) -> None:
    said = board.install(made / "dead.raucb")
    assert "succeeded" in said, said
    board.run("sudo systemctl start edgesan-slot", check=False)
    assert board.until_settled() == ["A", "B", "A", "B"]
    assert board.console().count("Kernel panic - not syncing: Attempted to kill init!") == 2
    assert board.slot() == {"booted": "B", "primary": "rootfs.1", "A": "bad", "B": "good"}
    row("update whose kernel panics", "tried twice, left: booted A, B, A, B")
