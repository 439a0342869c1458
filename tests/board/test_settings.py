"""The settings of a board: written into the FAT partition of a stock image, read back, and installed from there."""

import dataclasses
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from edgesan.board import settings as settings_module
from edgesan.board.settings import FIXED, Fat, Settings, inject, kernel_line, load_settings, seed
from edgesan.config import DEMO_MODEL, Config, load, of_board
from edgesan.errors import ConfigError, SinkError
from firmware_config import build
from firmware_config import install as installer
from tests.support import COMMAND, ROOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBw0 me@home"
SETTINGS = f"""
hostname = "porch"
user = "me"
ssh_key = "{KEY}"
timezone = "Europe/Vienna"
[wifi]
ssid = 'Haus "am" See: ß'
password = "correct horse: battery # staple"
country = "AT"
[edgesan]
camera = "picamera"
alpha = 0.5
background = "plain"
out = ["http://0.0.0.0:8080"]
zone = ["0,0,0.5,0.5"]
token = "correct-horse-battery"
"""
CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=1-02 rootwait ds=nocloud;i=rpi-imager-1"
MIB = 2**20


def settings(tmp_path: Path, text: str = SETTINGS) -> Settings:
    (tmp_path / "board.toml").write_text(text)
    return load_settings(tmp_path / "board.toml")


# --- the settings -----------------------------------------------------------------------------------------------------


def test_without_a_file_a_board_is_plain() -> None:
    plain = load_settings(None)
    files = seed(plain)
    user = json.loads(files["user-data"].removeprefix(b"#cloud-config\n"))
    assert "users" not in user, "nobody can log in"
    assert user["runcmd"] == [["python3", "/boot/firmware/edgesan/install.py"]]
    assert "wifis" not in json.loads(files["network-config"])["network"]
    assert files["edgesan/settings/token.env"] == b""
    assert files["edgesan/model/model.onnx"] == DEMO_MODEL.read_bytes()


def test_the_settings_become_cloud_inits_files(tmp_path: Path) -> None:
    files = seed(settings(tmp_path))
    head, _, text = files["user-data"].partition(b"\n")
    assert head == b"#cloud-config"
    user = json.loads(text)
    assert (user["hostname"], user["timezone"], user["ssh_pwauth"], user["enable_ssh"]) == (
        "porch",
        "Europe/Vienna",
        False,
        True,
    )
    (account,) = user["users"]
    assert (account["name"], account["ssh_authorized_keys"], account["lock_passwd"]) == ("me", [KEY], True)
    radio = json.loads(files["network-config"])["network"]["wifis"]["wlan0"]
    assert radio["access-points"] == {'Haus "am" See: ß': {"password": "correct horse: battery # staple"}}
    assert radio["regulatory-domain"] == "AT"
    assert files["edgesan/settings/token.env"] == b"EDGESAN_TOKEN=correct-horse-battery\n"


