"""Two slots: the record of the bootloader's backend, the test of a new root, and signed bundles; guests: tests/qemu."""

import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from edgesan.board.settings import INSTALLER, Fat, Settings, inject
from edgesan.errors import ConfigError
from firmware_config import build, debian, install, slots
from tests.board.test_settings import stock_image
from tests.firmware_config.test_units import Units
from tests.support import ROOT

pytestmark = pytest.mark.slow  # whole units are started

PROGRAM = slots.FILES / slots.PROGRAM
CONFIG = "arm_64bit=1\nkernel=vmlinuz\ninitramfs initrd.img followkernel\nos_prefix=A/\n"
# Stand for the system that reboots, and for RAUC, which hands mark-good on to the backend.
SYSTEMCTL = """\
#!/bin/sh
case $1 in reboot) shift; echo "reboot $*" >> "$REBOOTS";; show) cat "$UNITS";; esac
"""
RAUC = f"""#!/bin/sh
[ "$*" = "status mark-good booted" ] && exec {PROGRAM} set-state $(sed "s/.*slot=//" "$EDGESAN_CMDLINE") good
"""


class Card:
    """A boot partition, and a system that was booted from one of its slots."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.boot = folder, folder / "boot"
        self.boot.mkdir()
        (self.boot / "config.txt").write_text(CONFIG)
        (folder / "bin").mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("rauc", RAUC)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.units("active\nactive\n")
        self.runs("A")

    def units(self, said: str) -> None:
        (self.folder / "units").write_text(said)

    def runs(self, slot: str) -> None:
        (self.folder / "cmdline").write_text(f"root=PARTUUID=1-02 rauc.slot={slot}\n")

    def ask(self, *arguments: str, code: int = 0) -> str:
        environment = os.environ | {
            "EDGESAN_BOOT": str(self.boot),
            "EDGESAN_CMDLINE": str(self.folder / "cmdline"),
            "EDGESAN_CONFIG": str(self.folder / "edgesan.toml"),
            "REBOOTS": str(self.folder / "reboots"),
            "UNITS": str(self.folder / "units"),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return (done.stdout + done.stderr).strip()

    def reboots(self) -> list[str]:
        """What was asked of the firmware, from now on forgotten."""
        file = self.folder / "reboots"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def os_prefix(self, name: str) -> str:
        (found,) = re.findall("^os_prefix=(.)/$", (self.boot / name).read_text(), re.MULTILINE)
        return str(found)


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


TRY = "reboot --reboot-argument=0 tryboot"


def test_a_new_card_boots_a_and_both_slots_may_be_booted(card: Card) -> None:
    assert [card.ask("get-primary"), card.ask("get-current")] == ["A", "A"]
    assert [card.ask("get-state", slot) for slot in "AB"] == ["good", "good"]
    assert card.ask("boot") == ""
    assert not card.reboots()


def test_an_installed_slot_is_tried_and_the_good_one_stays_the_firmwares(card: Card) -> None:
    card.ask("set-state", "B", "bad")  # so RAUC does before it writes
    assert card.ask("get-state", "B") == "bad"
    card.ask("set-primary", "B")
    assert [card.ask("get-primary"), card.ask("get-state", "B")] == ["B", "good"]
    assert "trying slot B" in card.ask("boot")
    assert card.reboots() == [TRY]
    assert [card.os_prefix("config.txt"), card.os_prefix("tryboot.txt")] == ["A", "B"]
    assert (card.boot / "tryboot.txt").read_text() == CONFIG.replace("A/", "B/")


def test_a_slot_that_never_comes_back_healthy_is_tried_twice_and_then_left(card: Card) -> None:
    card.ask("set-primary", "B")
    for _ in range(2):
        card.ask("boot")
        assert card.reboots() == [TRY]  # and then a panic, a hang or a power cut: A boots again
    assert "slot B was tried 2 times and never became healthy: slot A stays" in card.ask("boot")
    assert not card.reboots()
    assert [card.ask("get-primary"), card.ask("get-state", "B")] == ["A", "bad"]
    assert card.ask("boot") == ""
    card.ask("set-primary", "B")  # by hand, or by another update: it has its tries again
    card.ask("boot")
    assert card.reboots() == [TRY]


def test_a_slot_that_has_shown_that_it_is_good_is_the_firmwares(card: Card) -> None:
    card.ask("set-primary", "B")
    card.ask("boot")
    card.runs("B")
    card.ask("set-state", "B", "good")
    assert card.os_prefix("config.txt") == "B"
    assert [card.ask("get-primary"), card.ask("get-current")] == ["B", "B"]
    card.reboots()
    card.ask("boot")
    assert not card.reboots()


def test_a_slot_is_not_good_because_another_one_says_so(card: Card) -> None:
    card.ask("set-primary", "B")
    card.ask("set-state", "B", "good")  # A runs, and marks the other one
    assert card.os_prefix("config.txt") == "A"


def test_the_only_good_slot_is_not_written_over(card: Card) -> None:
    card.ask("set-primary", "B")
    card.ask("boot")
    card.runs("B")
    assert "slot A is the only one known to be good" in card.ask("set-state", "A", "bad", code=1)
    assert card.ask("get-state", "A") == "good"


@pytest.mark.parametrize("text", ["", "{", "\0\0\0"])
def test_a_torn_record_boots_the_good_slot(card: Card, text: str) -> None:
    card.ask("set-primary", "B")
    (card.boot / "slots.json").write_text(text)
    assert card.ask("get-primary") == "A"
    card.ask("boot")
    assert not card.reboots()


def test_what_is_no_slot_is_refused_in_words(card: Card) -> None:
    assert "get-primary" in card.ask("get-state", "C", code=2)
    (card.folder / "cmdline").write_text("root=/dev/mmcblk0p2\n")
    assert "was not booted from a slot" in card.ask("get-current", code=1)
    (card.boot / "config.txt").write_text("arm_64bit=1\n")
    assert "has no line os_prefix" in card.ask("get-primary", code=1)


def test_a_slot_where_frames_flow_is_marked_good_and_one_where_they_do_not_is_left(card: Card) -> None:
    units = Units(card.folder)
    units.token = "correct-horse-battery"
    (card.folder / "edgesan.toml").write_text(f'out = ["file.mkv", "http://0.0.0.0:{units.port}"]\n')
    card.ask("set-primary", "B")
    card.ask("boot")
    card.reboots()
    card.runs("B")
    assert "does not answer" in card.ask("boot", "0", "1")
    try:
        units.start("sanitize")
        units.start("transmit", EDGESAN_TOKEN="correct-horse-battery")
        units.until(lambda status: status["ready"])
        assert "401 present the token" in card.ask("boot", "0", "1")
        (card.folder / "token.env").write_text("EDGESAN_TOKEN=correct-horse-battery\n")
        assert "frames did not flow for 9 s" in card.ask("boot", "0", "9")
        card.units("active\nfailed\n")
        assert "a unit is not active" in card.ask("boot", "0", "1")
        assert card.reboots() == ["reboot "] * 4
        assert card.os_prefix("config.txt") == "A"
        card.units("active\nactive\n")
        assert "slot B is healthy" in card.ask("boot", "30", "1")
    finally:
        for role in list(units.running):
            units.kill(role)
    assert card.os_prefix("config.txt") == "B"
    assert not card.reboots()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('out = "file.mkv"', "names no http:// or https:// server"),
        ("out = 'http://[", "edgesan.toml or token.env"),
        (None, "No such file"),
    ],
)
def test_a_slot_that_cannot_be_judged_is_left(card: Card, config: str | None, said: str) -> None:
    card.ask("set-primary", "B")
    card.runs("B")
    if config is not None:
        (card.folder / "edgesan.toml").write_text(config)
    assert said in card.ask("boot", "0", "0")
    assert card.reboots() == ["reboot "]
    assert card.os_prefix("config.txt") == "A"


class Ready(http.server.BaseHTTPRequestHandler):
    """All is well, it says."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_a_slot_that_rauc_cannot_mark_is_left(card: Card) -> None:
    card.runs("B")
    (card.folder / "bin/rauc").write_text("#!/bin/sh\nexit 1\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (card.folder / "edgesan.toml").write_text(f'out = "http://127.0.0.1:{server.server_port}"\n')
        assert "'rauc', 'status', 'mark-good', 'booted'" in card.ask("boot", "30", "0")
        server.shutdown()
    assert card.reboots() == ["reboot "]


def root(folder: Path) -> Path:
    """As much of a root as the card and a bundle ask for."""
    for name, text in {
        "boot/vmlinuz-6.12.9-arm64": "old",
        "boot/vmlinuz-6.12.48-arm64": "new",
        "boot/initrd.img-6.12.48-arm64": "initrd",
        "usr/lib/linux-image-6.12.48-arm64/broadcom/bcm2711-rpi-4-b.dtb": "tree",
        "etc/fstab": debian.FILES["etc/fstab"],
        "boot/firmware/config.txt": "arm_64bit=1\nkernel=vmlinuz-6.12.48-arm64\ninitramfs initrd.img-6.12.48-arm64\n",
        "boot/firmware/cmdline.txt": debian.FILES["boot/firmware/cmdline.txt"],
        "boot/firmware/vmlinuz-6.12.48-arm64": "new",
        "boot/firmware/bootcode.bin": "firmware",
        "etc/kernel/postinst.d/z50-raspi-firmware": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Signer(NamedTuple):
    certificate: Path
    key: Path


def signer(folder: Path, name: str) -> Signer:
    """By the very command in the docs."""
    (command,) = re.findall(r"^openssl req .*$", (ROOT / "docs/board.md").read_text(), re.MULTILINE)
    command = command.replace("update.", f"{name}.")
    subprocess.run(command, shell=True, check=True, capture_output=True, cwd=folder)
    return Signer(folder / f"{name}.pem", folder / f"{name}.key")


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; `make board` installs them where it is root")


def test_the_first_slot_of_a_card_is_what_debian_made(tmp_path: Path) -> None:
    needs("openssl", "systemctl")
    tree = root(tmp_path / "tree")
    slots.prepare(tree, signer(tmp_path, "update").certificate)
    slots.first(tree)
    boot = tree / "boot/firmware"
    assert sorted(path.relative_to(boot).as_posix() for path in boot.rglob("*")) == [
        "A",
        "A/bcm2711-rpi-4-b.dtb",
        "A/cmdline.txt",
        "A/initrd.img",
        "A/vmlinuz",
        "bootcode.bin",
        "cmdline.txt",
        "config.txt",
        "tryboot.txt",
    ]
    assert (boot / "A/vmlinuz").read_text() == "new", "6.12.48 is newer than 6.12.9"
    assert (boot / "config.txt").read_text() == CONFIG
    assert (boot / "tryboot.txt").read_text() == CONFIG.replace("A/", "B/")
    assert (boot / "A/cmdline.txt").read_text() == (
        "console=tty0 console=ttyS1,115200 fsck.repair=yes rootwait"
        " root=PARTUUID=692cda80-02 rootfstype=ext4 rw rauc.slot=A panic=10\n"
    )
    assert "disk-signature = 0x692cda80" in slots.LAYOUT
    assert slots.LAYOUT.count(f"size = {slots.SIZE}") == 2, "two roots of one size"
    assert "LABEL=rootfs" not in (tree / "etc/fstab").read_text(), "either root may run"
    assert "BEGIN CERTIFICATE" in (tree / "etc/rauc/keyring.pem").read_text()
    assert not (tree / "etc/kernel/postinst.d/z50-raspi-firmware").exists()
    assert (tree / "etc/systemd/system/multi-user.target.wants/edgesan-slot.service").is_symlink()


def test_a_card_has_room_for_both_roots_and_fits_on_8_gb(tmp_path: Path) -> None:
    needs("openssl", "systemctl", "genimage", "mcopy", "mkfs.vfat", "mke2fs")
    tree = root(tmp_path / "tree")
    slots.prepare(tree, signer(tmp_path, "update").certificate)
    slots.image(tree, tmp_path / "card.img")
    assert Fat(tmp_path / "card.img").read("A/vmlinuz") == b"new"
    with (tmp_path / "card.img").open("rb") as file:
        record = file.read(512)
    entries = [struct.unpack_from("<4xB3xII", record, 446 + 16 * n) for n in range(4)]
    assert [kind for kind, _, _ in entries] == [0x0C, 0x83, 0x83, 0]
    assert entries[1][2] == entries[2][2] == 3 * 2**30 // 512, "either root fits into either slot"
    assert (entries[2][1] + entries[2][2]) * 512 == (tmp_path / "card.img").stat().st_size < 8e9


def test_a_private_key_does_not_get_into_an_image(tmp_path: Path) -> None:
    needs("openssl")
    ours = signer(tmp_path, "update")
    ours.certificate.write_text(ours.key.read_text() + ours.certificate.read_text())
    for wrong in (ours.certificate, ours.key, tmp_path / "none"):
        with pytest.raises(ConfigError):
            slots.prepare(tmp_path, wrong)


def test_our_bundle_is_taken_a_strangers_and_a_changed_one_are_not(tmp_path: Path) -> None:
    needs("rauc", "mksquashfs", "mke2fs", "resize2fs", "openssl")
    ours, stranger = signer(tmp_path, "update"), signer(tmp_path, "stranger")
    good, bad = tmp_path / "good.raucb", tmp_path / "bad.raucb"
    (root(tmp_path / "tree") / "random").write_bytes(os.urandom(2**16))  # RAUC 1.8 wants more than a page
    slots.bundle(tmp_path / "tree", good, ours.certificate, ours.key, "2")
    slots.bundle(tmp_path / "tree", bad, stranger.certificate, stranger.key)
    with pytest.raises(ConfigError, match="exists: name another"):
        slots.bundle(tmp_path / "tree", good, ours.certificate, ours.key)

    def info(bundle: Path) -> subprocess.CompletedProcess[str]:
        command = ["rauc", f"--keyring={ours.certificate}", "info", "--output-format=json", str(bundle)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    facts = json.loads(info(good).stdout)
    assert (facts["compatible"], facts["version"]) == ("edgesan-debian", "2")
    assert facts["images"][0]["rootfs"]["hooks"] == ["post-install"]
    assert "signature verification failed" in info(bad).stderr
    content = bytearray(good.read_bytes())
    content[-1000] ^= 1  # in the signed manifest, which holds the root of the hashes of all that lies before it
    bad.write_bytes(content)
    assert info(bad).returncode != 0


@pytest.mark.board
def test_a_card_with_slots_gets_its_settings_in_each_of_them(tmp_path: Path) -> None:
    card = stock_image(tmp_path / "card.img")
    (tmp_path / "new/A").mkdir(parents=True)
    (tmp_path / "new/A/cmdline.txt").write_text("rauc.slot=A ds=nocloud;i=old\n")
    (tmp_path / "new/edgesan").mkdir()
    (tmp_path / "new" / INSTALLER).write_text("")
    fat = Fat(card)
    fat.write(tmp_path / "new")
    inject(card, Settings())
    identity = json.loads(fat.read("meta-data"))["instance-id"]
    assert fat.read("A/cmdline.txt").decode() == f"rauc.slot=A ds=nocloud;i={identity}\n"
    assert f"ds=nocloud;i={identity}" in fat.read("cmdline.txt").decode()
    assert not fat.has("B/cmdline.txt")


def test_a_root_that_came_with_edgesan_is_not_given_the_cards_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "BUNDLE").touch()
    monkeypatch.setattr(install, "BUNDLE", tmp_path / "BUNDLE")
    monkeypatch.setattr("sys.argv", ["install.py", "--source", str(tmp_path / "none")])
    assert install.main() == 0
    assert "nothing to install" in capsys.readouterr().out
    assert Path("/", slots.IN_ROOT) == Path("/opt/edgesan/BUNDLE")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--bundle"], "a bundle needs --slots CERTIFICATE and --key FILE"),
        (["--bundle", "--slots", "a.pem"], "a bundle needs --slots CERTIFICATE and --key FILE"),
        (["raspios.img", "--slots", "a.pem"], "--slots goes with --debian or --bundle"),
    ],
)
def test_half_of_the_options_is_refused(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(wrong)
    assert said in capsys.readouterr().err
