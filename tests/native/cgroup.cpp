// Prints how many CPUs the cgroups allow, 0 for no limit: cgroup SELF ROOT, which stand for
// /proc/self/cgroup and /sys/fs/cgroup. tests/test_threads.py makes such files.
#include <cstdio>

#include "cpu/system.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: cgroup SELF ROOT\n");
    return 2;
  }
  std::printf("%d\n", sigmoid_ce::cpu::cgroup_cpus(argv[1], argv[2]));
  return 0;
}
