// Prints what the library finds out about its process, one `name value` per line, and holds the functions
// for settings to what cpu.h says of them. test_system.py runs it where the machine gives wrong answers.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "cpu/system.h"
#include "sigmoid_ce/cpu.h"

namespace {

namespace cpu = sigmoid_ce::cpu;

int failures = 0;

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "settings: %s\n", what);
  ++failures;
}

}  // namespace

int main() {
  std::printf("isa %s\n", cpu::isa());
  std::printf("threads %d\n", cpu::num_threads());
  std::printf("cpus %d\n", cpu::usable_cpus());
  std::printf("cache %" PRId64 "\n", cpu::cache_size());

  require(cpu::isa_count() >= 1 && cpu::isa_count() <= cpu::compiled_isa_count(), "isa_count");
  require(cpu::isa_name(-1) == nullptr, "isa_name(-1)");
  require(cpu::isa_name(cpu::isa_count()) == nullptr, "isa_name of the count");
  require(cpu::compiled_isa_name(-1) == nullptr, "compiled_isa_name(-1)");
  require(cpu::compiled_isa_name(cpu::compiled_isa_count()) == nullptr, "compiled_isa_name");
  for (int i = 0; i < cpu::isa_count(); ++i) {
    require(cpu::set_isa(cpu::isa_name(i)).ok(), "set_isa of an instruction set that is there");
    require(std::strcmp(cpu::isa(), cpu::isa_name(i)) == 0, "isa after set_isa");
  }
  const sigmoid_ce::Status status = cpu::set_isa("pentium");
  require(status.code == sigmoid_ce::Code::kUnsupported, "code of an unknown instruction set");
  require(std::strcmp(status.argument, "isa") == 0, "argument of an unknown instruction set");
  for (const int n : {-1, 65537}) {
    require(std::strcmp(cpu::set_num_threads(n).argument, "n") == 0, "set_num_threads");
  }
  for (const int n : {1, 65536}) {
    require(cpu::set_num_threads(n).ok() && cpu::num_threads() == n, "num_threads");
  }
  return failures == 0 ? 0 : 1;
}
