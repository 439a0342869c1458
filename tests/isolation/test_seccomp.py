"""The filter of system calls, run in a simulator of its program, for each machine."""

import errno
import os
import struct

import pytest

from edgesan.isolation import seccomp


def judged(steps: list[seccomp.Step], number: int, arguments: tuple[int, ...]) -> int:
    """Run a filter on a call, as bpf(4) does; only the instructions in use. The number is loaded."""
    data, loaded, at = struct.pack("=IIQ6Q", number, 0, 0, *arguments, *[0] * (6 - len(arguments))), number, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return operand
        if code == seccomp.LOAD:
            (loaded,) = struct.unpack_from("=I", data, operand)
        elif code == seccomp.JUMP:
            at += operand
        else:
            tests = {seccomp.JUMP_EQUAL: loaded == operand, seccomp.JUMP_ANY_BIT: loaded & operand != 0}
            at += if_true if tests[code] else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_pass_what_is_listed_on_each_machine(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[list[seccomp.Step]] = []
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(seccomp, "install", programs.append)
    names = seccomp.BOTH | seccomp.SERVING
    checks = seccomp.serving_checks(77) | seccomp.EMPTYING
    seccomp.allow(names, checks)
    steps, refused = programs[0], seccomp.SECCOMP_ERRNO | errno.EPERM

    def said(name: str, *arguments: int) -> bool:
        result = judged(steps, seccomp.number(name), arguments)
        assert result in {refused, seccomp.SECCOMP_ALLOW}
        return result == seccomp.SECCOMP_ALLOW

    listed = {seccomp.number(name): name for name in names if seccomp.number(name) >= 0}
    for number in range(1000):
        if listed.get(number) not in checks and number != seccomp.number("clone3"):
            assert (judged(steps, number, ()) == seccomp.SECCOMP_ALLOW) is (number in listed)
    assert judged(steps, seccomp.number("clone3"), ()) == seccomp.SECCOMP_ERRNO | errno.ENOSYS
    thread = 0x3D0F00  # of glibc's pthread_create
    assert said("clone", thread)
    assert not said("clone", thread & ~0x10000)
    assert not any(said("clone", thread | 1 << bit) for bit in (17, *range(25, 31)))
    assert said("kill", 77, 9)
    assert not any(said(name, pid, 9) for name in ("kill", "tgkill") for pid in (0, 1, 76, 2**32 - 1, 2**32 - 77))
    assert said("ioctl", 3, 0x80685600)
    assert not any(said("ioctl", 3, high | request) for high in (0, 1 << 32) for request in (0x5412, 0x541C, 0x5423))
    assert said("fcntl", 3, 1031)
    assert not any(said("fcntl", 3, command) for command in (8, 10, 15))
    assert said("prctl", 15)
    assert not any(said("prctl", option) for option in (4, 22, 35, 36, 38))
    assert said("sendto", 3, 0, 9, 0, 0, 0)
    assert not any(said("sendto", 3, 0, 9, 0, address, 16) for address in (1, 1 << 32, 1 << 47))
    assert said("sendmsg", 3, 0, 0x4000)
    assert not said("sendmsg", 3, 0, 0x20000000)
    assert said("setsockopt", 3, 6, 1)
    assert not any(said("setsockopt", 3, 1, option) for option in (26, 50, 51, 52))
    assert not said("setsockopt", 3, 263, 1)
    assert said("prlimit64", 0)
    assert not said("prlimit64", 78)
    assert said("openat", -100 & 0xFFFFFFFF, 0, 0)
    assert not said("openat", -100 & 0xFFFFFFFF, 0, os.O_TRUNC)


def test_every_call_has_its_number() -> None:
    for names in (seccomp.BOTH, seccomp.WRITING, seccomp.CALLING, seccomp.SERVING):
        assert names <= seccomp.NUMBERS.keys()
    for machine in (0, 1):
        numbers = [pair[machine] for pair in seccomp.NUMBERS.values() if pair[machine] is not None]
        assert len(numbers) == len(set(numbers))
    forbidden = {"socketpair", "ptrace", "unshare", "setns", "bpf", "userfaultfd", "execve", "io_uring_setup", "clone3"}
    assert not forbidden & (seccomp.BOTH | seccomp.WRITING | seccomp.CALLING | seccomp.SERVING)
    assert not seccomp.SERVING & {"socket", "connect", "bind", "sendmmsg"}
