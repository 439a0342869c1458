"""An image is flashed, boots on an emulated Arm board without a network, and sanitizes what its camera sees.

One board lives through all of these tests, in their order. Its camera is `vivid`, the kernel's own: colour bars, and
nobody in them; for faces it is shown the bundled clip. All figures are of emulation: they say that it works, not how
fast.
"""

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from edgesan.board.settings import Fat
from edgesan.config import DEMO_MODEL
from edgesan.frames import Pixels
from edgesan.model import signing
from firmware_config import build, debian
from tests.qemu.conftest import Row
from tests.qemu.guest import IGNORED, PATIENCE_S, TOKEN, Guest
from tests.support import Maker

pytestmark = [pytest.mark.board, pytest.mark.slow, IGNORED]
UNITS = ("edgesan-sanitize.service", "edgesan-transmit.service")
MOST_EXPOSED = 1.5
SIZE = (640, 360)
SETTINGS = """\
hostname = "porch"
user = "pi"
ssh_key = "{key}"

[edgesan]
camera = "0"
out = "http://0.0.0.0:8080"
token = "{token}"
trusted_keys = ["{maker}"]
size = "640x360"
# A frame older than 2 s is not shown, and this processor is emulated: let it look for faces less closely.
detect_size = 160
detect_every = 8
"""
NETWORK_PROBE = """\
import errno, socket
for family, address in ((socket.AF_INET, ("10.0.2.2", 80)), (socket.AF_INET6, ("fec0::2", 80))):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as s:
                s.settimeout(5)
                s.connect(address)
            print(family.name, kind.name, "allowed")
        except OSError as error:
            print(family.name, kind.name, errno.errorcode.get(error.errno, error))
"""
CAMERA_PROBE = """\
import errno, os
for node in ("/dev/video0", "/dev/mem", "/dev/vda"):
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK))
        print(node, "allowed")
    except OSError as error:
        print(node, errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def folder(needs: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the board's disk lies."""
    needs(
        "mmdebstrap", "genimage", "mcopy", "bmaptool", "qemu-system-aarch64", "qemu-aarch64-static", "ssh", "zstd", "xz"
    )
    kept = os.environ.get("EDGESAN_BOARD_FOLDER")  # of an earlier run, so that it need not be made again
    return Path(kept) if kept else tmp_path_factory.mktemp("guest")


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    if not (folder / "key").exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / "key"], check=True)
    return folder / "key"


@pytest.fixture(scope="module")
def maker(folder: Path) -> Maker:
    """Somebody whose models the board trusts."""
    if (folder / "maker").exists():
        kept = Maker.__new__(Maker)
        kept.folder, kept.key_file = folder, folder / "maker"
        kept.key = signing.public_half(signing.private_key(kept.key_file))
        return kept
    return Maker(folder, "maker")


@pytest.fixture(scope="module")
def disk(folder: Path, key: Path, maker: Maker, row: Row) -> Path:
    """The Debian image with the payload in its FAT partition: made by the verbs that a user has."""
    if (folder / "board.img").exists():
        return folder / "board.img"
    started_s, kept = time.monotonic(), any(debian.CACHE.glob("root-*"))
    settings = folder / "board.toml"
    settings.write_text(
        SETTINGS.format(key=key.with_suffix(".pub").read_text().strip(), token=TOKEN, maker=maker.key.line)
    )
    disk = folder / "board.img"
    assert build.main(["--debian", "--settings", str(settings), "--out", str(disk)]) == 0
    assert disk.with_suffix(".bmap").exists()
    data = disk.stat().st_blocks * 512 / 1e6
    row(
        "Debian image with the payload",
        f"{data:.0f} MB of data, made in {time.monotonic() - started_s:.0f} s"
        f" ({'its root was kept' if kept else 'root included'})",
    )
    return disk


@pytest.fixture(scope="module")
def board(disk: Path, key: Path) -> Iterator[Guest]:
    with Guest(disk, key) as guest:
        yield guest


def clock(board: Guest) -> str:
    """The board's own clock, which counts instructions, beside that of this busy machine."""
    log = "journalctl -b -o short-monotonic -u edgesan-transmit -u edgesan-sanitize | grep -i 'started edgesan'"
    seconds = [line.split("]")[0].strip("[ ") for line in board.run(log).splitlines()]
    return f"both units up by the board's own clock at {max(map(float, seconds)):.0f} s"


