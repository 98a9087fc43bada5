/* Loaded with LD_PRELOAD: system calls below FAULT_ROOT fail, or take long, as the plan in the shared file FAULT_PLAN
 * says.
 *
 * See tests/support/disk_faults/__init__.py, which writes the plan. FAULT_ROLE chooses the process: "worker" (one that
 * runs prismcache_service.engine) or "caller" (every other one). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct plan {
    int first, times, error; /* the calls number first, first + 1, ..., first + times - 1 fail; 0: none */
    int calls, failed;
    int delay; /* ms that each call takes longer; those that wait go on when it becomes 0 */
    int waited, on_loop; /* calls that were delayed; those of the thread that runs the event loop */
    char what[480]; /* the first call that failed, or that the event loop's thread made while calls were delayed */
};

static struct plan *plan;
static char root[4096];
static size_t root_length;
static pid_t process; /* a child that was forked and has not yet begun its program is another one */

static int is_worker(void) {
    char line[8192] = "";
    FILE *file = fopen("/proc/self/cmdline", "r");
    size_t length = file ? fread(line, 1, sizeof line - 1, file) : 0;
    if (file)
        fclose(file);
    for (size_t i = 0; i < length; i += strlen(line + i) + 1)
        if (!strcmp(line + i, "prismcache_service.engine"))
            return 1;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULT_PLAN"), *below = getenv("FAULT_ROOT"), *role = getenv("FAULT_ROLE");
    if (!path || !below || !role || is_worker() != !strcmp(role, "worker"))
        return;
    root_length = (size_t)snprintf(root, sizeof root, "%s", below);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    process = getpid();
    if (found != MAP_FAILED)
        plan = found;
}

static void take_long(const char *name, const char *path) {
    struct timespec pause = {0, 10000000};
    int before = errno;
    if (gettid() == process && __atomic_add_fetch(&plan->on_loop, 1, __ATOMIC_SEQ_CST) == 1)
        snprintf(plan->what, sizeof plan->what, "%s %s", name, path + root_length);
    __atomic_add_fetch(&plan->waited, 1, __ATOMIC_SEQ_CST);
    for (int left = plan->delay; left > 0 && plan->delay; left -= 10)
        nanosleep(&pause, NULL);
    errno = before;
}

static int path_fails(const char *name, const char *path) {
    if (!plan || (!plan->first && !plan->delay) || strncmp(path, root, root_length))
        return 0;
    if (plan->delay)
        take_long(name, path);
    if (!plan->first)
        return 0;
    int number = __atomic_add_fetch(&plan->calls, 1, __ATOMIC_SEQ_CST);
    if (number < plan->first || number - plan->first >= plan->times)
        return 0;
    if (__atomic_add_fetch(&plan->failed, 1, __ATOMIC_SEQ_CST) == 1)
        snprintf(plan->what, sizeof plan->what, "%s %s", name, path + root_length);
    errno = plan->error;
    return 1;
}

static int fd_fails(const char *name, int fd) {
    char link[64], path[4096];
    int before = errno;
    if (!plan || (!plan->first && !plan->delay))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0)
        return 0;
    path[length] = 0;
    return path_fails(name, path);
}

#define WRAP(type, name, parameters, arguments, fails)                                                                 \
    type name parameters {                                                                                             \
        static type(*next) parameters;                                                                                 \
        if (!next)                                                                                                     \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                                                                 \
        return fails ? (type)-1 : next arguments;                                                                      \
    }
#define BY_PATH(name, parameters, arguments) WRAP(int, name, parameters, arguments, path_fails(#name, path))
#define BY_FD(type, name, parameters, arguments) WRAP(type, name, parameters, arguments, fd_fails(#name, fd))
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        static int (*next)(const char *, int, ...);                                                                    \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                        \
        va_end(more);                                                                                                  \
        if (!next)                                                                                                     \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                                                                 \
        return path_fails(#name, path) ? -1 : next(path, flags, mode);                                                 \
    }

OPEN(open)
OPEN(open64)
BY_PATH(stat, (const char *path, struct stat *result), (path, result))
BY_PATH(stat64, (const char *path, struct stat64 *result), (path, result))
BY_PATH(lstat, (const char *path, struct stat *result), (path, result))
BY_PATH(lstat64, (const char *path, struct stat64 *result), (path, result))
BY_PATH(statvfs, (const char *path, struct statvfs *result), (path, result))
BY_PATH(statvfs64, (const char *path, struct statvfs64 *result), (path, result))
BY_PATH(rename, (const char *path, const char *target), (path, target))
BY_PATH(unlink, (const char *path), (path))
BY_PATH(rmdir, (const char *path), (path))
BY_PATH(link, (const char *path, const char *target), (path, target))
BY_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(chmod, (const char *path, mode_t mode), (path, mode))
BY_FD(int, fstat, (int fd, struct stat *result), (fd, result))
BY_FD(int, fstat64, (int fd, struct stat64 *result), (fd, result))
BY_FD(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size))
BY_FD(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
BY_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
BY_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
BY_FD(ssize_t, preadv64, (int fd, const struct iovec *data, int count, off64_t at), (fd, data, count, at))
BY_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
BY_FD(int, fsync, (int fd), (fd))

DIR *opendir(const char *path) {
    static DIR *(*next)(const char *);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "opendir");
    return path_fails("opendir", path) ? NULL : next(path);
}

int close(int fd) {
    static int (*next)(int);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "close");
    int fails = fd_fails("close", fd), error = errno;
    int result = next(fd); /* Linux closes the descriptor also when close fails */
    if (fails)
        errno = error;
    return fails ? -1 : result;
}
