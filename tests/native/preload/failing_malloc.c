// A preloaded library (LD_PRELOAD, glibc) whose allocations and thread starts fail on request.
//
// While armed, the allocations `first` .. `first + count - 1` of the process return a null pointer and
// ENOMEM; operator new goes through malloc, so it throws then. Threads likewise, by themselves: EAGAIN.
// Every thread counts: the calls under test run alone in their process, and a worker thread that
// allocates is to be found too.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

// What malloc and the others are in glibc: found without dlsym, which may allocate itself.
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

struct counter {
  atomic_int armed;
  atomic_long first, last, seen;
};

static struct counter memory, threads;

static void arm(struct counter* c, long first, long count) {
  atomic_store(&c->first, first);
  atomic_store(&c->last, first + count - 1);
  atomic_store(&c->seen, 0);
  atomic_store(&c->armed, 1);
}

static int fails(struct counter* c) {
  if (!atomic_load(&c->armed)) return 0;
  const long n = atomic_fetch_add(&c->seen, 1) + 1;
  return n >= atomic_load(&c->first) && n <= atomic_load(&c->last);
}

// How many were asked for since.
static long disarm(struct counter* c) {
  atomic_store(&c->armed, 0);
  return atomic_load(&c->seen);
}

void arm_memory(long first, long count) { arm(&memory, first, count); }
long disarm_memory(void) { return disarm(&memory); }
void arm_threads(long first, long count) { arm(&threads, first, count); }
long disarm_threads(void) { return disarm(&threads); }

static int no_memory(void) {
  if (!fails(&memory)) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return no_memory() ? NULL : __libc_malloc(size); }

void* calloc(size_t n, size_t size) { return no_memory() ? NULL : __libc_calloc(n, size); }

void* realloc(void* old, size_t size) { return no_memory() ? NULL : __libc_realloc(old, size); }

void* memalign(size_t alignment, size_t size) {
  return no_memory() ? NULL : __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** result, size_t alignment, size_t size) {
  const int before = errno;  // which this function leaves alone
  void* p = memalign(alignment, size);
  errno = before;
  if (p == NULL) return ENOMEM;
  *result = p;
  return 0;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = NULL;
  if (fails(&threads)) return EAGAIN;
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, start, argument);
}
