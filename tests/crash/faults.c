/* Faults at the system calls that change a store: preloaded, so that SQLite's calls are met like our own.
 *
 * Every call that changes something below the armed root counts. At the chosen one the process dies before or
 * after it, the call fails, a write is cut short, or the file system loses its power. All calls are traced, so
 * that the steps are found by running and not by reading the code.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, DIE_BEFORE, DIE_AFTER, FAIL, FAIL_ON, SHORTEN, CUT_POWER };

#define SHUTDOWN 0x8004587DU /* XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN */

static char root[PATH_MAX];
static int kind = -1, error_number, trace_fd = -1, root_fd = -1;
static long chosen;
static volatile long calls;

/* Start counting. `at`: the first call is 1. */
void faults_arm(const char *below, int what, long at, int error, int trace_to) {
    snprintf(root, sizeof root, "%s", below);
    root_fd = syscall(SYS_openat, AT_FDCWD, below, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    error_number = error;
    trace_fd = trace_to;
    chosen = at;
    calls = 0;
    kind = what;
}

static int inside(const char *path) {
    size_t length = strlen(root);
    return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int path_of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return 1;
}

static int path_at(int folder, const char *name, char *out) {
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return 1;
    }
    char parent[PATH_MAX];
    if (folder == AT_FDCWD ? getcwd(parent, sizeof parent) == NULL : !path_of_fd(folder, parent)) return 0;
    return snprintf(out, PATH_MAX, "%.2000s/%.2000s", parent, name) > 0;
}

static void die(void) { syscall(SYS_exit_group, 77); }

/* Counts a call; returns whether the fault hits it. A death before it, or a power cut, happens in here. */
static int hit(const char *call, const char *path) {
    if (kind < 0 || !inside(path)) return 0;
    long number = __sync_add_and_fetch(&calls, 1);
    if (trace_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(root));
        syscall(SYS_write, trace_fd, line, (size_t)length);
    }
    if (number != chosen && !(kind == FAIL_ON && number > chosen)) return 0;
    if (kind == DIE_BEFORE) die();
    if (kind == CUT_POWER) {
        uint32_t without_flush = 2;
        if (syscall(SYS_ioctl, root_fd, SHUTDOWN, &without_flush) != 0) syscall(SYS_exit_group, 78);
        die();
    }
    return kind != COUNT;
}

static int hit_fd(const char *call, int fd) {
    char path[PATH_MAX];
    return kind >= 0 && path_of_fd(fd, path) && hit(call, path);
}

static int hit_at(const char *call, int folder, const char *name) {
    char path[PATH_MAX];
    return kind >= 0 && path_at(folder, name, path) && hit(call, path);
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

/* Where the fault hits: fail, or do it and die. `SHORTEN` is for writes alone. */
#define FINISH(was_hit, type, expression)                                                      \
    do {                                                                                       \
        if ((was_hit) && (kind == FAIL || kind == FAIL_ON)) {                                  \
            errno = error_number;                                                              \
            return -1;                                                                         \
        }                                                                                      \
        type result = (expression);                                                            \
        if ((was_hit) && kind == DIE_AFTER) die();                                             \
        return result;                                                                         \
    } while (0)

static size_t shortened(int was_hit, size_t size) { return was_hit && kind == SHORTEN && size > 1 ? size / 2 : size; }

ssize_t write(int fd, const void *data, size_t size) {
    int was_hit = hit_fd("write", fd);
    FINISH(was_hit, ssize_t, REAL(ssize_t, write, int, const void *, size_t)(fd, data, shortened(was_hit, size)));
}

#define PWRITE(name, offset_type)                                                              \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {                  \
        int was_hit = hit_fd("write", fd);                                                     \
        FINISH(was_hit, ssize_t,                                                               \
               REAL(ssize_t, name, int, const void *, size_t, offset_type)(                    \
                   fd, data, shortened(was_hit, size), offset));                               \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FD(name)                                                                            \
    int name(int fd) {                                                                         \
        int was_hit = hit_fd(#name, fd);                                                       \
        FINISH(was_hit, int, REAL(int, name, int)(fd));                                        \
    }
ON_FD(fsync)
ON_FD(fdatasync)
ON_FD(syncfs)

#define TRUNCATE(name, offset_type)                                                            \
    int name(int fd, offset_type size) {                                                       \
        int was_hit = hit_fd("ftruncate", fd);                                                 \
        FINISH(was_hit, int, REAL(int, name, int, offset_type)(fd, size));                     \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ALLOCATE(name, offset_type)                                                            \
    int name(int fd, offset_type offset, offset_type size) {                                   \
        int was_hit = hit_fd("posix_fallocate", fd);                                           \
        if (was_hit && (kind == FAIL || kind == FAIL_ON)) return error_number;                 \
        int result = REAL(int, name, int, offset_type, offset_type)(fd, offset, size);         \
        if (was_hit && kind == DIE_AFTER) die();                                               \
        return result;                                                                         \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

#define ON_PATH(name)                                                                          \
    int name(const char *path) {                                                               \
        int was_hit = hit_at(#name, AT_FDCWD, path);                                           \
        FINISH(was_hit, int, REAL(int, name, const char *)(path));                             \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

int unlinkat(int folder, const char *path, int flags) {
    int was_hit = hit_at("unlink", folder, path);
    FINISH(was_hit, int, REAL(int, unlinkat, int, const char *, int)(folder, path, flags));
}

int mkdir(const char *path, mode_t mode) {
    int was_hit = hit_at("mkdir", AT_FDCWD, path);
    FINISH(was_hit, int, REAL(int, mkdir, const char *, mode_t)(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    int was_hit = hit_at("mkdir", folder, path);
    FINISH(was_hit, int, REAL(int, mkdirat, int, const char *, mode_t)(folder, path, mode));
}

#define TWO_PATHS(name)                                                                        \
    int name(const char *from, const char *to) {                                               \
        int was_hit = hit_at(#name, AT_FDCWD, to);                                             \
        FINISH(was_hit, int, REAL(int, name, const char *, const char *)(from, to));           \
    }
TWO_PATHS(rename)
TWO_PATHS(link)

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    int was_hit = hit_at("rename", to_folder, to);
    FINISH(was_hit, int, REAL(int, renameat, int, const char *, int, const char *)(from_folder, from, to_folder, to));
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    int was_hit = hit_at("link", to_folder, to);
    FINISH(was_hit, int,
           REAL(int, linkat, int, const char *, int, const char *, int)(from_folder, from, to_folder, to, flags));
}

#define OPEN(name)                                                                             \
    int name(const char *path, int flags, ...) {                                               \
        va_list arguments;                                                                     \
        va_start(arguments, flags);                                                            \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;         \
        va_end(arguments);                                                                     \
        int was_hit = flags & (O_CREAT | O_TRUNC) ? hit_at("create", AT_FDCWD, path) : 0;      \
        FINISH(was_hit, int, REAL(int, name, const char *, int, ...)(path, flags, mode));      \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                           \
    int name(int folder, const char *path, int flags, ...) {                                   \
        va_list arguments;                                                                     \
        va_start(arguments, flags);                                                            \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;         \
        va_end(arguments);                                                                     \
        int was_hit = flags & (O_CREAT | O_TRUNC) ? hit_at("create", folder, path) : 0;        \
        FINISH(was_hit, int, REAL(int, name, int, const char *, int, ...)(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)
