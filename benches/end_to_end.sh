#!/usr/bin/env bash
# End-to-end benchmark: wgd against the userspace WireGuards that users can install, on this machine, as root.
#
#   benches/end_to_end.sh                 everything, 5 runs: half an hour; prints Markdown
#   benches/end_to_end.sh --update-docs   and puts it into docs/ and README.md, with the plot
#   benches/end_to_end.sh --quick         does it work here? 5 minutes, figures of no worth
#   benches/end_to_end.sh --help          choose tests, runs, contenders, output files
#   benches/end_to_end.sh --smoke         wgd alone for some seconds, for CI
#   benches/end_to_end.sh --self-test     the script's own arithmetic; needs neither root nor a daemon
#
# Builds wgd, unless WGD names one. Builds boringtun-cli and gotatun-cli into target/peers and installs what is missing of
# wireguard-go, iperf3 and such from Debian; a contender that cannot be had is left out, and it says so. With --impl it
# takes only what that names. The measurements are in benches/end_to_end/, how they are made in docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."

measure() { exec python3 -B benches/end_to_end "$@"; }
has() { command -v "$1" >/dev/null; }
say() { echo "$*" >&2; }

smoke=no
for option in "$@"; do
  case $option in
    --self-test) exec python3 -B benches/end_to_end/selftest.py ;;
    -h | --help | --from | --from=* | --impl | --impl=*) measure "$@" ;;
    --smoke) smoke=yes ;;
  esac
done

[[ $EUID == 0 ]] || { say 'this needs root: it makes network namespaces'; exit 1; }
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
peers=$target/peers

# program:package
wanted=(ip:iproute2 wg:wireguard-tools iperf3:iperf3 ping:iputils-ping taskset:util-linux ethtool:ethtool)
[[ $smoke == yes ]] || wanted+=(wireguard-go:wireguard-go)
packages=()
for pair in "${wanted[@]}"; do
  has "${pair%%:*}" || packages+=("${pair##*:}")
done
if ((${#packages[@]})) && has apt-get; then
  say "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update || :
  apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null || say "not installed: ${packages[*]}"
fi

if [[ -z ${WGD:-} ]]; then
  cargo build --release --bin wgd
  WGD=$target/release/wgd
fi
contenders=(--default-impl "wgd=$WGD -f {if}")

# peer CRATE PROGRAM NAME COMMAND: takes part if it is there or can be built
peer() {
  local crate=$1 program=$2 name=$3 command=$4
  if [[ ! -x $peers/bin/$program ]]; then
    say "building $crate into $peers"
    cargo install --quiet --locked --root "$peers" --target-dir "$peers/build" "$crate" ||
      { say "left out: $crate cannot be built"; return 0; }
  fi
  contenders+=(--default-impl "$name=$peers/bin/$program $command")
}

if [[ $smoke == no ]]; then
  # Both look for the login name of who starts them, to give up privileges, and without one gotatun does not start at all.
  # More threads than one make boringtun-cli slower; gotatun has no such option, and one worker of tokio does not help it.
  peer boringtun-cli boringtun-cli boringtun-cli '-f -t 1 --disable-drop-privileges {if}'
  peer gotatun-cli gotatun gotatun-cli '-f -v error --disable-drop-privileges {if}'
  if has wireguard-go; then
    contenders+=(--default-impl "wireguard-go=$(command -v wireguard-go) -f {if}")
  else
    say 'left out: wireguard-go is not installed'
  fi
  contenders+=(--default-impl 'veth=@cable')
fi

measure "${contenders[@]}" "$@"
