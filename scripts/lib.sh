# shellcheck shell=bash
# Shared by quickstart, test and .ci/run: finds or installs what they need, once,
# into a cache, and says only what it does.
#
# The cache is ${XDG_CACHE_HOME:-~/.cache}/chromafs; delete it whenever you like.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/chromafs
mkdir -p "$cache"

say() { printf '%s\n' "$*" >&2; }

die() {
	say "error: $1"
	[[ $# -lt 2 ]] || say "  next: $2"
	exit 1
}

# quietly COMMAND…: shows the output only if the command fails.
quietly() {
	local log
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		die "failed: $*"
	fi
	rm -f "$log"
}

as_root() {
	if [[ $EUID -eq 0 ]]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root: $*" "run it as root, or install sudo"
	fi
}

apt_install() {
	DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -q --no-install-recommends "$@"
}

# need_packages PACKAGE…: installs them with apt. The package lists are only
# fetched where installing without doing so fails.
need_packages() {
	command -v apt-get >/dev/null ||
		die "missing: $*" "install these packages with your distribution's tools"
	say "installing: $*"
	apt_install "$@" >/dev/null 2>&1 && return
	quietly as_root apt-get update -q
	quietly apt_install "$@"
}

need_command() { # COMMAND PACKAGE…
	command -v "$1" >/dev/null || need_packages "${@:2}"
}

need_fuse() {
	[[ $(uname -s) == Linux ]] || die "chromafs runs on Linux only"
	need_command fusermount3 fuse3
	[[ -c /dev/fuse ]] || as_root modprobe fuse 2>/dev/null || true
	[[ -c /dev/fuse ]] || die "this machine has no /dev/fuse" \
		"in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN …"
	# An ordinary user mounts through fusermount3, which opens the device as root.
	if [[ $EUID -eq 0 ]] && ! (: <>/dev/fuse) 2>/dev/null; then
		die "root may not open /dev/fuse here" \
			"in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN …"
	fi
}

need_go() {
	command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
	command -v go >/dev/null || die "Go is missing" "install Go from https://go.dev/dl/"
}

# build OUTPUT [ARGUMENT…]: go build of cmd/chromafs, which is quick when nothing changed.
build() {
	local output=$1
	shift
	(cd "$root" && go build "$@" -o "$output" ./cmd/chromafs)
}

# A Python of the system, at least 3.9, that can make virtual environments.
find_python() {
	local python
	for python in python3 /usr/bin/python3; do
		if "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
			command -v "$python"
			return
		fi
	done
	return 1
}

# need_venv REQUIREMENTS: sets $venv to a virtual environment with what the file of
# that name in scripts/ lists.
need_venv() {
	local python key
	if ! python=$(find_python); then
		need_packages python3 python3-venv
		python=$(find_python) || die "no Python of at least 3.9 with venv" "install python3 and python3-venv"
	fi
	key=$({ "$python" -VV && cat "$root/scripts/$1"; } | sha256sum | cut -c1-12)
	venv=$cache/venv-$key
	[[ -e $venv/.complete ]] || locked "venv-$key" make_venv "$python" "$1"
}

make_venv() { # PYTHON REQUIREMENTS
	[[ ! -e $venv/.complete ]] || return 0
	say "installing $(grep -v '^#' "$root/scripts/$2") into $venv (once, about a minute)"
	rm -rf "$venv"
	quietly "$1" -m venv "$venv"
	quietly "$venv/bin/python" -m pip install --quiet --no-input -r "$root/scripts/$2"
	touch "$venv/.complete"
}

# need_chromadb: sets $venv to a virtual environment with the pinned ChromaDB.
need_chromadb() { need_venv requirements.txt; }

# need_awscli: prints the path of the AWS command line.
need_awscli() {
	local venv
	need_venv requirements-awscli.txt
	printf '%s\n' "$venv/bin/aws"
}

# need_tool PACKAGE: builds a tool that integration/go.mod names, of the version
# it names, and sets $tool to its path.
need_tool() {
	local package=$1 version
	version=$(cd "$root/integration" && go list -f '{{.Module.Version}}' "$package") ||
		die "integration/go.mod does not know $package"
	tool=$cache/tools/$version-$(go env GOVERSION)/${package##*/}
	[[ -x $tool ]] || locked "tool-${package##*/}" build_tool "$package"
}

build_tool() {
	[[ ! -x $tool ]] || return 0
	say "building ${1##*/} into $tool (once, up to some minutes)"
	mkdir -p "${tool%/*}"
	(cd "$root/integration" && quietly go build -o "$tool.new" "$1")
	mv "$tool.new" "$tool"
}

# need_speedtest: SQLite's own benchmark, from the source of the distribution's
# SQLite, built against its library; sets $speedtest.
need_speedtest() {
	need_command gcc gcc libc6-dev
	need_command dpkg-source dpkg-dev
	[[ -e /usr/include/sqlite3.h ]] || need_packages libsqlite3-dev
	speedtest=$cache/tools/speedtest1-$(dpkg-query -W -f '${Version}' libsqlite3-dev)
	[[ -x $speedtest ]] || locked speedtest1 build_speedtest
}

# Debian only tells where sources are if asked to: the system's own lists stay as they are.
build_speedtest() {
	[[ ! -x $speedtest ]] || return 0
	say "building SQLite's speedtest1 into $speedtest (once, about a minute)"
	local work options
	work=$(mktemp -d)
	mkdir -p "$work/lists/partial" "${speedtest%/*}"
	sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$work/debian.sources"
	options=(-q -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=/nonexistent
		-o Dir::State::lists="$work/lists" -o APT::Sandbox::User=root)
	(
		cd "$work" || exit
		quietly apt-get "${options[@]}" update
		quietly apt-get "${options[@]}" source --download-only sqlite3
		tar xf sqlite3_*.orig.tar.* --wildcards '*/test/speedtest1.c' --strip-components=2
		quietly gcc -O2 -o "$speedtest.new" speedtest1.c -lsqlite3 -lm
	)
	mv "$speedtest.new" "$speedtest"
	rm -rf "$work"
}

# locked NAME COMMAND…: two runs at once do not install over each other.
locked() {
	local name=$1
	shift
	exec 9>"$cache/$name.lock"
	flock 9
	"$@"
	exec 9>&-
}
