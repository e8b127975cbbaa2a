// What every function of the C++ API returns: a code, the argument at fault and one sentence.
#ifndef SIGMOID_CE_STATUS_H_
#define SIGMOID_CE_STATUS_H_

namespace sigmoid_ce {

enum class Code {
  kOk = 0,
  kInvalidArgument,  // an argument has a wrong value; `argument` names it
  kUnsupported,      // the machine lacks what was asked for (an instruction set, say)
  kOutOfMemory,      // the staging buffers could not be allocated; nothing was computed
};

// No allocation and no exception: both strings have static storage.
struct Status {
  Code code;
  const char* argument;  // name of the argument at fault, "" when there is none
  const char* message;   // what was expected, "" when ok

  Status() : code(Code::kOk), argument(""), message("") {}
  Status(Code c, const char* arg, const char* text) : code(c), argument(arg), message(text) {}
  bool ok() const { return code == Code::kOk; }
};

}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_STATUS_H_
