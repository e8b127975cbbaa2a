// What the operating system says of the machine.
#ifndef SIGMOID_CE_CPU_SYSTEM_H_
#define SIGMOID_CE_CPU_SYSTEM_H_

#include <cstdint>

namespace sigmoid_ce {
namespace cpu {

// The CPUs that this process may use: affinity mask and cgroup quota, at least 1.
int usable_cpus();

// CPUs by the bandwidth limits of a process's cgroups (version 1 and 2), rounded up: the smallest on the way
// from its own cgroup up to the root. 0: no limit. `self` lists the cgroups as /proc/self/cgroup does, and
// `root` is where they are mounted, as /sys/fs/cgroup is.
int cgroup_cpus(const char* self, const char* root);

// Bytes of the last-level cache of one CPU; a common size where it is not known.
std::int64_t cache_size();

}  // namespace cpu
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_CPU_SYSTEM_H_
