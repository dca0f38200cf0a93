#!/bin/sh
# What `trivisor deploy` runs on the host.  POSIX sh: the host may have no Python yet.
#
#   facts      print what deployment needs to know, as lines "@name value"; changes nothing
#   place      make and print the private directory for uploads; any user
#   clean      remove that directory
#   begin DIR  as root: copy the transaction of DIR and start it as a unit of systemd
#   apply      in that unit: make the changes, or undo them
#   follow     print the transaction's log until it ends
#   verify     wait until all guests vote, and send a request
#   forget     as root, after a removal: delete what deployments have left
#   cancel     as root: ask the transaction to undo its changes
#
# The transaction runs in its own unit, so it needs no connection.  Before it changes anything it saves
# what it needs to undo that in $BASE/undo, which is removed when it has ended.  A transaction that
# the host's power failure ended leaves it there; the next one (MODE=recover) undoes that first.
# Tests set TRIVISOR_DEPLOY_ROOT and TRIVISOR_DEPLOY_PATH.
set -u
ROOT=${TRIVISOR_DEPLOY_ROOT-}
PATH=${TRIVISOR_DEPLOY_PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
export PATH LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
umask 022

BASE=$ROOT/var/lib/trivisor-deploy
UNIT=trivisor-deploy.service
SETTINGS=etc/trivisor/node.toml
DROPIN=etc/systemd/system/trivisor-http.socket.d/trivisor-deploy.conf
UNITS='trivisor.service trivisor-voter.service trivisor-http.socket trivisor-native.socket
    trivisor-control.socket trivisor-prepare.service trivisor-cleanup.service'

say() { printf '@%s\n' "$*"; }
encoded() { base64 -w 0 <"$1" 2>/dev/null; }
# Status and version of the package; nothing if dpkg has only heard of it ("un", "pn").
installed() { dpkg-query -W -f '${db:Status-Abbrev}${Version}' trivisor 2>/dev/null | grep -v '^.n'; }

# Digest of all that a transaction may change: the plan was made for exactly this.
state() {
    {
        installed || echo none
        find "$ROOT/etc/trivisor" "$ROOT/$DROPIN" -type f -exec sha256sum {} + 2>/dev/null | sort
    } | sha256sum | cut -d ' ' -f 1
}

# running: succeed if a transaction runs now.
running() {
    case $(systemctl show -p ActiveState --value "$UNIT" 2>/dev/null) in
    active | activating | deactivating | reloading) return 0 ;;
    esac
    return 1
}

