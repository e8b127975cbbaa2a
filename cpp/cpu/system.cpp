#include "cpu/system.h"

#include <sched.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <thread>

namespace sigmoid_ce {
namespace cpu {
namespace {

// CPUs by the bandwidth limit of one cgroup folder, rounded up; 0: no limit.
int quota_of(const std::string& folder) {
  long long quota = -1, period = -1;
  if (std::FILE* f =
          std::fopen((folder + "/cpu.max").c_str(), "r")) {  // version 2; "max" when unlimited
    if (std::fscanf(f, "%lld %lld", &quota, &period) != 2) quota = -1;
    std::fclose(f);
  } else {
    const char* const names[] = {"/cpu.cfs_quota_us", "/cpu.cfs_period_us"};
    long long* const values[] = {&quota, &period};
    for (int i = 0; i < 2; ++i) {
      if (std::FILE* g = std::fopen((folder + names[i]).c_str(), "r")) {
        if (std::fscanf(g, "%lld", values[i]) != 1) *values[i] = -1;
        std::fclose(g);
      }
    }
  }
  if (quota <= 0 || period <= 0) return 0;
  return static_cast<int>((quota + period - 1) / period);
}

int affinity_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  // More CPUs than cpu_set_t holds.
  return static_cast<int>(std::thread::hardware_concurrency());
}

// From sysfs and not from sysconf, which adds up the caches of all CPUs on some machines.
std::int64_t find_cache_size() {
  std::int64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    char path[64];
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    std::FILE* f = std::fopen(path, "r");
    if (f == nullptr) continue;
    long long size = 0;
    char unit = ' ';
    if (std::fscanf(f, "%lld%c", &size, &unit) >= 1) {
      const std::int64_t bytes = size * (unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : 1);
      if (bytes > largest) largest = bytes;
    }
    std::fclose(f);
  }
  return largest > 0 ? largest : 32 << 20;
}

}  // namespace

int cgroup_cpus(const char* self, const char* mounted) {
  std::FILE* f = std::fopen(self, "r");
  if (f == nullptr) return 0;
  int least = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, f)) {
    // hierarchy:controllers:path
    char* controllers = std::strchr(line, ':');
    char* path = controllers ? std::strchr(controllers + 1, ':') : nullptr;
    if (path == nullptr) continue;
    *path++ = '\0';
    ++controllers;
    path[std::strcspn(path, "\n")] = '\0';
    std::string root;
    if (*controllers == '\0') {
      root = mounted;
    } else if ((std::string(",") + controllers + ",").find(",cpu,") != std::string::npos) {
      root = std::string(mounted) + "/" + controllers;
    } else {
      continue;
    }
    for (std::string p = path;; p.resize(p.rfind('/'))) {
      const int quota = quota_of(root + p);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (p.rfind('/') == std::string::npos) break;
    }
  }
  std::fclose(f);
  return least;
}

int usable_cpus() {
  int n = affinity_cpus();
  try {
    const int quota = cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota > 0 && quota < n) n = quota;
  } catch (const std::bad_alloc&) {
    // Without the quota then.
  }
  return n > 1 ? n : 1;
}

std::int64_t cache_size() {
  static const std::int64_t size = find_cache_size();
  return size;
}

}  // namespace cpu
}  // namespace sigmoid_ce
