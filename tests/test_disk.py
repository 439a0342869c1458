"""Whole files, and root in folders that it does not own: an attacker and root are two real users of the kernel."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesan import disk
from edgesan.board import update
from edgesan.config import Config
from edgesan.errors import ConfigError, EdgesanError, RollbackError, SinkError
from edgesan.model import rollback, signing
from tests.support import COMMAND, ROOT, Maker, report

ATTACKER = 65533
# Python 3.12 and later warn of a fork beside threads of numpy's, which do not matter here: the child calls none of it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="two real users: needs root, which can be either")


# --- for everybody ----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("precious")
    for planted in ("target", ".target.part"):
        (tmp_path / planted).symlink_to(victim)
        disk.write_whole(target, b"new", 0o640)
        assert (victim.read_text(), target.read_bytes(), target.is_symlink()) == ("precious", b"new", False)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]
        target.unlink()


def test_a_folder_may_be_reached_by_the_users_own_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    disk.write_whole(tmp_path / "link" / "file", b"here")
    assert (tmp_path / "real" / "file").read_bytes() == b"here"


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        disk.write_whole(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    with pytest.raises(FileNotFoundError):
        disk.write_whole(tmp_path / "nowhere" / "file", b"new")


def test_files_are_made_all_of_them_or_none(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("nowhere")
    with pytest.raises(FileExistsError) as caught:
        disk.create(tmp_path, {"a": (b"1", 0o600), "b": (b"2", 0o644)})
    assert caught.value.filename == str(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_only_an_ordinary_file_of_that_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert disk.read_whole(tmp_path / "file", 5) == b"12345"
    for name, most, words in (
        ("file", 4, "longer than 4 bytes"),
        ("link", 9, "it is a link"),
        ("pipe", 9, "no ordinary file"),
        (".", 9, "no ordinary file"),
        ("none", 9, "No such file"),
    ):
        with pytest.raises(OSError, match=words):
            disk.read_whole(tmp_path / name, most)


def test_only_a_socket_is_removed(tmp_path: Path) -> None:
    here = tmp_path / "s"
    disk.remove_socket(here)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(here))
    disk.remove_socket(here)
    assert not here.exists()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(here))
    (tmp_path / "link").symlink_to("s")
    for name in ("file", "folder", "link"):
        with pytest.raises(
            ConfigError, match=rf"`--socket {tmp_path / name}` is a file of another kind: name a place of its own"
        ):
            disk.remove_socket(tmp_path / name)
        assert os.path.lexists(tmp_path / name)
    report("--socket names a file, a folder, a link", "exit code 2, nothing is removed", 0)


def test_a_user_who_is_not_root_writes_without_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a child for nothing"))
    disk.write_whole(tmp_path / "file", b"1")
    disk.own(tmp_path)


# --- two users --------------------------------------------------------------------------------------------------------


def start_as(user: int, do: Callable[[], Any]) -> int:
    """A child that is this user, and does this; its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            do()
            code = 0
        finally:
            os._exit(code)
    return child


def seen(tree: Path) -> dict[str, Any]:
    """Everything of a tree that a write could change; what is only read may get another time of access."""
    found = {}
    for path in [tree, *sorted(tree.rglob("*"))]:
        facts = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        owner, times = (facts.st_mode, facts.st_uid, facts.st_gid), (facts.st_mtime_ns, facts.st_ctime_ns)
        found[str(path)] = (owner, times, facts.st_size, facts.st_nlink, content)
    return found


class Attack:
    """`state` is the attacker's, `victim` is root's; what lies between them is root's and open to nobody else."""

    def __init__(self, folder: Path) -> None:
        self.state, self.victim = folder / "state", folder / "victim"
        self.state.mkdir()
        os.chown(self.state, ATTACKER, ATTACKER)
        self.victim.mkdir()
        (self.victim / "profile.d").mkdir()
        for name, mode in (("versions.json", 0o600), ("secret", 0o600), ("profile.d/login.sh", 0o755)):
            (self.victim / name).write_text('{"default": 1}' if name.endswith("json") else "root's words\n")
            (self.victim / name).chmod(mode)

    def as_attacker(self, do: Callable[[], Any]) -> None:
        assert os.waitpid(start_as(ATTACKER, do), 0)[1] == 0, "the attack could not be prepared"