facts() {
    say user "$(id -un)"
    say uid "$(id -u)"
    command -v sudo >/dev/null 2>&1 && say sudo yes
    say pid1 "$(cat "$ROOT/proc/1/comm" 2>/dev/null)"
    [ -d "$ROOT/run/systemd/system" ] && say systemd "$(systemctl is-system-running 2>/dev/null)"
    (
        ID='' VERSION_ID='' PRETTY_NAME=''
        [ -r "$ROOT/etc/os-release" ] && . "$ROOT/etc/os-release"
        say os "$ID $VERSION_ID"
        say os_name "$PRETTY_NAME"
    )
    if command -v dpkg >/dev/null 2>&1; then say arch "$(dpkg --print-architecture)"
    else say arch "$(uname -m)"; fi
    command -v apt-get >/dev/null 2>&1 && say apt yes
    say python "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
    while read -r name value _; do
        case $name in
        MemTotal:) say memory_total "$value" ;;
        MemAvailable:) say memory_available "$value" ;;
        esac
    done <"$ROOT/proc/meminfo"
    for place in /usr /var/lib /var/tmp; do
        say disk "$place $(df -Pk "$ROOT$place" 2>/dev/null | awk 'NR == 2 { print $4, $6 }')"
    done
    [ -e "$ROOT/dev/kvm" ] && say kvm yes
    grep -qwE 'svm|vmx' "$ROOT/proc/cpuinfo" && say cpu_virtualization yes
    say virtual "$(systemd-detect-virt 2>/dev/null)"
    grep -qs GenuineIntel "$ROOT/proc/cpuinfo" && say cpu intel
    for family in tcp tcp6; do
        awk 'NR > 1 && $4 == "0A" { print "@listening " $2 }' "$ROOT/proc/net/$family" 2>/dev/null
    done
    say listen "$(systemctl show -p Listen --value trivisor-http.socket 2>/dev/null | tr '\n' ' ')"
    say socket_state "$(systemctl show -p ActiveState --value trivisor-http.socket 2>/dev/null)"
    say node_state "$(systemctl show -p ActiveState --value trivisor.service 2>/dev/null)"
    if command -v ss >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        ss -ltnpH 2>/dev/null | awk '{ print "@listener " $4 " " $6 }'
    fi
    say package "$(installed)"
    dpkg --audit 2>/dev/null | sed -n 's/^ /@broken /p' | head -n 5
    [ -n "$(ls "$ROOT/var/lib/dpkg/updates" 2>/dev/null)" ] && say broken "dpkg was interrupted"
    for file in "$SETTINGS" "$DROPIN"; do
        if [ -r "$ROOT/$file" ]; then say file "$file $(encoded "$ROOT/$file")"
        elif [ -e "$ROOT/$file" ]; then say unreadable "$file"; fi
    done
    find "$ROOT/etc/trivisor/services" -type f 2>/dev/null | while read -r file; do
        say sum "${file#"$ROOT/"} $(sha256sum <"$file" | cut -d ' ' -f 1)"
    done
    find "$ROOT/etc/systemd/system" -path '*/trivisor*' ! -path '*.wants/*' ! -type d \
        ! -lname /dev/null 2>/dev/null |
        while read -r file; do say override "${file#"$ROOT/"}"; done
    for name in $UNITS; do
        for place in lib/systemd/system usr/lib/systemd/system; do
            [ -e "$ROOT/$place/$name" ] && say unit "$place/$name" && break
        done
    done
    [ -r "$BASE/record" ] && sed 's/^/@record /' "$BASE/record"
    [ -d "$BASE/undo" ] && ! running && say interrupted yes
    running && say transaction "$(cat "$BASE/by" 2>/dev/null)"
    [ -f "$BASE/result" ] && say last "$(cat "$BASE/result")"
    say state "$(state)"
    say end
}

