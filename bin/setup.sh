# shellcheck shell=sh disable=SC2034,SC2154
# (the scripts that source this set $root and read $venv)
#
# What bin/quickstart and bin/test share. To be sourced, with $root the checkout.
#
# An environment is a folder of the checkout: .venv (Open MPI's wheel), .venv-mpich (MPICH's) or
# .venv-system (no MPI of its own). Nothing is written outside the checkout. Each environment keeps
# a file psgrad-EXTRA for every extra it has, with the state of the checkout it was installed from.

fail() {
    printf 'psgrad: error: %s\n' "$*" >&2
    exit 2
}

say() {
    printf '%s\n' "$*" >&2
}

# Sets $venv to the environment for the MPI that the user wants.
choose_venv() {
    case ${PSGRAD_MPI-} in
        '') venv=.venv ;;
        system) venv=.venv-system ;;
        *) fail "PSGRAD_MPI must be 'system', or not set, got '$PSGRAD_MPI'" ;;
    esac
}

# Sets $python to a Python that can make environments.
find_python() {
    old=
    bare=
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
            continue
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            old=${old:-"$python is $version"}
        elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            bare=${bare:-$version}
        else
            return 0
        fi
    done
    [ -z "$bare" ] || fail "Python $bare is here without its venv module;" \
        "on Debian or Ubuntu, apt install python$bare-venv brings it"
    fail "psgrad needs Python 3.10 or newer, but ${old:-there is no python3 on PATH}; install one"
}

# What an environment depends on: where it is, and what the package says it needs.
state() {
    printf '%s %s\n' "$root" "$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
}

works() {
    "$root/$1/bin/python" -c '' 2>/dev/null
}

# is_ready VENV EXTRA...: whether there is nothing to do.
is_ready() {
    works "$1" || return 1
    place=$root/$1
    shift
    for extra in base "$@"; do
        [ "$(cat "$place/psgrad-$extra" 2>/dev/null)" = "$(state)" ] || return 1
    done
}

# provide VENV EXTRA...: makes the environment, or brings it up to date. An EXTRA that psgrad does
# not have is a package.
provide() {
    is_ready "$@" && return
    name=$1
    place=$root/$1
    shift
    [ -w "$root" ] || fail "$root is not writable for you; clone psgrad into a folder of your own"
    case $(cat "$place/psgrad-base" 2>/dev/null) in
        '' | "$root "*) moved=no ;;
        *) moved=yes ;;
    esac
    if [ $moved = yes ] || ! works "$name"; then
        find_python
        say "making $name with $(command -v "$python")"
        "$python" -m venv --clear "$place" >"$place.log" 2>&1 || explain "$place.log" "$name"
        rm -f "$place.log"
    fi
    options=
    packages=
    for extra in "$@"; do
        if grep -q "^$extra =\$" "$root/setup.cfg"; then
            options=$options${options:+,}$extra
        else
            packages="$packages $extra"
        fi
    done
    options=${options:+[$options]}
    say "installing psgrad$options$packages into $name, which takes a minute the first time"
    # $packages is a list of words.
    # shellcheck disable=SC2086
    (cd "$root" && run_pip install --editable ".$options" $packages) >"$place/install.log" 2>&1 ||
        explain "$place/install.log" "$name"
    for extra in base "$@"; do
        state >"$place/psgrad-$extra"
    done
}

# pip in $place. What is downloaded for one environment serves the next.
run_pip() {
    PIP_CACHE_DIR=$root/.venv-cache PIP_USER=0 PIP_ROOT_USER_ACTION=ignore \
        PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$place/bin/python" -m pip --quiet "$@"
}

# explain LOG VENV: why the environment could not be made.
explain() {
    tail -n 20 "$1" >&2
    fail "could not make $2 (see above, and $1); without a network, set PIP_FIND_LINKS or" \
        "PIP_INDEX_URL to where the packages are"
}

# A site's modules put packages for another Python and another MPI before ours with these.
unset PYTHONPATH PYTHONHOME