def pixels(jpeg: bytes) -> Pixels:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def roughness(picture: Pixels) -> float:
    """How far the pixels of a picture are from its mean colour: levels, on average; nearly 0 on a plain canvas."""
    return float(np.abs(picture - picture.mean((0, 1))).mean())


def units(board: Guest) -> dict[str, str]:
    """Whether each unit is active, and how often systemd has started it again."""
    return {unit: board.run(f"systemctl show --value -p ActiveState -p NRestarts {unit}") for unit in UNITS}


def counters(board: Guest) -> dict[str, int]:
    """What was counted; nothing while the sanitize unit is not there."""
    totals: dict[str, int] = json.loads(board.get("/api/status")).get("totals", {})
    return totals


def test_the_payload_in_the_image_is_what_was_written(disk: Path, row: Row) -> None:
    fat = Fat(disk)
    assert json.loads(fat.read("user-data").split(b"\n", 1)[1])["hostname"] == "porch"
    assert fat.read("edgesan/model/model.onnx") == DEMO_MODEL.read_bytes()
    wheels = [line for line in fat.read("edgesan/SHA256SUMS").decode().splitlines() if line.endswith(".whl")]
    assert len(wheels) > 20
    row("payload in the FAT partition", f"read back; {len(wheels)} wheels")


def test_the_image_boots_an_emulated_pi_3(disk: Path, key: Path, row: Row) -> None:
    """On a card of its own, before the board's first boot changes the image."""
    card = disk.with_name("pi.img")
    subprocess.run(["cp", "--sparse=always", disk, card], check=True)
    with Guest(card, key, "raspi3b") as pi:
        picture, frame_s = pi.wait_for_frame()
        pi.wait_for_login()
        assert roughness(pixels(picture)) < 2
        said = pi.run("tr -d '\\0' < /proc/device-tree/model; echo; uname -r; nproc")
        assert said.startswith("Raspberry Pi 3 Model B")
        assert all("active" in lines.split() for lines in units(pi).values()), units(pi)
        row("-M raspi3b: first boot, sanitized canvas", f"{', '.join(said.splitlines())} processors; {frame_s:.0f} s")
        pi.power_off()
        assert "reboot: Power down" in pi.console()
    card.unlink()


def test_the_first_boot_installs_it_without_a_network(board: Guest, row: Row) -> None:
    _, frame_s = board.wait_for_frame()
    board.wait_for_login()
    assert "unreachable" in board.python(
        "import socket\ntry: socket.create_connection(('1.1.1.1', 80), 10); print('reached')\n"
        "except OSError: print('unreachable')"
    )
    status = board.run("cloud-init status --wait", check=False)
    assert "done" in status, f"{status}\n{board.run('sudo tail -n 60 /var/log/cloud-init-output.log', check=False)}"
    assert board.run("hostname") == "porch"
    assert "edgesan: installed into /" in board.run("sudo cat /var/log/cloud-init-output.log")
    assert board.run("sudo ls /boot/firmware/edgesan/settings") == "edgesan.toml", "the token is still on the card"
    row("first boot: installed, first frame", f"{frame_s:.0f} s; {clock(board)}")


def test_both_units_run_and_the_stream_is_sanitized_canvas(board: Guest, row: Row) -> None:
    assert all("active" in lines.split() for lines in units(board).values()), units(board)
    picture = pixels(board.get("/snapshot.jpg"))
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    raw = board.run(
        "v=/tmp/raw.png; sudo systemctl stop edgesan-sanitize; sudo PYTHONPATH=/opt/edgesan/lib python3 -c"
        " \"import cv2; c = cv2.VideoCapture('/dev/video0');"
        " c.set(3, 640); c.set(4, 360); cv2.imwrite('$v', c.read()[1])\""
        " && base64 -w0 $v; sudo systemctl start edgesan-sanitize"
    )
    camera = cv2.imdecode(np.frombuffer(base64.b64decode(raw.splitlines()[-1]), np.uint8), cv2.IMREAD_COLOR)
    assert roughness(picture) < 2 < roughness(camera)
    row(
        "roughness of the stream's canvas, of the camera's own picture",
        f"{roughness(picture):.2f}, {roughness(camera):.1f} levels",
    )


