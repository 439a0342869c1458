"""The system calls that a process may still make, and the filter that holds it to them: seccomp(2).

It is an allow-list: what is not in it fails with EPERM, also calls that later kernels will have. The lists were found
by running the loop under strace(1), on x86_64; what glibc calls in its place on other machines and in other versions
was added.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from edgesan.isolation import kernel
from edgesan.isolation.kernel import libc

# linux/seccomp.h, linux/bpf_common.h; the machines' numbers from linux/audit.h
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SECCOMP_ALLOW, SECCOMP_ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP, JUMP_EQUAL, JUMP_FROM, JUMP_ANY_BIT, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
X32_SYSCALLS: Final = 0x40000000  # a second set of numbers on x86_64
MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # place in NUMBERS, name in a filter


def _table(text: str) -> dict[str, tuple[int | None, int | None]]:
    """Read rows of "name number number"; a dash for none."""
    rows = [row.split() for line in text.splitlines() if "#" not in line for row in line.split(",") if row.strip()]
    return {name: (_number(first), _number(second)) for name, first, second in rows}


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


# The number of each system call on x86_64 and on aarch64 (asm/unistd.h).
NUMBERS: Final = _table("""
    # open files
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    preadv2 327 286, pwritev2 328 287, close 3 57, close_range 436 436, lseek 8 62, dup 32 23, dup2 33 -, dup3 292 24,
    pipe 22 -, pipe2 293 59, fcntl 72 25, flock 73 32, ioctl 16 29, fadvise64 221 223, readahead 187 213,
    ftruncate 77 46, fallocate 285 47, memfd_create 319 279, fsync 74 82, fdatasync 75 83, sync_file_range 277 84,
    sendfile 40 71, splice 275 76,
    # names of files
    open 2 -, openat 257 56, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -,
    faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61,
    getcwd 79 17, chdir 80 49, fchdir 81 50, statfs 137 43, fstatfs 138 44, rename 82 -, renameat 264 38,
    renameat2 316 276, unlink 87 -, unlinkat 263 35, mkdir 83 -, mkdirat 258 34, rmdir 84 -, umask 95 166,
    truncate 76 45, fchmodat 268 53, fchownat 260 54, linkat 265 37, symlinkat 266 36, utimensat 280 88,
    setxattr 188 5,
    # memory
    mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214, msync 26 227,
    mincore 27 232, mlock 149 228, mlock2 325 284, munlock 150 229, mlockall 151 230, munlockall 152 231,
    get_mempolicy 239 236,
    # waiting
    poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, signalfd 282 -,
    signalfd4 289 74, timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87, rt_sigaction 13 134,
    rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
    sigaltstack 131 132, pause 34 -, restart_syscall 219 128, kill 62 129, tgkill 234 131, nanosleep 35 101,
    clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
    times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -, timer_create 222 107, timer_settime 223 110,
    timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111,
    # threads, and the process itself
    clone 56 220, clone3 435 435, futex 202 98, futex_waitv 449 449, futex_wake 454 454, futex_wait 455 455,
    futex_requeue 456 456, set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, membarrier 324 283,
    gettid 186 178, exit 60 93, exit_group 231 94, arch_prctl 158 -, prctl 157 167, sched_yield 24 124,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, sched_getattr 315 275,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126, getcpu 309 168, getpid 39 172, getppid 110 173,
    getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150,
    getgroups 115 158, getpgrp 111 -, getpgid 121 155, getsid 124 156, getpriority 140 141, capget 125 90,
    getrlimit 97 163, prlimit64 302 261, getrusage 98 165, sysinfo 99 179, uname 63 160, getrandom 318 278,
    # sockets
    socket 41 198, socketpair 53 199, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
    recvfrom 45 207, recvmsg 47 212, recvmmsg 299 243, sendto 44 206, sendmsg 46 211, sendmmsg 307 269,
    shutdown 48 210, getsockopt 55 209, setsockopt 54 208, getsockname 51 204, getpeername 52 205,
    # other processes, namespaces and the kernel: named here to be tried
    ptrace 101 117, process_vm_readv 310 270, pidfd_open 434 434, execve 59 221, unshare 272 97, setns 308 268,
    mount 165 40, chroot 161 51, bpf 321 280, userfaultfd 323 282, perf_event_open 298 241, add_key 248 217,
    request_key 249 218, keyctl 250 219, shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180,
    io_uring_setup 425 425, fanotify_init 300 262, open_by_handle_at 304 265, kexec_load 246 104, init_module 175 105,
    personality 135 92,
