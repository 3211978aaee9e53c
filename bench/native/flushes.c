/* LD_PRELOAD: counts what a process flushes to the device, and makes each flush FLUSH_DELAY_US microseconds slower.
 *
 * The count is a long at the start of the file FLUSH_COUNT, shared by all processes that have it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static long *count;
static useconds_t delay;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FLUSH_COUNT"), *wait = getenv("FLUSH_DELAY_US");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *page = mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        count = page == MAP_FAILED ? 0 : page;
        close(fd);
    }
    delay = wait ? atoi(wait) : 0;
}

static int flush(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (count) __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    if (delay) usleep(delay);
    return real(fd);
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }
