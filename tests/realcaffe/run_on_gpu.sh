#!/bin/sh
# BVLC Caffe 1.0 with our layer in its tree, on the GPU of this machine: Caffe's own tests of the
# layer and ours, then the times of the built-in layer and of ours, in ms, by `caffe time`, on
# constant data that is on the GPU. Exit status 0 where all tests pass and all is timed.
#
#   sh run.sh        on the GPU
#   sh run.sh cpu    what of it needs none: the tests on the CPU, and times of a small net there
#
# SIGMOID_CE_CUDA_LIBRARIES=DIR:DIR names folders of cudart, cuBLAS and cuRAND; those of Python's
# packages and /usr/local/cuda are found. tests/realcaffe/cuda.py makes the folder of this script.
here=$(cd "$(dirname "$0")" && pwd)
wheels=$(python3 - <<'END' 2>/dev/null
import glob, os, site, sys
found = [glob.glob(os.path.join(p, "nvidia/*/lib")) for p in sys.path + site.getsitepackages() if p]
print(":".join(dict.fromkeys(sum(found, []))))
END
)
others="$SIGMOID_CE_CUDA_LIBRARIES:$wheels:/usr/local/cuda/lib64:$LD_LIBRARY_PATH"
others=$(printf %s "$others" | sed 's/::*/:/g; s/^://; s/:$//')
tests='*/2.*:*/3.*'
options='-gpu 0 -iterations 50'
nets='*'
if [ "$1" = cpu ]; then
  tests='*/0.*:*/1.*'
  options='-iterations 2'
  nets=1048576
fi
export GLOG_logtostderr=1 GLOG_minloglevel=1
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
failed=0

# run_tests NAME LEAST: the tests of a program, at least so many.
run_tests() {
  LD_LIBRARY_PATH="$here/lib:$others" "$here/bin/$1" --gtest_filter="$tests" > "$log" 2>&1
  status=$?
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log")
  if [ $status -ne 0 ] || [ "${passed:-0}" -lt "$2" ]; then
    tail -n 40 "$log"
    failed=1
  fi
  echo "$1: ${passed:-0} tests passed, exit status $status"
}

# measure NAME LIBRARIES: forward and backward of the layer alone.
measure() {
  for net in "$here"/nets/$nets.prototxt; do
    size=$(basename "$net" .prototxt)
    GLOG_minloglevel=0 LD_LIBRARY_PATH="$2:$here/lib:$others" \
      "$here/bin/caffe" time -model "$net" $options > "$log" 2>&1
    times=$(sed -n "s/.* loss\tforward: \([0-9.e+-]*\) ms.*/forward \1/p
                    s/.* loss\tbackward: \([0-9.e+-]*\) ms.*/backward \1/p" "$log" | tr '\n' ' ')
    case $times in
      *forward*backward*) echo "time $1 $size $times" ;;
      *) tail -n 20 "$log"; echo "time $1 $size: failed"; failed=1 ;;
    esac
  done
}

run_tests test_published 6
run_tests test_own 40
measure built-in "$here/lib/stock"
measure ours "$here/lib"
exit $failed