# One directory for each user, so that the next deploy finds what this one leaves if it is cut off.
place() {
    dir=$ROOT/var/tmp/trivisor-deploy-$(id -u)
    mkdir -m 700 "$dir" 2>/dev/null
    if [ ! -d "$dir" ] || [ -L "$dir" ] || [ ! -O "$dir" ]; then
        say failed "$dir exists and is not a directory of this user"
        return 1
    fi
    chmod 700 "$dir" || return 1
    find "$dir" -mindepth 1 -maxdepth 1 ! -name '*.deb' -exec rm -rf {} + || return 1
    for file in "$dir"/*.deb; do
        [ -f "$file" ] || continue
        sum=$(sha256sum <"$file" | cut -d ' ' -f 1)
        if [ "$file" = "$dir/$sum.deb" ] && [ "$sum" = "${1-}" ]; then say kept; else rm -f "$file"; fi
    done
    say place "$dir"
}

begin() {
    from=$1
    mkdir -p "$BASE" || return 1
    exec 9>"$BASE/lock"
    flock -n 9 || { say busy "another deploy that starts now"; return 75; }
    if running; then
        say busy "$(cat "$BASE/by")"
        return 75
    fi
    rm -rf "$BASE/transaction" &&
        cp -r "$from" "$BASE/transaction" && rm -f "$BASE/transaction"/*.deb &&
        chown -R 0:0 "$BASE/transaction" && chmod 700 "$BASE/transaction" || return 1
    rm -f "$BASE/result"
    cp "$BASE/transaction/by" "$BASE/by"
    : >"$BASE/log"
    systemctl reset-failed "$UNIT" 2>/dev/null
    systemd-run --quiet --collect --unit="$UNIT" --property=KillMode=mixed \
        --property=TimeoutStopSec=1800 --property=OOMScoreAdjust=-500 \
        --description='Deployment of Trivisor' \
        /bin/sh "$BASE/transaction/host.sh" apply "$from" 9>&-
}

follow() {
    if running; then
        pid=$(systemctl show -p MainPID --value "$UNIT")
        tail -n +1 -f -s 0.3 --pid="$pid" "$BASE/log"
        until [ -f "$BASE/result" ] || ! running; do sleep 0.2; done
    else
        cat "$BASE/log"
    fi
    if [ -f "$BASE/result" ]; then say result "$(cat "$BASE/result")"
    else say result 'failed the host ended the transaction before it was finished'; fi
}

# ---- the transaction

apt() { apt-get -q -y -o DPkg::Lock::Timeout="$LOCK_WAIT" -o Acquire::Retries=3 \
    -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" \
    </dev/null 9>&-; }

packages() { dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' |
    awk '$2 != "not-installed" && $2 != "config-files" { print $1 }' | sort; }

finish() {
    printf '%s\n' "$1" >"$BASE/result.new" && mv "$BASE/result.new" "$BASE/result"
    rm -rf "$BASE/transaction" "$FROM"
    sync "$BASE/result" 2>/dev/null
    exit "$2"
}

fail() {
    say failed "$*"
    if [ -d "$BASE/undo" ]; then
        say step "undoing the changes"
        if undo; then finish "rolled-back $*" 1; else finish "incomplete $*" 1; fi
    fi
    finish "failed $*" 1
}

abort_if_cancelled() { [ -z "$cancelled" ] || fail "cancelled"; }

# save: what undo needs.  The directory gets its name when it is complete.
save() {
    rm -rf "$BASE/undo" "$BASE/undo.new" && mkdir -m 700 "$BASE/undo.new" || return 1
    packages >"$BASE/undo.new/packages" || return 1
    installed >"$BASE/undo.new/installed"
    state >"$BASE/undo.new/state"
    systemctl is-active --quiet trivisor.service && : >"$BASE/undo.new/active"
    for name in var/lib/trivisor var/lib/trivisor-voter var/cache/trivisor; do
        [ -e "$ROOT/$name" ] && : >"$BASE/undo.new/had-state"
    done
    mkdir -p "$BASE/undo.new/tree"
    for file in $SETTINGS $DROPIN $FILES $DELETE; do
        if [ -e "$ROOT/$file" ]; then
            mkdir -p "$BASE/undo.new/tree/$(dirname "$file")" &&
                cp -p "$ROOT/$file" "$BASE/undo.new/tree/$file" || return 1
        fi
        echo "$file" >>"$BASE/undo.new/files" || return 1
    done
    mv "$BASE/undo.new" "$BASE/undo" && sync -f "$BASE/undo"
}

put() {
    mkdir -p "$ROOT/$(dirname "$2")" && cp -p "$1" "$ROOT/$2.new" && mv "$ROOT/$2.new" "$ROOT/$2"
}

stop_node() {
    systemctl stop trivisor.service trivisor-voter.service trivisor-http.socket 2>&1
}

undo() {
    trap '' TERM
    rm -f "$BASE/transaction"/*.deb "$FROM"/*.deb  # makes room on a full disk
    before=$(cat "$BASE/undo/installed")
    case $before in
    ii*) ;;
    *)
        stop_node >/dev/null
        new=$(packages | comm -13 "$BASE/undo/packages" -)
        if [ -n "$new" ]; then
            # All in one command: dpkg finds the order.
            dpkg --force-remove-reinstreq --remove $new || say note "dpkg could not remove all of: $new"
            [ -n "$before" ] || [ -e "$BASE/undo/had-state" ] || dpkg --purge trivisor
            purge=
            for name in $new; do [ "$name" = trivisor ] || purge="$purge $name"; done
            [ -z "$purge" ] || dpkg --purge $purge
        fi
        ;;
    esac
    while read -r file; do
        if [ -e "$BASE/undo/tree/$file" ]; then put "$BASE/undo/tree/$file" "$file"
        else rm -f "$ROOT/$file"; fi
    done <"$BASE/undo/files"
    rmdir "$ROOT/$(dirname "$DROPIN")" "$ROOT/etc/trivisor/services" "$ROOT/etc/trivisor" 2>/dev/null
    case $before in
    ii*)
        if [ "$(installed)" != "$before" ]; then
            if [ -f "$BASE/package.deb" ] &&
                [ "ii $(dpkg-deb -f "$BASE/package.deb" Version)" = "$before" ]; then
                dpkg --force-confold -i "$BASE/package.deb"
            else
                say note "the former package (${before#ii }) is not kept here: the new one stays"
            fi
        fi
        systemctl daemon-reload
        stop_node >/dev/null
        [ ! -e "$BASE/undo/active" ] || start_node
        ;;
    *) systemctl daemon-reload; systemctl reset-failed 'trivisor*' 2>/dev/null ;;
    esac
    dpkg --configure -a || say note "dpkg --configure -a failed"
    wanted=$(cat "$BASE/undo/state")
    rm -rf "$BASE/undo"
    [ "$(state)" = "$wanted" ]
}

# A node that the package's installation has started is left alone: to start it again would start
# trivisor-prepare.service again, for nothing.
start_node() { systemctl is-active --quiet trivisor.service || systemctl start trivisor.service; }

# request PATH: print status, vote and body of a GET that is sent as clients do.
request() {
    python3 - "$URL$1" <<'PYTHON'
import sys
import urllib.error
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    reply = opener.open(sys.argv[1], timeout=15)
except urllib.error.HTTPError as error:
    reply = error
except (OSError, ValueError) as error:
    print("0 -", error)
    sys.exit()
with reply:
    body = reply.read(4000).decode(errors="replace")
    print(reply.status, reply.headers.get("Trivisor-Vote", "-").replace(" ", ""), body)
PYTHON
}

# vote: wait until all guests vote.
vote() {
    end=$(($(date +%s) + DEADLINE))
    last=
    while :; do
        answer=$(request '/readyz?verbose' | tr -d '\n')
        active=$(printf '%s' "$answer" | sed -n 's/.*"active": *\([0-9]*\).*/\1/p')
        [ "${active:-0}" -ge "$GUESTS" ] && return 0
        now="${active:-0} of $GUESTS guests vote"
        [ "$now" = "$last" ] || say note "$now"
        last=$now
        abort_if_cancelled
        if systemctl is-failed --quiet trivisor.service; then
            say note "trivisor.service has failed"
            return 1
        fi
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 1
    done
}