def test_the_url_of_a_network_camera_goes_where_only_root_reads(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[edgesan]\ncamera = "rtsp://me:s3cret@192.168.1.20/1?user=me&pwd=s3cret"\n')
    files = seed(load_settings(path))
    whole = b"EDGESAN_CAMERA=rtsp://me:s3cret@192.168.1.20/1?user=me&pwd=s3cret\n"
    assert files["edgesan/settings/camera.env"] == whole
    assert b'camera = "rtsp://192.168.1.20"\n' in files["edgesan/settings/edgesan.toml"]
    assert [name for name, content in files.items() if b"s3cret" in content] == ["edgesan/settings/camera.env"]
    for name in ("edgesan.toml", "camera.env"):
        (tmp_path / name).write_bytes(files[f"edgesan/settings/{name}"])
    assert load(tmp_path / "edgesan.toml", {"role": "transmit"}).camera == "rtsp://192.168.1.20"
    assert of_board(tmp_path / "edgesan.toml")["camera"] == whole.decode().strip().partition("=")[2]


def test_what_is_written_as_json_is_the_same_as_yaml(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which cloud-init reads with, is not here")
    files = seed(settings(tmp_path))
    for name in ("user-data", "network-config", "meta-data"):
        assert yaml.safe_load(files[name]) == json.loads(files[name].removeprefix(b"#cloud-config\n"))


def test_the_boards_configuration_is_read_by_both_units_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_bytes(seed(settings(tmp_path))["edgesan/settings/edgesan.toml"])
    assert b"correct-horse-battery" not in path.read_bytes()
    there = load(path, {"role": "transmit", "token": "correct-horse-battery"})
    assert (there.camera, there.alpha, there.background, there.out) == (
        "picamera",
        0.5,
        "plain",
        ("http://0.0.0.0:8080",),
    )
    assert there.zone == ("0,0,0.5,0.5",)
    assert there.require_isolation
    assert load(path, {"role": "sanitize"}).model == Path("/var/lib/edgesan/models/current/model.onnx")
    stock = tomllib.loads((ROOT / "firmware_config/root/etc/edgesan/edgesan.toml").read_text())
    assert {key: stock[key] for key in FIXED} == FIXED


def test_other_settings_have_another_identity_and_the_same_ones_the_same(tmp_path: Path) -> None:
    first, again = seed(settings(tmp_path)), seed(settings(tmp_path))
    other = seed(settings(tmp_path, SETTINGS.replace("porch", "hall")))
    assert first == again
    assert first["meta-data"] != other["meta-data"]


def test_the_kernels_line_says_where_cloud_init_looks(tmp_path: Path) -> None:
    porch = settings(tmp_path)
    files = seed(porch)
    once = kernel_line(CMDLINE, porch, files)
    identity = json.loads(files["meta-data"])["instance-id"]
    assert once == f"{CMDLINE.rpartition(' ')[0]} ds=nocloud;i={identity} cfg80211.ieee80211_regdom=AT\n"
    assert kernel_line(once, porch, files) == once
    assert "regdom" not in kernel_line(CMDLINE, Settings(), files)


WRONG = {
    'hostnam = "a"': "unknown key 'hostnam'; did you mean 'hostname'",
    "hostname = 5": "hostname = 5 is not a plain text",
    'hostname = "a b"': "hostname is 'a b': letters, digits and hyphens",
    'hostname = "a\\nb"': "is not a plain text",
    'user = "root"': "user is 'root': an ordinary user's name",
    'timezone = "../etc"': "write it as Europe/Vienna",
    'ssh_key = "-----BEGIN OPENSSH PRIVATE' + ' KEY-----"': "a public key as ssh-keygen writes it",
    "wifi = 1": "begin them with",
    '[wifi]\nsid = "a"': "unknown key 'wifi.sid'; did you mean 'ssid'",
    '[wifi]\nssid = "a"\npassword = "short"\ncountry = "AT"': "wifi.password is '...': 8 to 63 characters",
    '[wifi]\nssid = "a"\npassword = "long enough"': "wifi.country is '': two capital letters",
    '[wifi]\npassword = "long enough"\ncountry = "AT"': "wifi.ssid is '': the network's name",
    "[edgesan]\nalpa = 1": "unknown key 'alpa'; did you mean 'alpha'",
    "[edgesan]\nalpha = 2": "alpha is 2: it must lie between 0",
    '[edgesan]\nout = "http://0.0.0.0:80"': "viewers must present a secret",
    '[edgesan]\ncamera = "rtsp://me:a\\"b@192.0.2.1/"': "edgesan.camera is 'rtsp://192.0.2.1': write blanks, quotes",
    '[edgesan]\nstate_dir = "/x"': "state_dir.*not here: change it on the board",
    "[edgesan": "is not TOML",
}


def test_the_example_of_the_settings_has_every_key() -> None:
    lines = [line.strip() for line in (settings_module.__doc__ or "").splitlines() if line.startswith("    ")]
    example = tomllib.loads("\n".join(lines))
    keys = {*example, *example["wifi"]} - {"wifi", "edgesan"}
    own = {field.name for field in dataclasses.fields(Settings)} - {"run", "given"}
    assert keys == own
    assert {"camera", "out", "token"} == example["edgesan"].keys()


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_setting_is_refused_in_its_own_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]):
        settings(tmp_path, text)