@pytest.fixture
def attack() -> Iterator[Attack]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Attack(Path(name))


def record(attack: Attack, text: str = '{"default": 7, "other": 2}') -> None:
    (attack.state / "versions.json").write_text(text)


def part_link(attack: Attack, to: str) -> None:
    record(attack)
    (attack.state / ".versions.json.part").symlink_to(attack.victim / to)


def record_link(attack: Attack, to: str) -> None:
    (attack.state / "versions.json").symlink_to(attack.victim / to)


def special(attack: Attack, name: str) -> None:
    record(attack) if name != "versions.json" else None
    os.mkfifo(attack.state / name)


def sparse(attack: Attack) -> None:
    with (attack.state / "versions.json").open("wb") as file:
        file.truncate(2**40)


def hard_link(attack: Attack) -> None:
    """Where the kernel lets him: fs.protected_hardlinks."""
    record(attack)
    try:
        os.link(attack.victim / "profile.d/login.sh", attack.state / ".versions.json.part")
    except PermissionError:
        (attack.state / ".versions.json.part").write_text("his own, then")


def folder_as_part(attack: Attack) -> None:
    record(attack)
    (attack.state / ".versions.json.part").mkdir()


# What he plants, and whether the record can still be taken back in spite of it.
PLANTED: dict[str, tuple[Callable[[Attack], Any], bool]] = {
    "nothing": (record, True),
    "the part file a link to a new file in a root-owned folder": (lambda g: part_link(g, "profile.d/new.sh"), True),
    "the part file a link to a root-owned file": (lambda g: part_link(g, "profile.d/login.sh"), True),
    "the part file a hard link to a root-owned file": (hard_link, True),
    "the part file a pipe": (lambda g: special(g, ".versions.json.part"), True),
    "the part file a folder": (folder_as_part, False),
    "the record a link to root's": (lambda g: record_link(g, "versions.json"), False),
    "the record a link to a new file": (lambda g: record_link(g, "new.json"), True),
    "the record a pipe": (lambda g: special(g, "versions.json"), False),
    "the record a terabyte": (sparse, False),
    "the record in words of his own": (lambda g: record(g, '{"default": 7, "x\\n; sh evil": 1}'), True),
}


@as_root
@pytest.mark.parametrize("planted", PLANTED)
def test_root_that_takes_a_version_back_changes_nothing_outside_the_attackers_folder(
    attack: Attack, planted: str
) -> None:
    plant, works = PLANTED[planted]
    attack.as_attacker(lambda: plant(attack))
    before, began_s = seen(attack.victim), time.monotonic()
    came = "taken back"
    try:
        rollback.forget(attack.state, "default", 3)
    except RollbackError as error:
        came = str(error)
    assert seen(attack.victim) == before
    assert time.monotonic() - began_s < 10, "root was made to wait"
    if works:
        assert came == "taken back"
        if "new file" not in planted or "part" in planted:
            facts = (attack.state / "versions.json").lstat()
            assert (stat.S_ISREG(facts.st_mode), facts.st_uid, facts.st_gid) == (True, ATTACKER, 65534)
            assert rollback.remembered(attack.state, "default") == 3
    else:
        assert "versions.json" in came
    assert [path for path in attack.state.iterdir() if path.lstat().st_uid != ATTACKER] == [], (
        "root left something there"
    )
    outcome = came.partition(":")[0].replace(str(attack.state), "FOLDER")
    report(f"`edgesan install` as root, the sanitize unit plants {planted}", outcome, 0)


@as_root
def test_root_that_remembers_a_version_writes_as_the_folders_owner(attack: Attack) -> None:
    attack.as_attacker(lambda: (attack.state / ".versions.json.part").symlink_to(attack.victim / "profile.d/new.sh"))
    before = seen(attack.victim)
    rollback.remember(attack.state, "default", 4)
    assert (attack.state / "versions.json").stat().st_uid == ATTACKER
    assert seen(attack.victim) == before
    rollback.remember(attack.state / "deeper" / "still", "default", 4)
    assert (attack.state / "deeper" / "still").stat().st_uid == ATTACKER


