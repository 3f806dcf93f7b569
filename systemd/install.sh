#!/bin/bash
# Installs training-runner as a system service, upgrades it, or takes it away. See README.md in this folder.
#
#   install.sh install   [--prefix DIR]    again: upgrades in place, running jobs train on undisturbed
#   install.sh uninstall [--prefix DIR]    leaves the jobs and their state
#
# Each installation is a virtual environment of its own, PREFIX/releases/NNNN, and PREFIX/current links to the newest.
# So a running worker keeps the very files that it started with; a release that nothing runs from is removed by the
# next installation. $PYTHON chooses the interpreter (3.11 or newer, outside of /home and /root, which the service
# does not see). pip's own variables (PIP_INDEX_URL, ...) hold as always. $EXTRAS names extras of pyproject.toml, such as "mirror".
set -euo pipefail

readonly unit=training-runner.service user=training-runner home=/var/lib/training-runner
readonly units=/etc/systemd/system command=/usr/local/bin/runner
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
prefix=/opt/training-runner

say() { printf 'install.sh: %s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

is_suitable() {
    "$1" -I -c 'import sys, os
prefix = os.path.realpath(sys.base_prefix) + "/"
sys.exit(sys.version_info < (3, 11) or prefix.startswith(("/home/", "/root/", "/run/user/")))' 2>/dev/null
}

choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_suitable "$PYTHON" || fail "PYTHON=$PYTHON: expected Python 3.11 or newer, outside of /home and /root"
        echo "$PYTHON"
        return
    fi
    for candidate in /usr/bin/python3 /usr/local/bin/python3 {/usr/bin,/usr/local/bin}/python3.{14,13,12,11}; do
        if [ -x "$candidate" ] && is_suitable "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer outside of /home and /root; install Debian's python3, or set PYTHON=/path/to/python3"
}

make_user() {
    getent group "$user" >/dev/null || groupadd --system "$user"
    id -u "$user" >/dev/null 2>&1 || useradd --system --gid "$user" --home-dir "$home" --no-create-home \
        --shell /usr/sbin/nologin --comment "training runner" "$user"
    local group
    for group in video render; do # who may open the GPUs' device files
        if getent group "$group" >/dev/null; then usermod --append --groups "$group" "$user"; fi
    done
}

make_home() {
    install -d -o "$user" -g "$user" -m 0750 "$home" "$home/state"
    # Members of the group may submit: what they put here belongs to the group.
    install -d -o "$user" -g "$user" -m 2770 "$home/jobs" "$home/jobs/.requests"
}

make_release() { # sets $release
    local python number
    python=$(choose_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; install Debian's package python3-venv"
    install -d -m 0755 "$prefix" "$prefix/releases"
    number=$(find "$prefix/releases" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -1)
    release=$(printf '%s/releases/%04d' "$prefix" $((10#${number:-0} + 1)))
    say "building $release (downloads TensorFlow the first time)"
    (
        umask 022
        "$python" -m venv "$release"
        "$release/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$here/..${EXTRAS:+[$EXTRAS]}"
        # Not before it can start does it take the place of what runs.
        "$release/bin/python" -P -m runner.supervisor --help >/dev/null
    ) || { rm -rf "$release"; fail "the release could not be built; what was installed before is untouched"; }
}

drop_old_releases() {
    local old current
    current=$(readlink "$prefix/current" || true)
    for old in "$prefix"/releases/*; do
        if [ "$old" != "$current" ] && ! grep -aFqs "$old/" /proc/[0-9]*/cmdline; then rm -rf "$old"; fi
    done
}

install_service() {
    make_user
    make_home
    drop_old_releases
    make_release
    ln -sfn "$release" "$prefix/current.new" && mv -T "$prefix/current.new" "$prefix/current"
    if [ ! -e "$command" ] || [ -L "$command" ]; then ln -sfn "$prefix/current/bin/runner" "$command"; fi
    local before
    before=$(cat "$units/$unit" 2>/dev/null || true)
    sed "s|/opt/training-runner/|$prefix/|g" "$here/$unit" > "$units/$unit.new"
    mv "$units/$unit.new" "$units/$unit"
    systemctl daemon-reload
    systemctl enable --quiet "$unit"
    if systemctl is-active --quiet "$unit"; then
        systemctl reload "$unit"
        say "upgraded to $release; running jobs went on undisturbed, and use it from their next attempt"
        [ "$before" = "$(cat "$units/$unit")" ] ||
            say "the unit has changed: its settings take effect with \`systemctl restart $unit\` (jobs checkpoint and resume)"
    else
        systemctl start "$unit"
        say "$unit runs; its home is $home"
    fi
}

uninstall_service() {
    if [ -e "$units/$unit" ]; then
        say "stopping $unit: running jobs checkpoint first"
        systemctl disable --quiet --now "$unit"
    fi
    rm -f "$units/$unit"
    systemctl daemon-reload
    if [ "$(readlink "$command")" = "$prefix/current/bin/runner" ]; then rm -f "$command"; fi
    rm -rf "$prefix/releases" "$prefix/current"
    rmdir --ignore-fail-on-non-empty "$prefix" 2>/dev/null || true
    say "uninstalled; the jobs and their state are left in $home, as is their owner, the user $user."
    say "to remove these too: rm -r $home; userdel $user"
}

verb=${1:-}
shift || true
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) prefix=$(realpath -m "${2:?--prefix needs a folder}"); shift 2 ;;
        *) fail "unknown option $1" ;;
    esac
done
[[ $verb =~ ^(install|uninstall)$ ]] || { sed -n '2,11p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "root is needed: sudo make ${verb}-service"
[ -d /run/systemd/system ] || fail "systemd does not run here; start the daemon by hand instead: runner supervise"
"${verb}_service"
