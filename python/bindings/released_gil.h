// Other Python threads run while an object of this class lives.
#ifndef SIGMOID_CE_BINDINGS_RELEASED_GIL_H_
#define SIGMOID_CE_BINDINGS_RELEASED_GIL_H_

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace sigmoid_ce {
namespace bindings {

// Like pybind11's gil_scoped_release, but for what happens to a daemon thread that comes back from a kernel after
// the interpreter has begun to end. Until Python 3.13 the interpreter calls pthread_exit there, which unwinds the
// stack like an exception: it must not leave this destructor (the process would abort), nor destroy the Python
// objects of the call on a thread that may not touch them. The thread stops here instead, as it does by itself
// from Python 3.14 on, and ends with the process.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_RELEASED_GIL_H_