@as_root
@pytest.mark.parametrize("deep", [False, True])
def test_a_state_folder_that_is_a_link_leads_root_nowhere(attack: Attack, deep: bool) -> None:
    """The folder, or one on the path to it, is a link to root's: the link's owner has no rights there."""
    home = attack.state / "home"
    chosen = home / "victim" if deep else home

    def plant() -> None:
        home.symlink_to(attack.victim.parent if deep else attack.victim)

    attack.as_attacker(plant)
    before = seen(attack.victim)
    with pytest.raises(RollbackError, match="Permission denied"):
        rollback.forget(chosen, "default", None)
    with pytest.raises(RollbackError):
        rollback.remember(chosen, "default", 9)
    assert seen(attack.victim) == before
    what = "the path to the state folder" if deep else "the state folder"
    report(f"as root, {what} is a link to root's", "Permission denied", 0)


@as_root
@pytest.mark.parametrize("rounds", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_folder_that_is_exchanged_again_and_again_leads_root_nowhere(attack: Attack, rounds: int) -> None:
    """The race: the attacker's folder, a link to root's, the attacker's folder, ... while root writes."""
    home, mine = attack.state / "home", attack.state / "mine"
    script = f"""
import os
os.setgroups([]); os.setresgid({ATTACKER}, {ATTACKER}, {ATTACKER}); os.setresuid({ATTACKER}, {ATTACKER}, {ATTACKER})
os.mkdir({str(mine)!r}); open({str(mine / "versions.json")!r}, "w").write('{{"default": 7}}')
os.symlink({str(attack.victim)!r}, {str(attack.state / "link")!r})
os.symlink({str(mine)!r}, {str(home)!r})
print("ready", flush=True)
while True:
    for to in ({str(attack.victim)!r}, {str(mine)!r}):
        os.symlink(to, {str(home)!r} + "2"); os.rename({str(home)!r} + "2", {str(home)!r})
"""
    before = seen(attack.victim)
    attacker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert attacker.stdout is not None
    attacker.stdout.readline()
    done = refused = 0
    try:
        for _ in range(rounds):
            try:
                rollback.forget(home, "default", 3)
                done += 1
            except RollbackError:
                refused += 1
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close()
    assert seen(attack.victim) == before
    assert done, "it never was the attacker's folder: no race was tried"
    came = f"{done} taken back, {refused} refused"
    report(f"as root, the state folder is exchanged for a link {rounds} times over", came, 0)


@as_root
def test_the_child_is_the_owner_for_good_and_cannot_be_looked_into(attack: Attack) -> None:
    def facts() -> dict[str, Any]:
        status = Path("/proc/self/status").read_text()
        tried = []
        for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chown(attack.state, 0, 0)):
            try:
                attempt()
            except OSError as error:
                tried.append(error.errno)
        found = {key: value.split() for key, value in re.findall(r"^(Uid|Gid|Groups|Cap\w+):(.*)$", status, re.M)}
        return found | {"tried": tried, "looked": Path("/proc/self/mem").stat().st_uid}

    child = disk.as_owner(attack.state, facts)
    assert child["Uid"] == [str(ATTACKER)] * 4
    assert child["Gid"] == ["65534"] * 4
    assert child["Groups"] == []
    assert child["CapPrm"] == child["CapEff"] == child["CapAmb"] == ["0" * 16]
    assert child["tried"] == [errno.EPERM] * 3
    assert child["looked"] == 0, "its memory is root's to look at: ptrace(2), PR_SET_DUMPABLE"


@as_root
def test_errors_come_out_of_the_child_as_they_are(attack: Attack) -> None:
    def refuse() -> None:
        raise SinkError("said there")

    def fail() -> None:
        (attack.victim / "secret").read_bytes()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SinkError, match="said there"):
        disk.as_owner(attack.state, refuse)
    with pytest.raises(PermissionError) as caught:
        disk.as_owner(attack.state, fail)
    assert caught.value.filename == str(attack.victim / "secret")
    with pytest.raises(OSError, match="as the owner was killed"):
        disk.as_owner(attack.state, die)


