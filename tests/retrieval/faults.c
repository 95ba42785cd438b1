/* Loaded before libc: from the n-th change of files below a folder on, the disk is full, or the
 * process dies just before that change. Armed by the process itself, after it has forked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long countdown = -1, seen = 0; /* -1: not armed */
static int deadly = 0;
static char below[PATH_MAX];

void fault_arm(const char *folder, long n, int kill_instead)
{
    snprintf(below, sizeof below, "%s/", folder);
    countdown = n, seen = 0, deadly = kill_instead;
}

long fault_seen(void) { return seen; }

static int inside(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}

/* 1 when this change must not happen. Only changes that need space fail for want of it. */
static int fails(int relevant, int needs_space)
{
    if (countdown < 0 || !relevant) return 0;
    if (deadly) {
        if (++seen >= countdown) kill(getpid(), SIGKILL);
        return 0;
    }
    if (!needs_space || ++seen < countdown) return 0;
    errno = ENOSPC;
    return 1;
}

#define NEXT(type, name) \
    static type next; \
    if (!next) next = (type)dlsym(RTLD_NEXT, name)

typedef ssize_t (*write_type)(int, const void *, size_t);
ssize_t write(int fd, const void *data, size_t n)
{
    NEXT(write_type, "write");
    return fails(countdown >= 0 && inside(fd), 1) ? -1 : next(fd, data, n);
}

typedef ssize_t (*pwrite_type)(int, const void *, size_t, off_t);
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    NEXT(pwrite_type, "pwrite");
    return fails(countdown >= 0 && inside(fd), 1) ? -1 : next(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t at)
{
    NEXT(pwrite_type, "pwrite64");
    return fails(countdown >= 0 && inside(fd), 1) ? -1 : next(fd, data, n, at);
}

typedef int (*mkdir_type)(const char *, mode_t);
int mkdir(const char *path, mode_t mode)
{
    NEXT(mkdir_type, "mkdir");
    return fails(countdown >= 0 && !strncmp(path, below, strlen(below)), 1) ? -1 : next(path, mode);
}

typedef int (*sync_type)(int);
int fsync(int fd)
{
    NEXT(sync_type, "fsync");
    return fails(countdown >= 0 && inside(fd), 0) ? -1 : next(fd);
}

int fdatasync(int fd)
{
    NEXT(sync_type, "fdatasync");
    return fails(countdown >= 0 && inside(fd), 0) ? -1 : next(fd);
}

typedef int (*rename_type)(const char *, const char *);
int rename(const char *from, const char *to)
{
    NEXT(rename_type, "rename");
    return fails(countdown >= 0 && !strncmp(to, below, strlen(below)), 0) ? -1 : next(from, to);
}

typedef int (*unlink_type)(const char *);
int unlink(const char *path)
{
    NEXT(unlink_type, "unlink");
    return fails(countdown >= 0 && !strncmp(path, below, strlen(below)), 0) ? -1 : next(path);
}

typedef int (*unlinkat_type)(int, const char *, int);
int unlinkat(int folder, const char *path, int flags)
{
    NEXT(unlinkat_type, "unlinkat");
    return fails(countdown >= 0 && inside(folder), 0) ? -1 : next(folder, path, flags);
}