def test_frames_flow(board: Guest, row: Row) -> None:
    deadline_s, before = time.monotonic() + PATIENCE_S, counters(board)
    while (
        not 0 < before.get("sanitized", 0) < counters(board).get("sanitized", 0)
    ):  # the unit was started again, and counts anew
        assert time.monotonic() < deadline_s, before
        time.sleep(2)
        before = counters(board)
    before, started_s = counters(board), time.monotonic()
    time.sleep(30)
    after, seconds = counters(board), time.monotonic() - started_s
    sanitized = after["sanitized"] - before["sanitized"]
    assert sanitized > 0
    stale = after.get("rejected_stale", 0) - before.get("rejected_stale", 0)
    row(
        "frames in the guest, colour bars of 640x360",
        f"{sanitized / seconds:.1f} fps ({stale} of {sanitized + stale} too old)",
    )


def test_without_the_token_nothing_is_served(board: Guest) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{board.port}/snapshot.jpg", timeout=300)
    refused.value.close()


def test_the_known_answer_holds_on_aarch64(board: Guest, row: Row) -> None:
    said = board.run("uname -m; sudo edgesan inspect --config /etc/edgesan/edgesan.toml")
    assert said.startswith("aarch64")
    assert "known answer: right on this machine" in said
    row("known answer of the model on aarch64", "right")


@pytest.mark.parametrize("unit", UNITS)
def test_little_is_exposed(board: Guest, row: Row, unit: str) -> None:
    said = board.run(f"systemd-analyze security --no-pager {unit} | tail -n 1").splitlines()[-1]
    score = float(said.split(":")[1].split()[0])
    assert score <= MOST_EXPOSED
    row(f"exposure of {unit}, in the guest", f"{score} (0 is best; {board.run('systemctl --version').splitlines()[0]})")


def probe(board: Guest, unit: str, program: str) -> str:
    """What a program says that runs in a copy of a unit: the same user, the same walls."""
    name = f"probe-{unit}"
    board.run(f"sudo tee /run/{name}.py > /dev/null; sudo chmod 644 /run/{name}.py", stdin=program.encode())
    # The folder of the socket would go with this copy of the unit.
    board.run(
        f"sed -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 /run/{name}.py|' -e 's/^Type=.*/Type=oneshot/'"
        " -e '/^Restart/d' -e '/^Watchdog/d' -e '/^Wants=/d' -e '/^After=/d'"
        f" -e 's/^RuntimeDirectory=.*/&\\nRuntimeDirectoryPreserve=yes/' /usr/lib/systemd/system/{unit}"
        f" | sudo tee /run/systemd/system/{name} > /dev/null; sudo systemctl daemon-reload; sudo systemctl start {name}"
    )
    return board.run(f"sudo journalctl -u {name} -o cat _TRANSPORT=stdout")


def test_the_sanitize_unit_reaches_no_network(board: Guest, row: Row) -> None:
    inside = probe(board, UNITS[0], NETWORK_PROBE)
    assert len(inside.splitlines()) == 4
    assert "allowed" not in inside
    outside = board.python(NETWORK_PROBE)
    assert "AF_INET SOCK_DGRAM allowed" in outside, "the probe sees no network where there is one"
    row("network from the sanitize unit", "; ".join(inside.splitlines()))
    row("the same, by a user of the board", "; ".join(outside.splitlines()))


def test_the_transmit_unit_opens_no_camera(board: Guest, row: Row) -> None:
    inside = probe(board, UNITS[1], CAMERA_PROBE)
    assert len(inside.splitlines()) == 3
    assert "allowed" not in inside
    assert "/dev/video0 allowed" in board.python(CAMERA_PROBE, as_root=True)
    row("camera from the transmit unit", "; ".join(inside.splitlines()))


def test_what_the_running_units_say_holds(board: Guest, row: Row) -> None:
    said = json.loads(board.get("/api/status"))["isolation"]
    assert said["whole"], said
    row("what the units have given up", said["summary"])