def test_a_setting_never_says_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, '[wifi]\nssid = "a"\npassword = "tooshor"\ncountry = "AT"')
    assert "tooshor" not in str(error.value)


# --- the FAT partition ------------------------------------------------------------------------------------------------

NEEDED = ("mcopy", "mkfs.vfat", "sfdisk")


def stock_image(path: Path, boot_mib: int = 64) -> Path:
    """As Raspberry Pi OS lays it out: a master boot record, a FAT32 partition, an ext4 one (which stays empty here)."""
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not here (apt install mtools dosfstools fdisk)")
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    start = 16384
    with path.open("wb") as file:
        file.truncate((start * 512) + (boot_mib + 32) * MIB)
    table = f"label: dos\n{start},{boot_mib}M,c\n,,83\n"
    subprocess.run(["sfdisk", "--quiet", path], input=table, text=True, check=True, env=environment)
    boot = path.with_suffix(".vfat")
    subprocess.run(
        ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "bootfs", "-C", boot, str(boot_mib * 1024)],
        check=True,
        env=environment,
        capture_output=True,
    )
    for name, text in {
        "cmdline.txt": CMDLINE + "\n",
        "config.txt": "camera_auto_detect=1\n",
        "user-data": "#cloud-config\n",
        "meta-data": "",
        "network-config": "",
    }.items():
        subprocess.run(["mcopy", "-i", boot, "-", f"::{name}"], input=text, text=True, check=True, env=environment)
    with path.open("r+b") as file:
        file.seek(start * 512)
        file.write(boot.read_bytes())
    boot.unlink()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return stock_image(tmp_path / "raspios.img")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels of the shapes that there are: plain, with compiled parts, with a folder of data."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "plain-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("plain/__init__.py", "here = True\n")
    with zipfile.ZipFile(folder / "parts-1-cp313-cp313-manylinux_2_28_aarch64.whl", "w") as wheel:
        wheel.writestr("parts/fast.cpython-313-aarch64-linux-gnu.so", b"\x7fELF")
        wheel.writestr("parts-1.data/purelib/parts/more.py", "")
        wheel.writestr("parts-1.data/scripts/parts", "#!python\n")
    return folder


def extract(image: Path, folder: Path) -> None:
    """All of the boot partition, by other words than those that wrote it."""
    subprocess.run(["mcopy", "-s", "-i", f"{image}@@{16384 * 512}", "::/*", f"{folder}/"], check=True)


