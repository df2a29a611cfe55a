# shellcheck shell=bash
# Pip packages and a ring for the tests of clients and of the page to source, after
# ops/requirements.sh. $state is a folder of the test's own.

# install FILE : the folder with the packages of that list.
install() {
    local list=$1 folder
    folder=$state/packages-$(sha256sum "$list" | cut -c1-16)
    if [ ! -d "$folder" ]; then
        need_pip || fail "pip is needed for the packages of $list"
        say "installing the packages of ${list#"$root"/}" >&2
        rm -rf "$folder.part"
        python3 -m pip install --quiet --no-deps --root-user-action ignore \
            --target "$folder.part" -r "$list" >&2
        mv "$folder.part" "$folder"
    fi
    echo "$folder"
}

# ring MODEL OPTIONS… : starts one in place of the last, and exports its address.
ring() {
    local tandem=$root/target/debug/tandem release=$root/target/release/tandem model=$1
    shift
    [ ! "$release" -nt "$tandem" ] || tandem=$release
    [ -x "$tandem" ] || fail "no tandem is built: cargo build --workspace --bins"
    up=("$tandem" up --run-folder "$state/run")
    "${up[@]}" --stop >/dev/null
    trap '"${up[@]}" --stop >/dev/null' EXIT
    "${up[@]}" --detach --port 0 --model "$model" --served-model-name client-test "$@" |
        tee "$state/up.log"
    TANDEM_URL=$(grep -ao 'ready at http://[^ ]*' "$state/up.log" | cut -d' ' -f3)
    TANDEM_BIN_DIR=$(dirname "$tandem")
    export TANDEM_URL TANDEM_BIN_DIR
}
