# shellcheck shell=bash
# Shared by the scripts beside it: makes this machine able to run the checkout, once, and finds out
# without starting Python, pip or apt that this was done already. Sourced, never run.
#
# A virtual environment of ours holds a directory `.pixstorefs` with
#   {run,test,bench}.stamp  copies of everything that decided what is installed; written last, so a stamp means "complete"
#   postponed               when the last installing failed, and for what, while what was installed before goes on
#   changing                exists while the environment is being changed; one left behind means "interrupted: rebuild"
#   lock                    held during setup
#   setup.log               what apt and pip said the last time
# Deleting the whole environment is always safe: the next start makes a new one.

CHECKOUT=$(CDPATH='' cd -P -- "${BASH_SOURCE[0]%/*}/.." && pwd -P)
CACHE=${XDG_CACHE_HOME:-~/.cache}/pixstorefs
VENV='' # the environment to use, once bootstrap has returned

readonly EX_UNAVAILABLE=69
readonly STAMP_FORMAT='pixstorefs environment 1' # change it when an environment made by an older script will not do

# --- messages: stdout belongs to the program that is started in the end ---

say() { printf 'pixstorefs setup: %s\n' "$1" >&2; }

# give_up <what failed> [<what to do>...]
give_up() {
  say "$1"
  shift
  if (($#)); then printf '%s\n' "$@" | sed 's/^/  /' >&2; fi
  exit "$EX_UNAVAILABLE"
}

give_up_with_log() {
  say "$1; the end of $LOG:"
  shift
  tail -n 20 -- "$LOG" | sed 's/^/  | /' >&2
  printf '%s\n' "$@" 'Then start again; what is complete is not done twice.' >&2
  exit "$EX_UNAVAILABLE"
}

# --- the quick question: is everything there? Bash only, no process is started. ---

read_pyproject() {
  IFS= read -r -d '' PYPROJECT <"$CHECKOUT/pyproject.toml" || [[ -n ${PYPROJECT-} ]] ||
    give_up "cannot read $CHECKOUT/pyproject.toml"
  # What tools are told in it decides nothing of what is installed.
  PYPROJECT=${PYPROJECT%%$'\n[tool.'*}
}

read_stamp() { # <venv> <run|test|bench>
  STAMPED_FORMAT='' STAMPED_CHECKOUT='' STAMPED_PYTHON='' STAMPED_REQUEST='' STAMPED_PYPROJECT=''
  [[ -r $1/.pixstorefs/$2.stamp ]] || return 1
  {
    IFS= read -r STAMPED_FORMAT
    IFS= read -r STAMPED_CHECKOUT
    IFS= read -r STAMPED_PYTHON
    IFS= read -r STAMPED_REQUEST
    IFS= read -r -d '' STAMPED_PYPROJECT
  } <"$1/.pixstorefs/$2.stamp"
  return 0
}

# A complete environment, made for this path by an interpreter that is still the same one: a distribution upgrade
# turns the link in bin/ into a dangling one or into another Python. Which packages it holds is not asked here.
environment_is_sound() { # <venv>, after read_stamp
  [[ $STAMPED_FORMAT == "$STAMP_FORMAT" && $STAMPED_CHECKOUT == "$CHECKOUT" && ! -e $1/.pixstorefs/changing ]] &&
    [[ $1/bin/python3 -ef $STAMPED_PYTHON && -x $1/bin/python3 ]] &&
    [[ -z ${PIXSTOREFS_PYTHON-} || $PIXSTOREFS_PYTHON == "$STAMPED_REQUEST" ]]
}

is_ready() { # <venv> <run|test|bench>
  read_stamp "$1" "$2" && environment_is_sound "$1" &&
    [[ $STAMPED_PYPROJECT == "$PYPROJECT" && -x $1/bin/pixstorefs ]] && type -P fusermount3 >/dev/null
}

# After a `git pull` without a network what was installed goes on working. Asked again an hour later: pip waits long.
is_usable_for_now() { # <venv> <run|test|bench>
  local since='' postponed=''
  [[ $2 == run && -r $1/.pixstorefs/postponed ]] || return 1
  {
    IFS= read -r since
    IFS= read -r -d '' postponed
  } <"$1/.pixstorefs/postponed"
  [[ $postponed == "$PYPROJECT" && $since =~ ^[0-9]+$ ]] && (($(printf '%(%s)T' -1) - since < 3600)) &&
    read_stamp "$1" run && environment_is_sound "$1" && [[ -x $1/bin/pixstorefs ]]
}

# --- where the environment lives ---

venv_in_checkout() { printf -v "$1" '%s' "$CHECKOUT/.venv"; }

# One for each checkout, so that two read-only checkouts do not rebuild each other's environment in turn.
venv_in_cache() {
  local name=${CHECKOUT//[^A-Za-z0-9._-]/%}
  if ((${#name} > 200)); then name=${name: -200}; fi
  printf -v "$1" '%s' "$CACHE/venv$name"
}

# Only what this script made is ever cleared: not an environment somebody made by hand, nor another user's.
is_ours() { # <venv>
  [[ -d $1 && -O $1 && -w $1 ]] || return 1
  [[ -d $1/.pixstorefs ]] || [[ -z $(ls -A -- "$1") ]]
}

choose_venv() {
  venv_in_checkout VENV
  # Python makes no environment under a path with a colon: it could not stand in PATH.
  if [[ $VENV != *:* ]]; then
    if is_ours "$VENV"; then return; fi
    if [[ ! -e $VENV && -w $CHECKOUT ]]; then return; fi
    if [[ -e $VENV && -O $VENV && ! -d $VENV/.pixstorefs ]]; then say "$VENV was made by hand; leaving it alone"; fi
  fi
  venv_in_cache VENV
}

# --- a Python that can do the work ---

# Each reason an interpreter is refused for was met in practice: built without ssl, split into packages, too old.
probe_python() { # <interpreter>: prints "ok <real path>", or why not
  "$1" -I -c '
import os, sys
minor = int(sys.argv[1])
if sys.version_info < (3, minor):
    print("is Python %d.%d, 3.%d or newer is needed" % (sys.version_info[0], sys.version_info[1], minor))
    sys.exit()
for module in ("ssl", "zlib", "venv", "ensurepip"):
    try:
        __import__(module)
    except ImportError:
        print("has no working module %r" % module)
        sys.exit()
import sysconfig
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("has no headers (Python.h)")
    sys.exit()
print("ok " + os.path.realpath(sys.executable))
' "$PYTHON_MINOR" 2>/dev/null || printf 'does not start\n'
}

# Sets PYTHON. A request for a certain interpreter is not quietly answered with another.
find_python() {
  local candidate path answer
  local -a candidates=(/usr/bin/python3 python3.13 python3.12 python3.11 python3)
  if [[ -n ${PIXSTOREFS_PYTHON-} ]]; then candidates=("$PIXSTOREFS_PYTHON"); fi
  PYTHON='' PYTHON_REFUSALS=()
  for candidate in "${candidates[@]}"; do
    path=$(type -P "$candidate") || continue
    if [[ $candidate == python3 && $path == /usr/bin/python3 ]]; then continue; fi # was the first already
    answer=$(probe_python "$path")
    if [[ $answer == 'ok '* ]]; then
      PYTHON=${answer#ok }
      return
    fi
    PYTHON_REFUSALS+=("$path $answer")
  done
  if [[ ${#PYTHON_REFUSALS[@]} -eq 0 && -n ${PIXSTOREFS_PYTHON-} ]]; then
    PYTHON_REFUSALS=("PIXSTOREFS_PYTHON names no program: $PIXSTOREFS_PYTHON")
  fi
  return 1
}

# --- system packages ---

describe_package() {
  case $1 in
    fuse3) echo 'fusermount3, of FUSE 3' ;;
    libfuse3-dev) echo 'headers and fuse3.pc, of FUSE 3' ;;
    pkg-config) echo 'pkg-config' ;;
    gcc) echo 'a C compiler' ;;
    libc6-dev) echo 'headers of the C library' ;;
    python3*-venv) echo "Python 3.$PYTHON_MINOR or newer, with ssl, venv and ensurepip" ;;
    python3*-dev) echo 'headers of that Python' ;;
    *) echo 'a program the tests drive' ;;
  esac
}

# Asks for the thing and not for the package, so that other distributions and self-built tools count too.
missing_build_packages() {
  type -P fusermount3 >/dev/null || echo fuse3
  type -P pkg-config >/dev/null || echo pkg-config
  pkg-config --exists fuse3 2>/dev/null || [[ -e /usr/include/fuse3/fuse.h ]] || echo libfuse3-dev
  type -P gcc >/dev/null || echo gcc
  gcc -E -include stdio.h -x c /dev/null &>/dev/null || [[ -e /usr/include/stdio.h ]] || echo libc6-dev
}

# A distribution whose python3 is too old may offer a newer one beside it.
python_packages() {
  local minor
  if [[ ! -x /usr/bin/python3 ]] || /usr/bin/python3 -c "import sys; sys.exit(sys.version_info < (3, $PYTHON_MINOR))"; then
    echo python3-venv python3-dev
    return
  fi
  for minor in 13 12 11; do
    if ((minor >= PYTHON_MINOR)) && apt-cache show "python3.$minor-venv" &>/dev/null; then
      echo "python3.$minor-venv" "python3.$minor-dev"
      return
    fi
  done
}

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Sets AS_ROOT, the words to put before a command. `ask` allows sudo to ask for a password.
become_root() { # <ask|passwordless>
  local settings=(env DEBIAN_FRONTEND=noninteractive)
  if ((EUID == 0)); then
    AS_ROOT=("${settings[@]}")
  elif type -P sudo >/dev/null && sudo -n true 2>/dev/null; then
    AS_ROOT=(sudo -n "${settings[@]}")
  elif [[ $1 == ask ]] && type -P sudo >/dev/null && { : </dev/tty; } 2>/dev/null; then
    AS_ROOT=(sudo "${settings[@]}") # sudo asks on the terminal, wherever our output goes
  else
    return 1
  fi
}

run_logged() { "$@" >>"$LOG" 2>&1 </dev/null; }

apt_refresh() {
  if [[ -n ${APT_REFRESHED-} ]]; then return; fi
  APT_REFRESHED=yes
  # One broken source among several is no reason to stop: what is missing shows when it is installed.
  run_logged "${AS_ROOT[@]}" apt-get update || say 'apt-get update complained; going on'
}

apt_install() ( # <package>...; a subshell, so as not to hand the lock down to a service that a package starts
  drop_lock
  # Another apt, an automatic upgrade for one, may be at work: wait for it.
  run_logged "${AS_ROOT[@]}" apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=3 "$@"
)

list_by_hand() { # <package>...
  local package
  for package in "$@"; do printf '%-16s %s\n' "$package" "$(describe_package "$package")"; done
}

refuse_python() {
  give_up "no usable Python: 3.$PYTHON_MINOR or newer is needed, with ssl, venv, ensurepip and its headers" \
    "${PYTHON_REFUSALS[@]}" \
    'Install one, and name it if it is not in PATH: PIXSTOREFS_PYTHON=/path/to/python3'
}

# Adds to `wanted` what gives this system a usable Python, or gives up if nothing does.
want_python() {
  local packages
  if [[ -n ${PIXSTOREFS_PYTHON-} ]]; then refuse_python; fi
  packages=$(python_packages)
  if [[ -z $packages ]] && type -P apt-get >/dev/null && become_root ask; then
    apt_refresh # the lists of a fresh container are empty
    packages=$(python_packages)
  fi
  if [[ -z $packages ]]; then refuse_python; fi
  # shellcheck disable=SC2206 # package names, one word each
  wanted+=($packages)
}

# Installs what is missing of <package>..., or gives up and says what to install by hand.
install_system_packages() {
  local package
  local -a missing=()
  if ! type -P apt-get dpkg-query >/dev/null; then
    give_up 'something is missing, and there is no apt-get to install it. Please install (Debian names on the left):' \
      "$(list_by_hand "$@")" "${PYTHON_REFUSALS[@]}"
  fi
  for package in "$@"; do
    if ! is_installed "$package"; then missing+=("$package"); fi
  done
  if ((${#missing[@]} == 0)); then return; fi
  become_root ask ||
    give_up 'something is missing; installing it needs root, and there is no sudo that works here. As root, run:' \
      "apt-get install ${missing[*]}" 'which brings:' "$(list_by_hand "${missing[@]}")"
  say "installing ${missing[*]}"
  apt_refresh
  apt_install "${missing[@]}" ||
    give_up_with_log 'apt-get install failed' "Install these by hand: apt-get install ${missing[*]}"
}

# A second round, because only with python3 installed is it known whether it is too old.
ensure_system() {
  local -a wanted
  for _ in 1 2; do
    mapfile -t wanted < <(missing_build_packages)
    find_python || want_python
    if ((${#wanted[@]} == 0)); then return; fi
    install_system_packages "${wanted[@]}"
  done
  find_python || refuse_python
}

# --- the environment ---

clear_environment() { find "$VENV" -mindepth 1 -maxdepth 1 ! -name .pixstorefs -exec rm -rf -- {} +; }

make_environment() {
  say "making a Python environment in $VENV"
  rm -f -- "$STATE"/*.stamp
  clear_environment || give_up "cannot clear $VENV" "Remove it by hand: rm -rf '$VENV'"
  run_logged "$PYTHON" -I -m venv "$VENV" ||
    give_up_with_log 'making the environment failed' "Interpreter: $PYTHON; set PIXSTOREFS_PYTHON for another one."
}

install_package() { # <run|test|bench>
  local what=.
  if [[ $1 != run ]]; then what=".[$1]"; fi
  say 'installing pixstorefs and what it needs; the first time this takes a minute or two'
  # Editable: a change in the sources needs no new setup. -I keeps the checkout itself off pip's module path.
  # A "user = true" in pip's configuration contradicts any virtual environment; all the rest of it is honoured.
  (cd -- "$CHECKOUT" && PIP_USER=0 run_logged "$VENV/bin/python3" -I -m pip install --editable "$what")
}

write_stamp() { # <run|test|bench>
  printf '%s\n%s\n%s\n%s\n%s' "$STAMP_FORMAT" "$CHECKOUT" "$PYTHON" "$PYTHON_REQUEST" "$PYPROJECT" >"$STATE/$1.stamp.new"
  mv -f -- "$STATE/$1.stamp.new" "$STATE/$1.stamp"
}

# A stamp of an earlier pyproject.toml would speak again if that came back, with other packages beside it.
drop_outdated_stamps() {
  local extra
  for extra in test bench; do
    if ! read_stamp "$VENV" "$extra" || [[ $STAMPED_PYPROJECT != "$PYPROJECT" ]]; then
      rm -f -- "$STATE/$extra.stamp"
    fi
  done
}

# Children inherit the lock on purpose: a pip that outlives a killed setup keeps the next one waiting, not colliding.
take_lock() {
  exec {LOCK_FD}>>"$STATE/lock"
  if ! flock --nonblock "$LOCK_FD"; then
    say 'another start is setting up; waiting for it'
    flock "$LOCK_FD"
  fi
}

drop_lock() { if [[ -n ${LOCK_FD-} ]]; then exec {LOCK_FD}>&-; fi; }

set_up() { # <run|test|bench>
  local reuse=''
  # The version needed is written in one place only.
  [[ $PYPROJECT =~ requires-python[[:space:]]*=[[:space:]]*\"\>=3\.([0-9]+) ]] ||
    give_up "no requires-python = \">=3.x\" in $CHECKOUT/pyproject.toml"
  PYTHON_MINOR=${BASH_REMATCH[1]}

  choose_venv
  STATE=$VENV/.pixstorefs LOG=$VENV/.pixstorefs/setup.log
  mkdir -p -- "$STATE" || give_up "cannot write to $VENV" 'Set XDG_CACHE_HOME to a directory that can be written.'
  take_lock
  if is_ready "$VENV" "$1"; then # the start we waited for did it
    drop_lock
    return
  fi
  : >"$LOG"

  ensure_system
  PYTHON_REQUEST=${PIXSTOREFS_PYTHON-}
  if read_stamp "$VENV" run && environment_is_sound "$VENV"; then
    reuse=yes PYTHON=$STAMPED_PYTHON PYTHON_REQUEST=$STAMPED_REQUEST
  fi
  : >"$STATE/changing"
  if [[ -z $reuse ]]; then make_environment; fi
  if ! install_package "$1"; then
    # pip undoes what it could not finish, so an environment that was good still is.
    if [[ -n $reuse ]]; then rm -f -- "$STATE/changing"; fi
    if [[ -n $reuse && $1 == run && -x $VENV/bin/pixstorefs ]]; then
      printf '%(%s)T\n%s' -1 "$PYPROJECT" >"$STATE/postponed"
      say "pip install failed, see $LOG; what was installed before goes on, and the next start in an hour tries again"
      drop_lock
      return
    fi
    give_up_with_log 'pip install failed' \
      'Mostly this is the network or the package index: see pip config list, PIP_INDEX_URL.' \
      "If the environment itself seems broken, remove it: rm -rf '$VENV'"
  fi
  drop_outdated_stamps
  if [[ $1 != run ]]; then write_stamp "$1"; fi
  write_stamp run
  rm -f -- "$STATE/changing" "$STATE/postponed"
  say 'done'
  drop_lock
}

# bootstrap <run|test|bench>: returns with VENV set to an environment that holds what is asked for, or ends the script.
bootstrap() {
  local place
  read_pyproject
  for place in venv_in_checkout venv_in_cache; do
    "$place" VENV
    if is_ready "$VENV" "$1" || is_usable_for_now "$VENV" "$1"; then return; fi
  done
  set_up "$1"
}

# Where Python cannot keep its compiled modules beside the sources, it would compile all of them at every start.
keep_compiled_modules() {
  if [[ ! -w $CHECKOUT/pixstorefs ]]; then export PYTHONPYCACHEPREFIX=${PYTHONPYCACHEPREFIX:-$CACHE/pycache}; fi
}
