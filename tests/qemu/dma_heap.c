// Stands in for /dev/dma_heap where the kernel has none: libcamera's virtual pipeline and picamera2 allocate their
// buffers from it. A buffer is a memfd here, which both can map; there is no hardware whose cache would need a sync.
//     cc -shared -fPIC -o dma_heap.so dma_heap.c -ldl; LD_PRELOAD=$PWD/dma_heap.so ...
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_heap(const char *path) { return path && strncmp(path, "/dev/dma_heap/", 14) == 0; }

static int opened(int directory, const char *path, int flags, mode_t mode)
{
	if (is_heap(path))
		return memfd_create("dma_heap", MFD_CLOEXEC);  // nothing but a handle for the ioctl below
	return syscall(SYS_openat, directory, path, flags, mode);
}

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define OPEN(NAME, DIRECTORY, ...)                                 \
	int NAME(__VA_ARGS__ const char *path, int flags, ...)     \
	{                                                          \
		va_list rest;                                      \
		va_start(rest, flags);                             \
		mode_t mode = mode_of(flags, rest);                \
		va_end(rest);                                      \
		return opened(DIRECTORY, path, flags, mode);       \
	}
#define AND ,
OPEN(open, AT_FDCWD, )
OPEN(open64, AT_FDCWD, )
OPEN(openat, directory, int directory AND)
OPEN(openat64, directory, int directory AND)

int ioctl(int fd, unsigned long request, ...)
{
	va_list rest;
	va_start(rest, request);
	void *argument = va_arg(rest, void *);
	va_end(rest);
	if (request == DMA_HEAP_IOCTL_ALLOC) {
		struct dma_heap_allocation_data *data = argument;
		int buffer = memfd_create("dma_buf", MFD_CLOEXEC);
		if (buffer < 0 || ftruncate(buffer, data->len))
			return -1;
		data->fd = buffer;
		return 0;
	}
	if (request == DMA_BUF_IOCTL_SYNC || request == DMA_BUF_SET_NAME_A || request == DMA_BUF_SET_NAME_B)
		return 0;
	return syscall(SYS_ioctl, fd, request, argument);
}
