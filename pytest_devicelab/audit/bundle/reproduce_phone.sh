#!/bin/sh
# Show one device's output on a phone: sh reproduce_phone.sh DEVICE [SERIAL]
#
# DEVICE is a folder of outputs/ whose context binary is in contexts/. The phone's chip must be that device's.
# It needs adb, and qnn-net-run with its libraries on the phone, in $QNN_DIR (default: /data/local/tmp/qnn).
# Exit status: 0 the recorded bits; 1 other bits, or a step that failed; 2 called wrongly.
set -eu
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  echo "usage: sh reproduce_phone.sh DEVICE [SERIAL]" >&2
  echo "  DEVICE: one of those with a context binary:" >&2
  for file in "$(dirname "$0")"/contexts/*.bin; do
    test ! -f "$file" || echo "    $(basename "$file" .bin)" >&2
  done
  echo "  SERIAL: which phone, as \`adb devices\` has it; needed when several are attached" >&2
  exit 2
fi
cd "$(dirname "$0")"
device=$1
adb=${ADB:-adb}
if [ $# -gt 1 ]; then
  run() { "$adb" -s "$serial" "$@"; }
  serial=$2
else
  run() { "$adb" "$@"; }
fi
qnn=${QNN_DIR:-/data/local/tmp/qnn}
work=/data/local/tmp/devicelab_repro
test -f "contexts/$device.bin" || { echo "there is no contexts/$device.bin" >&2; exit 1; }

run shell "rm -rf $work && mkdir -p $work"
run push "contexts/$device.bin" "$work/context.bin"
run push input_list.txt "$work/input_list.txt"
for file in inputs/*.raw; do
  run push "$file" "$work/$(basename "$file")"
done
run shell "cd $work && PATH=$qnn:\$PATH LD_LIBRARY_PATH=$qnn ADSP_LIBRARY_PATH=$qnn qnn-net-run \
  --retrieve_context=context.bin --backend=libQnnHtp.so --input_list=input_list.txt --output_dir=out \
  --use_native_input_files --use_native_output_files --log_level=warn"

status=0
pulled=$(mktemp -d)
trap 'rm -rf "$pulled"' EXIT
while read -r number file; do
  run pull "$work/out/Result_0/$file" "$pulled/$number.raw"
  if cmp "outputs/$device/$number.raw" "$pulled/$number.raw"; then
    echo "$device, output $number: the recorded bits"
  else
    echo "$device, output $number: NOT the recorded bits"
    status=1
  fi
done < output_files.txt
exit $status