# evidence: why the node does not run.
evidence() {
    systemctl --no-pager --full status $UNITS 2>&1 | grep -E '●|×|Active:' | head -n 20
    journalctl --no-pager -q -o cat -n 30 -u trivisor.service -u trivisor-prepare.service \
        -u trivisor-voter.service 2>&1
}

apply() {
    FROM=$1
    exec >>"$BASE/log" 2>&1
    cancelled=
    trap 'cancelled=yes' TERM
    . "$BASE/transaction/spec"
    cd /
    case $MODE in
    recover)
        say step "undoing the changes of a deploy that was interrupted"
        FILES='' DELETE=''
        if undo; then finish ok 0; else finish 'incomplete an earlier deploy' 1; fi
        ;;
    remove | purge)
        trap '' TERM
        [ "$(state)" = "$EXPECT" ] || fail "the host was changed meanwhile"
        say step "removing the package"
        stop_node
        apt "$MODE" trivisor || fail "the package could not be removed"
        for file in $DELETE; do rm -f "$ROOT/$file"; done
        rmdir "$ROOT/$(dirname "$DROPIN")" 2>/dev/null
        if [ "$MODE" = purge ]; then
            rm -rf "$ROOT/etc/trivisor" "$ROOT/var/lib/trivisor" "$ROOT/var/lib/trivisor-voter" \
                "$ROOT/var/cache/trivisor"
        fi
        rm -f "$BASE/package.deb" "$BASE/record"
        systemctl daemon-reload
        systemctl reset-failed 'trivisor*' 2>/dev/null
        finish ok 0
        ;;
    esac
    [ "$(state)" = "$EXPECT" ] || fail "the host was changed meanwhile"
    abort_if_cancelled
    save || fail "what is needed to undo the changes cannot be saved in $BASE"
    if [ -n "$PACKAGE" ]; then
        cp "$FROM/$PACKAGE.deb" "$BASE/transaction/package.deb" || fail "the package cannot be copied"
        [ "$(sha256sum <"$BASE/transaction/package.deb" | cut -d ' ' -f 1)" = "$PACKAGE" ] ||
            fail "the package was changed meanwhile"
    fi
    abort_if_cancelled
    for file in $FILES; do
        say step "writing /$file"
        put "$BASE/transaction/tree/$file" "$file" || fail "/$file cannot be written"
    done
    for file in $DELETE; do
        say step "removing /$file"
        rm -f "$ROOT/$file" || fail "/$file cannot be removed"
    done
    systemctl daemon-reload
    abort_if_cancelled
    if [ -n "$PACKAGE" ]; then
        say step "reading the lists of Debian packages"
        apt update || say note "apt-get update failed; trying with the lists at hand"
        abort_if_cancelled
        say step "installing the package with what it needs"
        apt --no-install-recommends --allow-downgrades --reinstall install \
            "$BASE/transaction/package.deb" || fail "the package could not be installed"
        rm -f "$ROOT/$SETTINGS.dpkg-dist"
    fi
    abort_if_cancelled
    say step "starting the node"
    [ -z "$RESTART" ] || stop_node
    start_node || { evidence; fail "the node could not be started"; }
    say step "waiting until all guests vote"
    vote || { evidence; fail "not all guests vote after $DEADLINE s"; }
    say step "sending a request"
    answer=$(request / | head -n 1)
    case $answer in
    [1-4]??' '[0-9]*) say smoke "$answer" ;;
    *) evidence; fail "the request GET / got no voted reply: $answer" ;;
    esac
    if [ -n "$PACKAGE" ]; then
        mv "$BASE/transaction/package.deb" "$BASE/package.deb"
        printf 'package %s\n' "$PACKAGE" >"$BASE/record.new" && mv "$BASE/record.new" "$BASE/record"
    fi
    trap '' TERM
    sync -f "$BASE"
    rm -rf "$BASE/undo"
    finish ok 0
}

# verify: of a node that needs no change.
verify() {
    cancelled='' URL=$1 GUESTS=$2 DEADLINE=$3
    fail() { say failed "$*"; exit 1; }
    vote || fail "not all guests vote after $DEADLINE s"
    say smoke "$(request / | head -n 1)"
}

case ${1-} in
facts | follow) "$1" ;;
place) place "${2-}" ;;
clean) rm -rf "$ROOT/var/tmp/trivisor-deploy-$(id -u)" ;;
begin) begin "$2" ;;
apply) apply "$2" ;;
verify) verify "$2" "$3" "$4" ;;
forget) rm -rf "$BASE" ;;
cancel) systemctl stop --no-block "$UNIT" ;;
*) echo "usage: host.sh facts|place|clean|begin|apply|follow|verify|forget|cancel" >&2; exit 2 ;;
esac </dev/null
