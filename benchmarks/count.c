/* A plugin of QEMU 7.2's user mode (Debian 12): counts the guest's instructions, and the bytes between its last cache and its memory.
 *
 * Each time the guest asks for the process group of MARK, which no process is, one line goes to standard error: the instructions and the
 * bytes since the time before. The cache has 16 ways of SETS lines of 64 bytes. The line used longest ago makes room, and is written back
 * where it was written to. Bytes of threads that run at once are counted roughly, instructions exactly.
 *
 * The declarations are those of QEMU's documented interface, version 1.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define LINE 64
#define WAYS 16
#define READ_WRITE 3 /* of qemu_plugin_mem_rw */
#define GETPGID 155 /* on aarch64 */

typedef uint64_t plugin;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
unsigned qemu_plugin_mem_size_shift(uint32_t);
_Bool qemu_plugin_mem_is_store(uint32_t);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin, void (*)(plugin, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int, int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin, void (*)(plugin, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;
static uint64_t instructions, bytes;

static void ran(unsigned cpu, void *many) { __atomic_fetch_add(&instructions, (uintptr_t)many, __ATOMIC_RELAXED); }

static uint64_t cache[SETS][WAYS]; /* twice the line's number, and whether it was written to; the newest first */

static void used(unsigned cpu, uint32_t how, uint64_t address, void *none) {
    uint64_t last = (address + (1u << qemu_plugin_mem_size_shift(how)) - 1) / LINE;
    for (uint64_t line = address / LINE; line <= last; line++) {
        uint64_t *set = cache[line % SETS], written = qemu_plugin_mem_is_store(how);
        int way = 0;
        while (way < WAYS - 1 && set[way] >> 1 != line) way++;
        if (set[way] >> 1 == line) written |= set[way] & 1;
        else bytes += LINE + LINE * (set[way] & 1);
        memmove(set + 1, set, way * sizeof *set);
        set[0] = line << 1 | written;
    }
}

static void translated(plugin id, struct qemu_plugin_tb *block) {
    size_t many = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, ran, 0, (void *)many);
    for (size_t i = 0; i < many; i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), used, 0, READ_WRITE, NULL);
}

static void called(plugin id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                   uint64_t g, uint64_t h) {
    if (number == GETPGID && (uint32_t)a == MARK) {
        dprintf(2, "%" PRIu64 " %" PRIu64 "\n", __atomic_exchange_n(&instructions, 0, __ATOMIC_RELAXED), bytes);
        bytes = 0;
    }
}

EXPORT int qemu_plugin_install(plugin id, const void *info, int argc, char **argv) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
