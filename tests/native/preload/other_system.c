// A preloaded library (LD_PRELOAD, glibc) that stands for another machine. In the environment:
//
//   OTHER_SYSTEM_ROOT      files under /sys and /proc are looked for under this folder instead
//   OTHER_SYSTEM_AFFINITY  if set, the kernel has no affinity mask to give: sched_getaffinity fails
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef FILE* (*open_function)(const char*, const char*);
typedef int (*affinity_function)(pid_t, size_t, cpu_set_t*);

FILE* fopen(const char* path, const char* mode) {
  open_function next;
  *(void**)&next = dlsym(RTLD_NEXT, "fopen");
  const char* root = getenv("OTHER_SYSTEM_ROOT");
  char other[4096];
  if (root != NULL && (strncmp(path, "/sys/", 5) == 0 || strncmp(path, "/proc/", 6) == 0)) {
    snprintf(other, sizeof other, "%s%s", root, path);
    path = other;
  }
  return next(path, mode);
}

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t* set) {
  if (getenv("OTHER_SYSTEM_AFFINITY") != NULL) {
    errno = EINVAL;
    return -1;
  }
  affinity_function next;
  *(void**)&next = dlsym(RTLD_NEXT, "sched_getaffinity");
  return next(pid, size, set);
}
