// cpp/math/half.h on standard input: `half narrow` reads floats and writes for each the bits of float16 and of
// bfloat16; `half widen` reads 16 bits and writes for each the two floats.
#include "math/half.h"

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace math = sigmoid_ce::math;

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "narrow") == 0) {
    for (float v; std::fread(&v, sizeof v, 1, stdin) == 1;) {
      math::Float16 f;
      math::Bfloat16 b;
      math::narrow(v, &f);
      math::narrow(v, &b);
      const std::uint16_t bits[2] = {f.bits, b.bits};
      std::fwrite(bits, sizeof bits, 1, stdout);
    }
    return 0;
  }
  if (argc == 2 && std::strcmp(argv[1], "widen") == 0) {
    for (std::uint16_t v; std::fread(&v, sizeof v, 1, stdin) == 1;) {
      const float floats[2] = {math::widen(math::Float16{v}), math::widen(math::Bfloat16{v})};
      std::fwrite(floats, sizeof floats, 1, stdout);
    }
    return 0;
  }
  std::fprintf(stderr, "usage: half narrow|widen\n");
  return 2;
}