def look_at(board: Guest, camera: str, detect_every: int) -> None:
    """Show the board something else, and wait until it is what viewers see.

    Two frames a second from here on: the guest's clock counts instructions, and stands still for a minute of ours where
    a processor that never rests counts them.
    """
    board.run(
        f"sudo sed -i -e '/^fps/d' -e '1i fps = 2' -e 's/^camera = .*/camera = \"{camera}\"/'"
        f" -e 's/^detect_every.*/detect_every = {detect_every}/'"
        " /etc/edgesan/edgesan.toml && sudo systemctl restart edgesan-sanitize"
    )
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        status = json.loads(board.get("/api/status"))
        if status.get("camera") in (camera, f"/dev/video{camera}") and status["totals"].get("sanitized"):
            return
        time.sleep(2)
    raise AssertionError(f"nothing is seen of {camera}: {status}")


def carry(board: Guest, model: Path) -> str:
    """Put a model and its signature onto the board; where they lie there."""
    for file in (model, Path(f"{model}.sig")):
        board.run(f"cat > /tmp/{file.name}", stdin=file.read_bytes())
    return f"/tmp/{model.name}"


def test_a_new_model_is_installed_and_watched(board: Guest, maker: Maker, row: Row) -> None:
    version = json.loads(onnx.load(str(DEMO_MODEL)).metadata_props[0].value)["version"] + 1
    model = carry(board, maker.model("newer.onnx", version=version))
    said = board.run(f"sudo edgesan install {model} --watch 20")
    assert f"v{version}" in said
    assert "was watched for 20 s" in said
    row("edgesan install of a newer model", said.splitlines()[-1])


def test_faces_of_the_clip_come_out_sanitized(board: Guest, row: Row) -> None:
    look_at(board, "demo", 1)
    totals = counters(board)
    assert totals["faces"]
    row("the bundled clip as the camera", f"{totals['faces']} faces sanitized in {totals['sanitized']} frames")


def test_a_model_that_gives_faces_back_raw_is_refused(board: Guest, maker: Maker, row: Row) -> None:
    """It is signed, but it gives every face back as it came: it is refused before it runs."""
    before = board.run("readlink /var/lib/edgesan/models/current")
    said = board.run(f"sudo edgesan install {carry(board, leaky(maker))} --watch 20", check=False)
    assert "a path leads from face to its output around the code" in said, said
    assert board.run("readlink /var/lib/edgesan/models/current") == before
    row("edgesan install of a model that gives faces back raw", said.splitlines()[-1])
    look_at(board, "0", 8)


def leaky(maker: Maker) -> Path:
    """The bundled network, with its input for its output."""
    model = maker.model("leaky.onnx", sign=False)
    proto = onnx.load(str(model))
    for node in proto.graph.node:
        node.output[:] = ["unused" if name == "sanitized" else name for name in node.output]
    proto.graph.node.append(onnx.helper.make_node("Identity", ["face"], ["sanitized"]))
    model.write_bytes(proto.SerializeToString())
    maker.sign(model)
    return model


def test_after_a_power_cut_it_comes_back(board: Guest, maker: Maker, row: Row) -> None:
    """In the middle of a model's trial: what was not watched to the end is taken back, too."""
    board.wait_for_frame()
    before = board.run("readlink /var/lib/edgesan/models/current")
    version = json.loads(onnx.load(str(DEMO_MODEL)).metadata_props[0].value)["version"] + 2
    model = carry(board, maker.model("trial.onnx", version=version))
    board.run(f"sudo systemd-run --unit on-trial edgesan install {model} --watch 3600")
    deadline_s = time.monotonic() + PATIENCE_S
    while board.run("readlink /var/lib/edgesan/models/current") == before:
        assert time.monotonic() < deadline_s, board.run("sudo journalctl -u on-trial -o cat", check=False)
        time.sleep(2)
    board.kill()
    board.start()
    picture, frame_s = board.wait_for_frame()
    board.wait_for_login()
    assert roughness(pixels(picture)) < 2
    assert board.run("findmnt --noheadings --output OPTIONS /").startswith("rw")
    failed = board.run("systemctl --failed --no-legend --plain")
    assert not failed, failed
    assert board.run("readlink /var/lib/edgesan/models/current") == before
    row("power cut (kill -9), then boot to first frame", f"{frame_s:.0f} s; {clock(board)}")
    row(
        "a model on trial when the power failed",
        board.run("sudo journalctl -u edgesan-settle -o cat _TRANSPORT=stdout"),
    )


def test_it_goes_down_in_good_order(board: Guest) -> None:
    board.power_off()
    assert "reboot: Power down" in board.console()