""")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What both processes call. On purpose, it has nothing that names another process, or changes more than open files.
BOTH: Final = _names("""
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek dup dup2 dup3
    pipe pipe2 fcntl flock ioctl fadvise64 readahead ftruncate fallocate memfd_create
    open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents
    getdents64 getcwd chdir fchdir statfs fstatfs
    mmap munmap mprotect mremap madvise brk msync mincore mlock mlock2 munlock mlockall munlockall get_mempolicy
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
    signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause restart_syscall kill tgkill nanosleep clock_nanosleep
    clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm timer_create timer_settime
    timer_gettime timer_getoverrun timer_delete
    clone futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list set_tid_address rseq membarrier gettid
    exit exit_group arch_prctl prctl sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_getattr
    sched_get_priority_max sched_get_priority_min getcpu getpid getppid getuid geteuid getgid getegid getresuid
    getresgid getgroups getpgrp getpgid getsid getpriority capget getrlimit prlimit64 getrusage sysinfo uname getrandom
""")
WRITING: Final = _names("""
    rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir umask fsync fdatasync sync_file_range
""")  # new files in some folder
CALLING: Final = _names("""
    socket connect bind sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg shutdown getsockopt setsockopt getsockname
    getpeername
""")  # an outlet that reaches out
FETCHING: Final = _names("""
    socket connect sendto sendmsg recvfrom recvmsg shutdown getsockopt setsockopt getsockname getpeername
""")  # a network camera, by TCP
SERVING: Final = _names("""
    listen accept accept4 recvfrom recvmsg sendto sendmsg shutdown getsockopt setsockopt getsockname getpeername
    sendfile fsync fdatasync sync_file_range