@pytest.mark.board
def test_a_payload_is_written_into_a_stock_image_and_read_back(image: Path, wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(SETTINGS)
    out, listing = tmp_path / "out.img", tmp_path / "porch.rpi-imager-manifest"
    code = build.main(
        [
            str(image),
            "--settings",
            str(tmp_path / "board.toml"),
            "--out",
            str(out),
            "--wheels",
            str(wheels),
            "--manifest",
            str(listing),
        ]
    )
    assert code == 0
    (tmp_path / "card").mkdir()
    extract(out, tmp_path / "card")
    there = tmp_path / "card"
    seeded = seed(load_settings(tmp_path / "board.toml"))
    for name, content in seeded.items():
        assert (there / name).read_bytes() == content, name
    assert (there / "config.txt").read_text() == "camera_auto_detect=1\n", "what is not ours stays"
    assert json.loads(seeded["meta-data"])["instance-id"] in (there / "cmdline.txt").read_text()
    assert sorted(p.name for p in (there / "edgesan/wheels").iterdir()) == sorted(p.name for p in wheels.iterdir())
    with tarfile.open(there / "edgesan/root.tar") as archive:
        names = archive.getnames()
    stock = ROOT / "firmware_config/root"
    assert names == [str(path.relative_to(stock)) for path in sorted(stock.rglob("*")) if path.is_file()]
    (entry,) = json.loads(listing.read_text())["os_list"]
    assert entry["init_format"] == "cloudinit-rpi"
    assert entry["extract_size"] == out.stat().st_size
    content = out.read_bytes()
    assert content[: 16384 * 512] == image.read_bytes()[: 16384 * 512], "nothing before the partition is touched"
    assert content[16384 * 512 + 64 * MIB :] == image.read_bytes()[16384 * 512 + 64 * MIB :], "nor after it"


@pytest.mark.board
def test_flash_writes_such_an_image_and_tells_it_another_name(image: Path, wheels: Path, tmp_path: Path) -> None:
    assert build.main([str(image), "--out", str(tmp_path / "out.img"), "--wheels", str(wheels)]) == 0
    (tmp_path / "hall.toml").write_text(SETTINGS.replace("porch", "hall"))
    command = [
        *COMMAND,
        "flash",
        tmp_path / "out.img",
        tmp_path / "card.img",
        "--to-file",
        "--settings",
        tmp_path / "hall.toml",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fat = Fat(tmp_path / "card.img")
    assert json.loads(fat.read("user-data").removeprefix(b"#cloud-config\n"))["hostname"] == "hall"
    assert Fat(tmp_path / "out.img").read("user-data") == seed(Settings())["user-data"]
    bare = subprocess.run(
        [
            *COMMAND,
            "flash",
            str(image),
            str(tmp_path / "b.img"),
            "--to-file",
            "--settings",
            str(tmp_path / "hall.toml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bare.returncode == 2
    assert "holds no edgesan yet: make it with python -m firmware_config.build" in bare.stderr


@pytest.mark.board
def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    small = stock_image(tmp_path / "raspios.img", boot_mib=34)
    (tmp_path / "payload" / "wheels").mkdir(parents=True)
    (tmp_path / "payload" / "wheels" / "big.whl").write_bytes(os.urandom(40 * MIB))
    with pytest.raises(SinkError, match=r"4\d MiB do not fit into the boot partition of .*, which has 3\d MiB free"):
        inject(small, Settings(), tmp_path / "payload")
    assert not Fat(small).has("edgesan/install.py")


@pytest.mark.board
def test_an_image_that_is_none_or_too_old_is_refused(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.img").write_bytes(bytes(1024))
    with pytest.raises(ConfigError, match="has no FAT partition in a master boot record"):
        Fat(tmp_path / "x.img")
    subprocess.run(["mdel", "-i", f"{image}@@{16384 * 512}", "::user-data"], check=True)
    (tmp_path / "empty").mkdir()
    code = build.main([str(image), "--out", str(tmp_path / "o.img"), "--wheels", str(tmp_path / "empty")])
    assert code == 2
    assert "has no user-data: expected Raspberry Pi OS trixie or later" in capsys.readouterr().err
    assert not (tmp_path / "o.img").exists()


def test_a_model_that_the_board_would_refuse_is_refused_here(tmp_path: Path, wheels: Path) -> None:
    (tmp_path / "san.onnx").write_bytes(DEMO_MODEL.read_bytes())
    (tmp_path / "board.toml").write_text('[edgesan]\nmodel = "san.onnx"\n')
    with pytest.raises(ConfigError, match=r"the board would refuse the model: .*san.onnx.sig"):
        build.payload(tmp_path / "payload", load_settings(tmp_path / "board.toml"), wheels)


# --- the installer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def payload(tmp_path: Path, wheels: Path) -> Path:
    build.payload(tmp_path / "payload", settings(tmp_path), wheels)
    return tmp_path / "payload"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not here: apt install systemd")
    folder = tmp_path / "root"
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "usr/bin/python3.13").touch()
    return folder


def install(payload: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """By the system's plain Python, without what this environment has."""
    command = [sys.executable, "-I", "-S", str(payload / "install.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_installer_needs_nothing_but_python_and_puts_everything_in_its_place(payload: Path, root: Path) -> None:
    done = install(payload, root)
    assert done.returncode == 0, done.stderr
    lib = root / "opt/edgesan/lib"
    assert (lib / "plain/__init__.py").exists()
    assert (lib / "parts/more.py").exists(), "what lies in a wheel's data belongs to the library"
    assert not list(lib.rglob("scripts"))
    assert stat.S_IMODE((root / "usr/bin/edgesan").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "etc/edgesan/token.env").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "etc/edgesan/edgesan.toml").stat().st_mode) == 0o644
    current = root / "var/lib/edgesan/models/current"
    assert current.is_symlink()
    assert not os.readlink(current).startswith("/")
    assert (current / "model.onnx").read_bytes() == DEMO_MODEL.read_bytes()
    assert (current / "model.onnx.sig").exists()
    wants = root / "etc/systemd/system/multi-user.target.wants"
    assert {link.name for link in wants.iterdir()} == {
        f"edgesan-{unit}.service" for unit in ("sanitize", "transmit", "settle")
    }
    timer = root / "etc/systemd/system/timers.target.wants" / "edgesan-update.timer"
    assert all((root / os.readlink(link).lstrip("/")).exists() for link in (*wants.iterdir(), timer))
    assert "edgesan-sanitize" in (root / "etc/passwd").read_text()
    assert load(root / "etc/edgesan/edgesan.toml", {"role": "sanitize"}) != Config()


def test_installing_twice_does_no_harm(payload: Path, root: Path) -> None:
    assert install(payload, root).returncode == 0
    (root / "opt/edgesan/lib/left_over.py").touch()
    assert install(payload, root).returncode == 0
    assert sorted(p.name for p in (root / "opt/edgesan").iterdir()) == ["lib"]
    assert not (root / "opt/edgesan/lib/left_over.py").exists()
    assert (root / "etc/passwd").read_text().count("edgesan-sanitize:") == 1


def test_a_worn_card_is_seen_before_anything_is_installed(payload: Path, root: Path) -> None:
    wheel = next((payload / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    done = install(payload, root)
    assert done.returncode == 1
    assert f"{wheel} is not as it was written: the card may be worn" in done.stderr
    assert "is not as it was written" in (payload / "FAILED.txt").read_text(), "so that another machine can read it"
    assert not (root / "opt").exists()


def test_another_python_is_refused(payload: Path, root: Path) -> None:
    (root / "usr/bin/python3.13").rename(root / "usr/bin/python3.11")
    done = install(payload, root)
    assert done.returncode == 1
    assert "has no python3.13, which the wheels are for" in done.stderr


def test_the_installer_replaces_a_link_and_follows_none(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for planted in ("target", ".target.part"):
        (tmp_path / planted).symlink_to("victim")
        installer.put(b"new", tmp_path / "target", 0o600)
        assert (tmp_path / "victim").read_text() == "precious"
        assert (tmp_path / "target").read_bytes() == b"new"
        assert stat.S_IMODE((tmp_path / "target").lstat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_installer_writes_as_root_in_no_folder_of_another_users(tmp_path: Path) -> None:
    os.chown(tmp_path, 65533, 65533)
    for target in (tmp_path / "file", tmp_path / "deeper" / "file"):
        with pytest.raises(installer.InstallError, match="others than root may change the folder of"):
            installer.put(b"new", target)
    assert list(tmp_path.iterdir()) == []


def test_what_the_installer_compiles_is_there_to_be_imported() -> None:
    assert all(importlib.util.find_spec(name) for name in installer.IMPORTED)