@as_root
def test_an_owner_that_stops_the_child_holds_root_up_for_a_while_only(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PATIENCE_S", 0.5)
    with pytest.raises(TimeoutError, match="its owner blocks root"):
        disk.as_owner(attack.state, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    attack.as_attacker(lambda: record(attack))
    ear, mouth = os.pipe()

    def hold() -> None:
        fcntl.flock(os.open(attack.state, os.O_RDONLY), fcntl.LOCK_EX)
        os.write(mouth, b"!")
        time.sleep(60)

    holder = start_as(ATTACKER, hold)
    try:
        os.read(ear, 1)
        with pytest.raises(RollbackError, match="its owner blocks root"):
            rollback.forget(attack.state, "default", 3)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ear)
        os.close(mouth)
    report("the sanitize unit stops root's child, or keeps the record locked", "given up after a minute", 0)


@as_root
def test_root_trusts_no_folder_of_its_own_that_others_may_write_in(attack: Attack) -> None:
    loose = attack.victim.parent / "loose"
    loose.mkdir()
    for mode, refused in ((0o777, True), (0o775, True), (0o1777, False), (0o755, False)):
        loose.chmod(mode)
        if refused:
            with pytest.raises(PermissionError, match="others than root may write there"):
                disk.write_whole(loose / "file", b"1")
        else:
            disk.write_whole(loose / "file", b"1")
    with (
        pytest.raises(PermissionError, match=f"root writes in no folder of user {ATTACKER}"),
        disk.opened(attack.state),
    ):
        pass


@as_root
def test_a_key_and_a_signature_that_root_makes_in_a_users_folder_are_the_users(attack: Attack) -> None:
    attack.as_attacker(lambda: (attack.state / "san.onnx.sig").symlink_to(attack.victim / "secret"))
    attack.as_attacker(lambda: (attack.state / "theirs").symlink_to(attack.victim / "new"))
    before = seen(attack.victim)
    with pytest.raises(ConfigError, match="never overwritten"):
        signing.new_key(attack.state / "theirs")
    signing.new_key(attack.state / "mine")
    signing.sign(attack.state / "san.onnx", b"model", signing.private_key(attack.state / "mine"))
    assert {(path.name, path.stat().st_uid, oct(path.stat().st_mode)) for path in attack.state.glob("[ms]*")} == {
        ("mine", ATTACKER, "0o100600"),
        ("mine.pub", ATTACKER, "0o100644"),
        ("san.onnx.sig", ATTACKER, "0o100644"),
    }
    assert seen(attack.victim) == before


# --- the whole of `edgesan install`, as root, on a board whose sanitize unit is the attacker's ------------------------


def board(attack: Attack, maker: Maker) -> tuple[Config, Path]:
    models = attack.victim.parent / "models"
    (models / "first").mkdir(parents=True)
    shutil.copy(maker.model("a.onnx", version=7), models / "first" / "model.onnx")
    (models / "current").symlink_to("first")
    config = Config(state_dir=attack.state, trusted_keys=(maker.key.line,), out=("http://127.0.0.1:1",))
    return config, models


@as_root
def test_an_install_that_fails_as_root_changes_nothing_but_the_models(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack that was run to its end: the unit plants the link, and waits for `sudo edgesan install`."""
    maker = Maker(tmp_path, "mine")
    config, models = board(attack, maker)
    attack.as_attacker(lambda: part_link(attack, "profile.d/new.sh"))
    before = seen(attack.victim)
    with pytest.raises(EdgesanError, match="was taken back"):
        update.install(maker.model("b.onnx", version=9), config, models, ["true"], update.Watch(1, 1, 1))
    assert seen(attack.victim) == before
    assert rollback.remembered(attack.state, "default") == 7
    assert os.readlink(models / "current") == "first"
    assert sorted(path.name for path in models.iterdir()) == ["current", "first"]
    report("`sudo edgesan install` fails, the sanitize unit has planted a link for root", "taken back", 0)


def as_unit(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root with the capabilities that a unit of the board keeps, by the very words of the unit."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not here: apt install util-linux")
    unit = (ROOT / f"firmware_config/root/usr/lib/systemd/system/{name}").read_text()
    kept = re.findall(
        r"CAP_(\w+)", next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    )
    assert sorted(kept) == ["KILL", "SETGID", "SETUID"]
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in kept)])
    without = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs"]
    return subprocess.run([*without, *COMMAND, *arguments], capture_output=True, text=True, check=False)


@as_root
def test_the_unit_that_updates_needs_three_capabilities_and_no_more(attack: Attack, tmp_path: Path) -> None:
    """On a board the folder of state is open to its user alone, to root without its capabilities, too."""
    maker = Maker(tmp_path, "mine")
    _, models = board(attack, maker)
    attack.as_attacker(lambda: rollback.remember(attack.state, "default", 7))
    attack.state.chmod(0o700)
    toml = attack.victim.parent / "edgesan.toml"
    toml.write_text(f'state_dir = "{attack.state}"\ntrusted_keys = ["{maker.key.line}"]\n')
    options = (f"--config={toml}", f"--models={models}", "--restart", "false")
    done = as_unit("edgesan-update.service", "install", str(maker.model("b.onnx", version=6)), *options)
    assert "version 6, but version 7 has run here" in done.stderr
    done = as_unit("edgesan-update.service", "install", str(maker.model("b.onnx", version=9)), *options)
    assert "was taken back" in done.stderr
    assert (os.readlink(models / "current"), rollback.remembered(attack.state, "default")) == ("first", 7)


@as_root
def test_the_unit_that_settles_a_trial_at_boot_needs_three_capabilities_and_no_more(
    attack: Attack, tmp_path: Path
) -> None:
    """Likewise."""
    maker = Maker(tmp_path, "mine")
    _, models = board(attack, maker)
    (models / "new").mkdir()
    update.switch(models, "new")
    (models / "trial").write_text(json.dumps({"new": "new", "old": "first", "name": "default", "remembered": 3}))
    attack.as_attacker(lambda: part_link(attack, "profile.d/new.sh"))
    attack.state.chmod(0o700)
    toml = attack.victim.parent / "edgesan.toml"
    toml.write_text(f'state_dir = "{attack.state}"\n')
    before = seen(attack.victim)
    done = as_unit("edgesan-settle.service", "install", "--settle", f"--config={toml}", f"--models={models}")
    assert done.returncode == 0, done.stderr
    assert "was taken back" in done.stdout
    assert (os.readlink(models / "current"), rollback.remembered(attack.state, "default")) == ("first", 3)
    assert seen(attack.victim) == before
    report("a trial is settled at boot, the sanitize unit has planted a link for root", "taken back", 0)


@as_root
def test_root_installs_into_no_folder_of_models_that_another_may_change(attack: Attack, tmp_path: Path) -> None:
    config = Config(state_dir=attack.state)
    before = seen(attack.victim)
    with pytest.raises(ConfigError, match=f"can be changed by user {ATTACKER}, and root works in no such folder"):
        update.settle(config, attack.state)
    assert seen(attack.victim) == before


@as_root
def test_a_clip_in_another_users_folder_is_that_users_and_follows_none_of_his_links(attack: Attack) -> None:
    with disk.new_file(attack.state / "clip.mkv") as file:
        file.write(b"frames")
    made = (attack.state / "clip.mkv").stat()
    assert (made.st_uid, made.st_size) == (ATTACKER, 6)
    attack.as_attacker(lambda: (attack.state / "other.mkv").symlink_to(attack.victim / "new"))
    with pytest.raises(FileExistsError):
        disk.new_file(attack.state / "other.mkv")
    attack.as_attacker(lambda: (attack.state / "way").symlink_to(attack.victim))
    with pytest.raises(OSError, match="denied"):
        disk.new_file(attack.state / "way" / "new.mkv")
    assert not (attack.victim / "new").exists()
    assert not (attack.victim / "new.mkv").exists()