""")  # by sockets and files that are open already; asyncio says listen to those that do

AF_INET, AF_INET6 = 2, 10
SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC = 1, 0o4000, 0o2000000
STREAMS: Final = tuple(SOCK_STREAM | a | b for a in (0, SOCK_NONBLOCK) for b in (0, SOCK_CLOEXEC))
CLONE_THREAD: Final = 0x00010000
NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
IPPROTO_TCP, IPPROTO_UDP = 6, 17
MSG_FASTOPEN: Final = 0x20000000  # connects
# asm-generic/ioctls.h: type into a terminal, its selection, its line discipline; a signal's owner
TIOCSTI, TIOCLINUX, TIOCSETD, FIOSETOWN, SIOCSPGRP = 0x5412, 0x541C, 0x5423, 0x8901, 0x8902
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15  # asm-generic/fcntl.h
# linux/prctl.h: the signal of a parent's end, names of threads and of memory, timers, vector lengths; and reading
PRCTLS: Final = (1, 2, 3, 15, 16, 21, 23, 29, 30, 39, 51, 64, 0x53564D41)
LEVELS: Final = (0, 1, 6, 17, 41)  # of options: IP, any socket, TCP, UDP, IPv6
# SO_ATTACH_FILTER, TCP_ULP, SO_ATTACH_BPF and what goes with them: programs in the kernel
PROGRAMS: Final = (26, 31, 50, 51, 52)

Step = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
REFUSE: Final = (RETURN, 0, 0, SECCOMP_ERRNO | errno.EPERM)
ALLOW: Final = (RETURN, 0, 0, SECCOMP_ALLOW)


def number(name: str) -> int:
    """Return the number of a system call on this machine; -1, which is none, where it has no such call."""
    found = NUMBERS[name][MACHINES.get(platform.machine(), (0, 0))[0]]
    return -1 if found is None else found


# A check is steps that go on where an argument is right, and refuse where it is not. struct seccomp_data: arguments
# from byte 16, each as 64 bits; the kernel looks at the lower half of an int.


def only(argument: int, *values: int) -> list[Step]:
    """Check that the argument is one of these."""
    tests: list[Step] = [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(LOAD, 0, 0, 16 + 8 * argument), *tests, REFUSE]


def never(argument: int, *values: int) -> list[Step]:
    """Check that the argument is none of these."""
    tests: list[Step] = [(JUMP_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(LOAD, 0, 0, 16 + 8 * argument), *tests, (JUMP, 0, 0, 1), REFUSE]


def bits(argument: int, needed: int, forbidden: int) -> list[Step]:
    """Check that the argument has the one bit that is needed (0: none is), and no forbidden one."""
    need: list[Step] = [(JUMP_ANY_BIT, 1, 0, needed), REFUSE] if needed else []
    return [(LOAD, 0, 0, 16 + 8 * argument), *need, (JUMP_ANY_BIT, 0, 1, forbidden), REFUSE]


def null(argument: int) -> list[Step]:
    """Check that the argument is a null pointer: both halves."""
    return [*only(argument, 0), (LOAD, 0, 0, 20 + 8 * argument), (JUMP_EQUAL, 1, 0, 0), REFUSE]


def checks(own: int) -> dict[str, list[Step]]:
    """Return the checks of the arguments of allowed calls, in the process of this number."""
    return {
        "kill": only(0, own),
        "tgkill": only(0, own),
        "prlimit64": only(0, 0, own),
        "clone": bits(0, CLONE_THREAD, NEW_NAMESPACES),
        "ioctl": never(1, TIOCSTI, TIOCLINUX, TIOCSETD, FIOSETOWN, SIOCSPGRP),
        "fcntl": never(1, F_SETOWN, F_SETSIG, F_SETOWN_EX),
        "prctl": only(0, *PRCTLS),
        "setsockopt": [*only(1, *LEVELS), *never(2, *PROGRAMS)],
    }


EMPTYING: Final = {"open": bits(1, 0, os.O_TRUNC), "openat": bits(2, 0, os.O_TRUNC)}
"""Checks that no file is emptied by opening it, which takes no right to write to it."""


def serving_checks(own: int) -> dict[str, list[Step]]:
    """Return `checks`, and that nothing is sent to an address: only to a client, which has connected by itself."""
    return checks(own) | {"sendto": null(4), "sendmsg": bits(2, 0, MSG_FASTOPEN)}


def calling_checks(own: int) -> dict[str, list[Step]]:
    """Return `checks`, and that sockets are of TCP and UDP only, and connect by connect(2) only.

    Landlock holds no other protocol to its ports, such as Multipath TCP, nor what TCP sends before it is connected.
    """
    sockets = [*only(0, AF_INET, AF_INET6), *only(2, 0, IPPROTO_TCP, IPPROTO_UDP)]
    flags = {name: bits(at, 0, MSG_FASTOPEN) for name, at in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))}
    return checks(own) | {"socket": sockets} | flags


def fetching_checks(own: int) -> dict[str, list[Step]]:
    """Return `serving_checks`, and that new sockets are of TCP only."""
    sockets = [*only(0, AF_INET, AF_INET6), *only(1, *STREAMS), *only(2, 0, IPPROTO_TCP)]
    return serving_checks(own) | {"socket": sockets}


PAIRS: Final = {"socketpair": only(1, *(SOCK_STREAM | more for more in (0, SOCK_CLOEXEC, SOCK_NONBLOCK)))}
"""Checks that pairs of sockets are streams: those send to nobody else, whatever address they are given (EISCONN)."""


def allow(names: Iterable[str], arguments: Mapping[str, list[Step]]) -> bool:
    """Let all system calls but these fail with EPERM from now on; return whether that worked.

    clone3 is not there (ENOSYS): its flags lie in memory, where no filter sees them, and glibc then calls clone.
    """
    steps: list[Step] = [(JUMP_EQUAL, 0, 1, number("clone3")), (RETURN, 0, 0, SECCOMP_ERRNO | errno.ENOSYS)]
    for name in sorted(names):
        if (code := number(name)) >= 0:
            block = [*arguments.get(name, []), ALLOW]
            steps += [(JUMP_EQUAL, 0, len(block), code), *block]
    return install([*steps, REFUSE])


def deny(*numbers: int) -> bool:
    """Let these system calls, and all of a foreign kind, fail with EPERM from now on; return whether that worked."""
    return install([step for code in numbers for step in ((JUMP_EQUAL, 0, 1, code & 0xFFFFFFFF), REFUSE)] + [ALLOW])


def install(steps: list[Step]) -> bool:
    """Hold this thread, and those that it starts, to a filter; return whether that worked.

    The steps begin with the call's number loaded. Calls of another kind (32-bit, x32) are refused before. Needs
    no_new_privs, or root.
    """
    if platform.machine() not in MACHINES or sys.maxsize < 2**32:
        return False
    # struct seccomp_data: the system call's number at 0, the machine at 4
    machine = MACHINES[platform.machine()][1]
    start: list[Step] = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, machine), REFUSE]
    start += [(LOAD, 0, 0, 0), (JUMP_FROM, 0, 1, X32_SYSCALLS), REFUSE]
    steps = start + steps
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0)
